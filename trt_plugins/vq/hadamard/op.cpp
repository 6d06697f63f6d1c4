// The Hadamard ops as OpClass values. Inputs: x [, other] [, gamma] [, beta], signs. Outputs: z [, sum] [, y].
#include "vq/hadamard/params.h"
#include "vq/ops.h"

namespace graphopt::vq {
namespace {

constexpr char const* kBlock = "block";
constexpr char const* kEpsilon = "epsilon";
constexpr char const* kEmitSum = "emit_sum";
constexpr char const* kEmitY = "emit_y";

Producer producer_of(OpClass const& op) { return static_cast<Producer>(op.variant); }

Signature signature(OpClass const& op, Attributes const& attributes) {
  Producer const producer = producer_of(op);
  Signature s;
  s.inputs.push_back({is_gated(producer) ? "gate" : "x", Element::kActivation});
  if (is_gated(producer)) s.inputs.push_back({"up", Element::kActivation});
  if (is_add(producer)) s.inputs.push_back({"residual", Element::kActivation});
  if (is_norm(producer)) s.inputs.push_back({"gamma", Element::kActivation});
  if (is_layer_norm(producer)) s.inputs.push_back({"beta", Element::kActivation});
  int32_t const signs = static_cast<int32_t>(s.inputs.size());
  s.inputs.push_back({"signs", Element::kInt8});

  s.outputs.push_back({"z", Element::kActivation, 0, DimRef::last_of(signs)});
  // Always outputs of the node; where nobody reads them, they are not written and should take no memory.
  auto const emitted = [&](bool emit) { return emit ? DimRef::last_of(0) : DimRef::constant(1); };
  if (is_add(producer)) s.outputs.push_back({"sum", Element::kActivation, 0, emitted(op.flag(attributes, kEmitSum))});
  if (producer != Producer::kPlain) {
    s.outputs.push_back({"y", Element::kActivation, 0, emitted(op.flag(attributes, kEmitY))});
  }
  return s;
}

size_t workspace_bytes(OpClass const&, TensorView const*) { return 0; }

Status launch(OpClass const& op, Attributes const& attributes, TensorView const* inputs, TensorView const* outputs,
              void*, cudaStream_t stream) {
  Producer const producer = producer_of(op);
  TensorView const* next = inputs + 1;
  HadamardParams p{};
  p.producer = producer;
  p.dtype = inputs[0].type;
  p.rows = inputs[0].rows();
  p.k = inputs[0].cols();
  p.x = inputs[0].data;
  if (is_add(producer) || is_gated(producer)) p.other = (next++)->data;
  if (is_norm(producer)) p.gamma = (next++)->data;
  if (is_layer_norm(producer)) p.beta = (next++)->data;
  p.channels = next->cols();
  p.signs = static_cast<int8_t const*>(next->data);
  p.block = op.flag(attributes, kBlock);
  p.epsilon = op.number(attributes, kEpsilon);

  TensorView const* output = outputs;
  p.z = (output++)->data;
  if (is_add(producer)) {
    p.sum = op.flag(attributes, kEmitSum) ? output->data : nullptr;
    ++output;
  }
  p.y = op.flag(attributes, kEmitY) ? output->data : nullptr;
  return launch_hadamard(p, stream);
}

OpClass hadamard_op(char const* name, Producer producer) {
  OpClass op;
  op.name = name;
  op.fields = {{kBlock, FieldType::kInt32}};
  if (is_norm(producer)) op.fields.push_back({kEpsilon, FieldType::kFloat32});
  if (is_add(producer)) op.fields.push_back({kEmitSum, FieldType::kInt32});
  if (producer != Producer::kPlain) op.fields.push_back({kEmitY, FieldType::kInt32});
  op.signature = signature;
  op.workspace_bytes = workspace_bytes;
  op.launch = launch;
  op.variant = static_cast<int32_t>(producer);
  return op;
}

}  // namespace

std::vector<OpClass> hadamard_ops() {
  return {
      hadamard_op("VQHadamard", Producer::kPlain),
      hadamard_op("VQRMSNormHadamard", Producer::kRmsNorm),
      hadamard_op("VQAddRMSNormHadamard", Producer::kAddRmsNorm),
      hadamard_op("VQLayerNormHadamard", Producer::kLayerNorm),
      hadamard_op("VQAddLayerNormHadamard", Producer::kAddLayerNorm),
      hadamard_op("VQGatedSiluHadamard", Producer::kGatedSilu),
      hadamard_op("VQGatedGeluHadamard", Producer::kGatedGelu),
      hadamard_op("VQGatedGeluTanhHadamard", Producer::kGatedGeluTanh),
      hadamard_op("VQGeluHadamard", Producer::kGelu),
      hadamard_op("VQGeluTanhHadamard", Producer::kGeluTanh),
  };
}

}  // namespace graphopt::vq
