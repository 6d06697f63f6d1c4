// Launches of the kernels over a cache of T, for one element type. Each <kernel>_<type>.cu instantiates some, so that they
// compile in parallel.
#pragma once

#include <cmath>

#include "attention/args.cuh"
#include "attention/cached/params.h"
#include "attention/policy.h"
#include "attention/sm90_prefill.h"
#include "common/launch.h"

namespace graphopt::attention {

/// Where the parts of the workspace are, in bytes.
struct Workspace {
  size_t rotated;   // [B, S, Hq, D] T
  size_t counters;  // [kMaxDecodeTiles Hkv B] int32
  size_t partial;   // PartialMemory of two slots for every block
  size_t expanded;  // keys and values of T of some sequences and heads, where the cache holds codes
  size_t bytes;

  Workspace(CachedParams const& p, CacheKind kind);
};

Status check_sizes(CachedParams const& p);

/// Whether every pointer is there and a multiple of its element's size, `cache_element` for past and present.
Status check_pointers(CachedParams const& p, size_t cache_element);

/// Whether q, k, v, cos and sin can be read 16 bytes at a time, by halves where they are rotated.
bool vector_aligned(CachedParams const& p);

/// Copy past to present, rows of `row_bytes`, where they are not the same memory.
Status copy_cache(CachedParams const& p, int64_t row_bytes, cudaStream_t stream);

Status device_limits(DeviceLimits* limits);

/// Write k and v to present, and q to the workspace where `queries` is set and it is rotated; sets counters to 0.
template <class T>
Status launch_append(CachedParams const& p, Workspace const& workspace, bool queries, cudaStream_t stream);

template <class T>
Status launch_decode(AttentionArgs<T> const& args, DeviceLimits const& device, Start start, cudaStream_t stream);

template <class T>
Status launch_prefill(AttentionArgs<T> const& args, cudaStream_t stream);

template <class T>
Status launch_generic(AttentionArgs<T> const& args, cudaStream_t stream);

/// Have queries rotated, if they are to be, by the kernel that reads the cache.
template <class T>
void take_rotation(CachedParams const& p, AttentionArgs<T>* args) {
  if (!p.rotary) return;
  args->q = static_cast<T const*>(p.q);
  args->cos = static_cast<T const*>(p.cos);
  args->sin = static_cast<T const*>(p.sin);
  args->tables = static_cast<int32_t>(p.tables);
}

/// The same, where that is one that can; `*rotates` tells whether.
///
/// Args:
///   vectors: see launch_attention.
template <class T>
Status leave_rotation(CachedParams const& p, bool vectors, AttentionArgs<T>* args, bool* rotates) {
  GRAPHOPT_TRY(picks_prefill_sm90(*args, vectors, rotates));
  if (*rotates) take_rotation(p, args);
  return Status::kOk;
}

/// Attention over keys and values of T.
///
/// Args:
///   vectors: see pick_attention; the scale is positive besides.
///   start: kEarly where rows before `start[b]` were in the cache before the launch before this one.
template <class T>
Status launch_attention(AttentionArgs<T> const& args, bool vectors, Start start, cudaStream_t stream) {
  if constexpr (sizeof(T) == 2) {
    switch (pick_attention(int64_t{args.seq} * args.group, vectors && args.head_size <= kMaxVectorHeadSize)) {
      case AttentionKernel::kDecode: {
        DeviceLimits device{};
        GRAPHOPT_TRY(device_limits(&device));
        return launch_decode<T>(args, device, start, stream);
      }
      case AttentionKernel::kPrefill:
        return launch_prefill<T>(args, stream);
      case AttentionKernel::kGeneric:
        break;
    }
  }
  return launch_generic<T>(args, stream);
}

template <class T>
AttentionArgs<T> attention_args(CachedParams const& p, Workspace const& workspace) {
  char* const memory = static_cast<char*>(p.workspace);
  constexpr float kLog2E = 1.4426950408889634f;
  return {static_cast<int32_t>(p.batch),
          static_cast<int32_t>(p.seq),
          static_cast<int32_t>(p.heads),
          static_cast<int32_t>(p.kv_heads),
          static_cast<int32_t>(p.heads / p.kv_heads),
          static_cast<int32_t>(p.head_size),
          static_cast<int32_t>(p.capacity),
          p.scale * kLog2E,
          p.rotary ? reinterpret_cast<T const*>(memory + workspace.rotated) : static_cast<T const*>(p.q),
          p.present_k,
          p.present_v,
          p.start,
          static_cast<T*>(p.y),
          reinterpret_cast<float*>(memory + workspace.partial),
          reinterpret_cast<int32_t*>(memory + workspace.counters),
          nullptr,
          nullptr,
          0};
}

}  // namespace graphopt::attention
