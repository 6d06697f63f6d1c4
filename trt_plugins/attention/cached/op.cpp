// CachedAttention as an OpClass. Inputs: q, k, v, cos, sin, past_k, past_v, start. Outputs: y, present_k, present_v.
#include "attention/operands.h"
#include "attention/ops.h"

namespace graphopt::attention {
namespace {

Signature signature(OpClass const&, Attributes const&) { return cache_signature(Element::kActivation); }

Status launch(OpClass const& op, Attributes const& attributes, TensorView const* inputs, TensorView const* outputs,
              void* workspace, cudaStream_t stream) {
  CachedParams p{};
  GRAPHOPT_TRY(cache_sizes(inputs, &p));
  set_cache_operands(op, attributes, inputs, outputs, workspace, &p);
  GRAPHOPT_TRY(check_cache_shapes(inputs, p, p.head_size));
  return launch_cached(p, stream);
}

}  // namespace

OpClass cached_op() {
  return cache_op("CachedAttention", signature, cache_workspace<CacheKind::kPlain>, launch);
}

}  // namespace graphopt::attention
