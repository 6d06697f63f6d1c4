// Attention over a vector-quantized cache: rotary, append of the nearest centroids' codes and attention in one op.
//
//   k', v' = rotary(k), v cut into vectors of `vector` neighbouring channels
//   code[b, h, start[b] + i, g] = argmin over e of |k'[b, i, h, g] - codebook_k[h, g, e]|^2, ties to the lowest e; so for v
//   y[b, i] = softmax over j <= start[b] + i of scale * q'[b, i] . codebook_k[code[j]], times codebook_v[code[j]]
//
// (VQ-LLM, HPCA'25: CQ-4 is vector = 2, CQ-2 is vector = 4, both of 8 bits.) Squared distances are float32 sums of squares
// in channel order; sums of the softmax are float32.
#pragma once

#include "attention/cached/params.h"

namespace graphopt::attention {

constexpr int64_t kCentroids = 256;

/// `cache` is as in CachedParams but for the element of past and present: codes, [B, Hkv, C, D / vector] bytes.
/// The workspace is that of CachedParams (cached_workspace_bytes).
struct VqParams {
  CachedParams cache;
  int64_t vector;          // 2, 4, 8 or 16: channels of a code; divides D
  void const* codebook_k;  // [Hkv, D / vector, 256, vector] T
  void const* codebook_v;  // the same
};

Status launch_vq(VqParams const& params, cudaStream_t stream);

}  // namespace graphopt::attention
