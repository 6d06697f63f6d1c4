// MANTCachedAttention as an OpClass. Inputs: q, k, v, cos, sin, k_center, the past state, start. Outputs: y, the present
// state. The state is k, k_meta, v, v_meta, v_window, v_scale, sink.
#include "attention/mant/params.h"
#include "attention/operands.h"
#include "attention/ops.h"

namespace graphopt::attention {
namespace {

enum MantInput : int32_t { kCenter = kSin + 1, kState };
constexpr int32_t kMantStart = kState + kStateTensors;
constexpr char const* kSelector = "selector";

Signature signature(OpClass const&, Attributes const&) {
  Signature result{{{"q", Element::kActivation},
                    {"k", Element::kActivation},
                    {"v", Element::kActivation},
                    {"cos", Element::kActivation},
                    {"sin", Element::kActivation},
                    {"k_center", Element::kActivation},
                    {"past_k", Element::kInt8},
                    {"past_k_meta", Element::kInt8},
                    {"past_v", Element::kInt8},
                    {"past_v_meta", Element::kInt8},
                    {"past_v_window", Element::kInt8},
                    {"past_v_scale", Element::kFloat16},
                    {"past_sink", Element::kActivation},
                    {"start", Element::kInt32}},
                   {{"y", Element::kActivation, kQ, DimRef::last_of(kQ)}}};
  constexpr char const* kNames[kStateTensors] = {"present_k",        "present_k_meta",  "present_v",   "present_v_meta",
                                                 "present_v_window", "present_v_scale", "present_sink"};
  for (int32_t i = 0; i < kStateTensors; ++i) {
    Element const element = result.inputs[kState + i].element;
    result.outputs.push_back({kNames[i], element, kState + i, DimRef::last_of(kState + i)});
  }
  return result;
}

/// Sizes from the operands' shapes, without pointers.
Status sizes(TensorView const* inputs, MantParams* p) {
  TensorView const &q = inputs[kQ], &cos = inputs[kCos], &codes = inputs[kState], &window = inputs[kState + 4];
  if (q.rank != 4 || cos.rank != 3 || codes.rank != 4 || window.rank != 4) return Status::kBadShape;
  p->cache.dtype = q.type;
  p->cache.batch = q.dims[0];
  p->cache.seq = q.dims[1];
  p->cache.heads = q.dims[2];
  p->cache.head_size = q.dims[3];
  p->cache.kv_heads = codes.dims[1];
  p->cache.capacity = codes.dims[2];
  p->cache.tables = cos.dims[0];
  p->group = window.dims[2];
  return Status::kOk;
}

size_t workspace_bytes(OpClass const&, TensorView const* inputs) {
  MantParams p{};
  return sizes(inputs, &p) == Status::kOk ? cached_workspace_bytes(p.cache, CacheKind::kCodes) : 0;
}

/// Whether a tensor holds `bytes` for each sequence and head. How they are cut into rows does not matter: for TensorRT 8,
/// which takes INT8 by fours, rows of two bytes are joined.
bool holds(TensorView const& tensor, CachedParams const& c, int64_t bytes) {
  return tensor.rank == 4 && tensor.dims[0] == c.batch && tensor.dims[1] == c.kv_heads &&
         tensor.dims[2] * tensor.dims[3] == bytes;
}

/// kBadShape unless every operand has the shape that the sizes say.
Status check_shapes(TensorView const* inputs, MantParams const& p) {
  CachedParams const& c = p.cache;
  if (p.group < 1 || c.head_size % p.group != 0) return Status::kBadShape;
  int64_t const d = c.head_size, words = 2 * d / p.group;
  TensorView const* const state = inputs + kState;
  TensorView const &center = inputs[kCenter], &scale = state[5], &start = inputs[kMantStart];
  bool const fits = has_shape(inputs[kK], c.batch, c.seq, c.kv_heads, d) &&
                    has_shape(inputs[kV], c.batch, c.seq, c.kv_heads, d) &&
                    has_shape(state[0], c.batch, c.kv_heads, c.capacity, d / 2) &&
                    holds(state[1], c, c.capacity * words) &&
                    has_shape(state[2], c.batch, c.kv_heads, c.capacity, d / 2) &&
                    holds(state[3], c, c.capacity * words) &&
                    has_shape(state[4], c.batch, c.kv_heads, p.group, d) &&
                    has_shape(state[6], c.batch, c.kv_heads, 2, d);
  bool const others = center.rank == 2 && center.dims[0] == c.kv_heads && center.dims[1] == d && scale.rank == 3 &&
                      scale.dims[0] == c.batch && scale.dims[1] == c.kv_heads && scale.dims[2] == p.group &&
                      start.rank == 1 && start.dims[0] == c.batch;
  if (!fits || !others) return Status::kBadShape;
  return check_tables(inputs, c);
}

template <class Pointer>
MantState<Pointer> state_of(TensorView const* tensors) {
  return {tensors[0].data, tensors[1].data, tensors[2].data, tensors[3].data,
          tensors[4].data, tensors[5].data, tensors[6].data};
}

Status launch(OpClass const& op, Attributes const& attributes, TensorView const* inputs, TensorView const* outputs,
              void* workspace, cudaStream_t stream) {
  MantParams p{};
  GRAPHOPT_TRY(sizes(inputs, &p));
  CachedParams& c = p.cache;
  c.rotary = op.flag(attributes, kRotary) != 0;
  c.scale = op.number(attributes, kScale);
  c.q = inputs[kQ].data;
  c.k = inputs[kK].data;
  c.v = inputs[kV].data;
  c.cos = inputs[kCos].data;
  c.sin = inputs[kSin].data;
  c.start = static_cast<int32_t const*>(inputs[kMantStart].data);
  c.y = outputs[kY].data;
  c.workspace = workspace;
  p.selector = static_cast<MantSelector>(op.flag(attributes, kSelector));
  p.k_center = inputs[kCenter].data;
  p.past = state_of<void const*>(inputs + kState);
  p.present = state_of<void*>(outputs + 1);
  GRAPHOPT_TRY(check_shapes(inputs, p));
  return launch_mant(p, stream);
}

}  // namespace

OpClass mant_cached_op() {
  OpClass op = cache_op("MANTCachedAttention", signature, workspace_bytes, launch);
  op.fields.push_back({kSelector, FieldType::kInt32});
  return op;
}

}  // namespace graphopt::attention
