// VQCachedAttention as an OpClass. Inputs: those of CachedAttention, past of int8, then codebook_k, codebook_v.
#include "attention/operands.h"
#include "attention/ops.h"
#include "attention/vq/params.h"

namespace graphopt::attention {
namespace {

enum Codebook : int32_t { kCodebookK = kStart + 1, kCodebookV };

Signature signature(OpClass const&, Attributes const&) {
  Signature signature = cache_signature(Element::kInt8);
  signature.inputs.push_back({"codebook_k", Element::kActivation});
  signature.inputs.push_back({"codebook_v", Element::kActivation});
  return signature;
}

Status launch(OpClass const& op, Attributes const& attributes, TensorView const* inputs, TensorView const* outputs,
              void* workspace, cudaStream_t stream) {
  VqParams p{};
  GRAPHOPT_TRY(cache_sizes(inputs, &p.cache));
  set_cache_operands(op, attributes, inputs, outputs, workspace, &p.cache);
  if (inputs[kCodebookK].rank != 4) return Status::kBadShape;
  int64_t const groups = inputs[kCodebookK].dims[1];
  p.vector = inputs[kCodebookK].cols();
  if (groups * p.vector != p.cache.head_size) return Status::kBadShape;
  for (Codebook i : {kCodebookK, kCodebookV}) {
    if (!has_shape(inputs[i], p.cache.kv_heads, groups, kCentroids, p.vector)) return Status::kBadShape;
  }
  GRAPHOPT_TRY(check_cache_shapes(inputs, p.cache, groups));
  p.codebook_k = inputs[kCodebookK].data;
  p.codebook_v = inputs[kCodebookV].data;
  return launch_vq(p, stream);
}

}  // namespace

OpClass vq_cached_op() {
  return cache_op("VQCachedAttention", signature, cache_workspace<CacheKind::kCodes>, launch);
}

}  // namespace graphopt::attention
