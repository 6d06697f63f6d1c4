// The ten quantizing ops as OpClass values. Inputs: x [, other] [, gamma] [, beta], idx. Outputs: xq, sx, xo [, sum] [,
// y].
#include "mixq/ops.h"
#include "mixq/quantize/params.h"

namespace graphopt::mixq {
namespace {

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
  int32_t const idx = static_cast<int32_t>(s.inputs.size());
  s.inputs.push_back({"idx", Element::kInt32});

  DimRef const all = DimRef::last_of(0), one = DimRef::constant(1);
  s.outputs.push_back({"xq", Element::kInt8, 0, all});
  s.outputs.push_back({"sx", Element::kFloat32, 0, one});
  s.outputs.push_back({"xo", Element::kActivation, 0, DimRef::last_of(idx)});
  // Always outputs of the node; where nobody reads them, they are not written and should take no memory.
  if (is_add(producer)) {
    s.outputs.push_back({"sum", Element::kActivation, 0, op.flag(attributes, kEmitSum) ? all : one});
  }
  if (producer != Producer::kPlain) {
    s.outputs.push_back({"y", Element::kActivation, 0, op.flag(attributes, kEmitY) ? all : one});
  }
  return s;
}

size_t no_workspace(OpClass const&, TensorView const*) { return 0; }

Status launch(OpClass const& op, Attributes const& attributes, TensorView const* inputs, TensorView const* outputs,
              void*, cudaStream_t stream) {
  Producer const producer = producer_of(op);
  TensorView const& x = inputs[0];
  TensorView const* next = inputs + 1;
  QuantizeParams p{};
  p.producer = producer;
  p.dtype = x.type;
  p.rows = x.rows();
  p.cols = x.cols();
  p.x = x.data;
  if (is_add(producer) || is_gated(producer)) p.other = (next++)->data;
  if (is_norm(producer)) p.gamma = (next++)->data;
  if (is_layer_norm(producer)) p.beta = (next++)->data;
  p.capacity = next->cols();
  p.idx = static_cast<int32_t const*>(next->data);
  p.epsilon = op.number(attributes, kEpsilon);

  TensorView const* output = outputs;
  p.xq = static_cast<int8_t*>((output++)->data);
  p.sx = static_cast<float*>((output++)->data);
  p.xo = (output++)->data;
  if (is_add(producer)) {
    p.sum = op.flag(attributes, kEmitSum) ? output->data : nullptr;
    ++output;
  }
  p.y = op.flag(attributes, kEmitY) ? output->data : nullptr;
  return launch_quantize(p, stream);
}

OpClass quantize_op(char const* name, Producer producer) {
  OpClass op;
  op.name = name;
  if (is_norm(producer)) op.fields.push_back({kEpsilon, FieldType::kFloat32});
  if (is_add(producer)) op.fields.push_back({kEmitSum, FieldType::kInt32});
  if (producer != Producer::kPlain) op.fields.push_back({kEmitY, FieldType::kInt32});
  op.signature = signature;
  op.workspace_bytes = no_workspace;
  op.launch = launch;
  op.variant = static_cast<int32_t>(producer);
  return op;
}

}  // namespace

std::vector<OpClass> quantize_ops() {
  return {
      quantize_op("MixQQuantize", Producer::kPlain),
      quantize_op("MixQRMSNorm", Producer::kRmsNorm),
      quantize_op("MixQAddRMSNorm", Producer::kAddRmsNorm),
      quantize_op("MixQLayerNorm", Producer::kLayerNorm),
      quantize_op("MixQAddLayerNorm", Producer::kAddLayerNorm),
      quantize_op("MixQGatedSilu", Producer::kGatedSilu),
      quantize_op("MixQGatedGelu", Producer::kGatedGelu),
      quantize_op("MixQGatedGeluTanh", Producer::kGatedGeluTanh),
      quantize_op("MixQGelu", Producer::kGelu),
      quantize_op("MixQGeluTanh", Producer::kGeluTanh),
  };
}

}  // namespace graphopt::mixq
