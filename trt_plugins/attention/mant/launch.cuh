// Launches of the kernels over a M-ANT cache, for one element type. Each <kernel>_<type>.cu instantiates some.
#pragma once

#include "attention/cached/launch.cuh"
#include "attention/mant/args.cuh"
#include "attention/mant/params.h"

namespace graphopt::attention {

/// Query rows up to which decode runs: it reads the cache again for every 8.
constexpr int64_t kMaxMantDecodeRows = 32;

/// Put k and v into the present state, and rotate q into the workspace where `queries` is set; sets counters to 0.
template <class T>
Status launch_mant_append(MantParams const& p, Workspace const& workspace, bool queries, cudaStream_t stream);

/// Attention by way of keys and values of T.
///
/// Args:
///   vectors: see launch_attention.
template <class T>
Status launch_mant_expanded(MantArgs<T> const& args, MantParams const& p, Workspace const& workspace, bool vectors,
                            cudaStream_t stream);

/// Sets `*done` unless there is no kernel for the sizes or the device.
template <class T>
Status launch_mant_decode(MantDecodeArgs<T> const& args, DeviceLimits const& device, bool* done, cudaStream_t stream);

}  // namespace graphopt::attention
