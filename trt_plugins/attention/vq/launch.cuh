// Launches of the kernels over codes, for one element type. Each <kernel>_<type>.cu instantiates some.
#pragma once

#include "attention/cached/launch.cuh"
#include "attention/vq/args.cuh"
#include "attention/vq/params.h"

namespace graphopt::attention {

/// Query rows up to which decode runs: it reads the codes again for every 4.
constexpr int64_t kMaxVqDecodeRows = 16;

/// Encode k and v into present, and rotate q into the workspace where `queries` is set; sets counters to 0.
///
/// Args:
///   expanded: [2, B, Hkv, C, D], or null: what the new codes stand for goes there, if that costs little; `*written`
///   tells.
template <class T>
Status launch_encode(VqParams const& p, Workspace const& workspace, bool queries, T* expanded, bool* written,
                     cudaStream_t stream);

/// Attention by way of keys and values of T.
///
/// Args:
///   vectors: see launch_attention.
///   all: keys and values of new tokens are not written out yet.
template <class T>
Status launch_vq_expanded(VqArgs<T> const& args, VqParams const& p, Workspace const& workspace, bool vectors, bool all,
                          cudaStream_t stream);

/// Sets `*done` unless there is no kernel for the sizes or the device.
template <class T>
Status launch_vq_decode(VqArgs<T> const& args, DeviceLimits const& device, bool* done, cudaStream_t stream);

}  // namespace graphopt::attention
