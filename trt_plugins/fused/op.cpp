// The producers as OpClass values. Inputs: x [, other] [, gamma] [, beta]. Outputs: y [, sum].
#include "fused/ops.h"
#include "fused/params.h"

namespace graphopt::fused {
namespace {

constexpr char const* kEpsilon = "epsilon";
constexpr char const* kEmitSum = "emit_sum";

Producer producer_of(OpClass const& op) { return static_cast<Producer>(op.variant); }

Signature signature(OpClass const& op, Attributes const& attributes) {
  Producer const producer = producer_of(op);
  Signature s;
  s.inputs.push_back({is_gated(producer) ? "gate" : "x", Element::kActivation});
  if (is_gated(producer)) s.inputs.push_back({"up", Element::kActivation});
  if (is_add(producer)) s.inputs.push_back({"residual", Element::kActivation});
  if (is_norm(producer)) s.inputs.push_back({"gamma", Element::kActivation});
  if (is_layer_norm(producer)) s.inputs.push_back({"beta", Element::kActivation});
  s.outputs.push_back({"y", Element::kActivation, 0, DimRef::last_of(0)});
  if (is_add(producer)) {
    // Always an output of the node; where nobody reads it, it is not written and should take no memory.
    DimRef const last = op.flag(attributes, kEmitSum) ? DimRef::last_of(0) : DimRef::constant(1);
    s.outputs.push_back({"sum", Element::kActivation, 0, last});
  }
  return s;
}

size_t no_workspace(OpClass const&, TensorView const*) { return 0; }

Status launch(OpClass const& op, Attributes const& attributes, TensorView const* inputs, TensorView const* outputs,
              void*, cudaStream_t stream) {
  Producer const producer = producer_of(op);
  TensorView const* next = inputs + 1;
  FusedParams p{};
  p.producer = producer;
  p.dtype = inputs[0].type;
  p.rows = inputs[0].rows();
  p.cols = inputs[0].cols();
  p.epsilon = op.number(attributes, kEpsilon);
  p.x = inputs[0].data;
  if (is_add(producer) || is_gated(producer)) p.other = (next++)->data;
  if (is_norm(producer)) p.gamma = (next++)->data;
  if (is_layer_norm(producer)) p.beta = (next++)->data;
  p.y = outputs[0].data;
  if (op.flag(attributes, kEmitSum)) p.sum = outputs[1].data;
  return launch_fused(p, stream);
}

OpClass fused_op(char const* name, Producer producer) {
  OpClass op;
  op.name = name;
  if (is_norm(producer)) op.fields.push_back({kEpsilon, FieldType::kFloat32});
  if (is_add(producer)) op.fields.push_back({kEmitSum, FieldType::kInt32});
  op.signature = signature;
  op.workspace_bytes = no_workspace;
  op.launch = launch;
  op.variant = static_cast<int32_t>(producer);
  return op;
}

}  // namespace

std::vector<OpClass> fused_ops() {
  return {
      fused_op("FusedRMSNorm", Producer::kRmsNorm),
      fused_op("FusedAddRMSNorm", Producer::kAddRmsNorm),
      fused_op("FusedLayerNorm", Producer::kLayerNorm),
      fused_op("FusedAddLayerNorm", Producer::kAddLayerNorm),
      fused_op("FusedGatedSilu", Producer::kGatedSilu),
      fused_op("FusedGatedGelu", Producer::kGatedGelu),
      fused_op("FusedGatedGeluTanh", Producer::kGatedGeluTanh),
      fused_op("FusedGelu", Producer::kGelu),
      fused_op("FusedGeluTanh", Producer::kGeluTanh),
  };
}

}  // namespace graphopt::fused
