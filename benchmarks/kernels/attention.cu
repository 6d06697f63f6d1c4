// C functions for benchmarks/kernels/attention.py.
#include "attention/cached/params.h"
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

int64_t attention_cached_workspace(int64_t const* sizes) {
  void* none[12] = {};
  return static_cast<int64_t>(cached_workspace_bytes(cached_params(sizes, 1.0f, none)));
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
}
