// C functions for benchmarks/kernels/attention.py.
#include "attention/cached/params.h"
#include "attention/mant/params.h"
#include "attention/vq/params.h"

using namespace graphopt;
using namespace graphopt::attention;

extern "C" {

char const* attention_status(int status) { return status_string(static_cast<Status>(status)); }

/// sizes: dtype, batch, seq, heads, kv_heads, head_size, capacity, tables, rotary. pointers: q, k, v, cos, sin, past_k, past_v,
/// start, y, present_k, present_v, workspace.
CachedParams cached_params(int64_t const* sizes, float scale, void* const* pointers) {
  return {static_cast<DType>(sizes[0]),
          sizes[1],
          sizes[2],
          sizes[3],
          sizes[4],
          sizes[5],
          sizes[6],
          sizes[7],
          sizes[8] != 0,
          scale,
          pointers[0],
          pointers[1],
          pointers[2],
          pointers[3],
          pointers[4],
          pointers[5],
          pointers[6],
          static_cast<int32_t const*>(pointers[7]),
          pointers[8],
          pointers[9],
          pointers[10],
          pointers[11]};
}

int64_t attention_workspace(int64_t const* sizes, int codes) {
  void* none[12] = {};
  return static_cast<int64_t>(
      cached_workspace_bytes(cached_params(sizes, 1.0f, none), codes != 0 ? CacheKind::kCodes : CacheKind::kPlain));
}

int attention_cached(int64_t const* sizes, float scale, void* const* pointers, void* stream) {
  return static_cast<int>(launch_cached(cached_params(sizes, scale, pointers), static_cast<cudaStream_t>(stream)));
}

/// books: codebook_k, codebook_v. past and present hold codes of `vector` channels.
int attention_vq(int64_t const* sizes, int64_t vector, float scale, void* const* pointers, void* const* books,
                 void* stream) {
  VqParams const params{cached_params(sizes, scale, pointers), vector, books[0], books[1]};
  return static_cast<int>(launch_vq(params, static_cast<cudaStream_t>(stream)));
}

/// Of pointers, past and present are not used. past, present: k, k_meta, v, v_meta, v_window, v_scale, sink.
int attention_mant(int64_t const* sizes, int64_t group, int selector, float scale, void* const* pointers,
                   void const* center, void* const* past, void* const* present, void* stream) {
  MantParams const params{cached_params(sizes, scale, pointers),
                          group,
                          static_cast<MantSelector>(selector),
                          center,
                          {past[0], past[1], past[2], past[3], past[4], past[5], past[6]},
                          {present[0], present[1], present[2], present[3], present[4], present[5], present[6]}};
  return static_cast<int>(launch_mant(params, static_cast<cudaStream_t>(stream)));
}
}
