// The quantizing ops as OpClass values. Inputs: x [, other] [, gamma] [, beta], idx. Outputs: xq, sx, xo [, sum] [,
// y]. Each is there once more with online prediction, with a last output: set; and with packed 4-bit codes, xq4.
#include "mixq/online/online.h"
#include "mixq/ops.h"
#include "mixq/quantize/params.h"

namespace graphopt::mixq {
namespace {

constexpr char const* kEpsilon = "epsilon";
constexpr char const* kEmitSum = "emit_sum";
constexpr char const* kEmitY = "emit_y";
constexpr char const* kSigma = "sigma";
constexpr char const* kSigmaRms = "sigma_rms";
constexpr char const* kCapacity = "capacity";

// A variant is a producer, and whether codes have 4 bits.
constexpr int32_t kFourBits = 0x100;

Producer producer_of(OpClass const& op) { return static_cast<Producer>(op.variant & ~kFourBits); }
bool has_four_bits(OpClass const& op) { return (op.variant & kFourBits) != 0; }

bool is_online(OpClass const& op) { return op.launch_stateful != nullptr; }

Signature signature(OpClass const& op, Attributes const& attributes) {
  Producer const producer = producer_of(op);
  Signature s;
  s.inputs.push_back({is_glu(producer) ? "gate_up" : is_gated(producer) ? "gate" : "x", Element::kActivation});
  if (is_gated(producer)) s.inputs.push_back({"up", Element::kActivation});
  if (is_add(producer)) s.inputs.push_back({"residual", Element::kActivation});
  if (is_norm(producer)) s.inputs.push_back({"gamma", Element::kActivation});
  if (is_layer_norm(producer)) s.inputs.push_back({"beta", Element::kActivation});
  int32_t const idx = static_cast<int32_t>(s.inputs.size());
  s.inputs.push_back({"idx", Element::kInt32});

  auto const of_x = [&](DimRef dim) { return is_glu(producer) ? dim.half() : dim; };
  DimRef const all = of_x(DimRef::last_of(0)), one = DimRef::constant(1);
  if (has_four_bits(op)) {
    s.outputs.push_back({"xq4", Element::kInt8, 0, of_x(DimRef::packed_last_of(0))});
  } else {
    s.outputs.push_back({"xq", Element::kInt8, 0, all});
  }
  s.outputs.push_back({"sx", Element::kFloat32, 0, one});
  DimRef const slots = is_online(op) ? DimRef::constant(op.flag(attributes, kCapacity)) : DimRef::last_of(idx);
  s.outputs.push_back({"xo", Element::kActivation, 0, slots});
  // Always outputs of the node; where nobody reads them, they are not written and should take no memory.
  if (is_add(producer)) {
    s.outputs.push_back({"sum", Element::kActivation, 0, op.flag(attributes, kEmitSum) ? all : one});
  }
  if (producer != Producer::kPlain) {
    s.outputs.push_back({"y", Element::kActivation, 0, op.flag(attributes, kEmitY) ? all : one});
  }
  if (is_online(op)) s.outputs.push_back({"set", Element::kInt32, idx, slots});
  return s;
}

size_t no_workspace(OpClass const&, TensorView const*) { return 0; }

/// K, of which a GLU has two side by side; 0 if that cannot be.
int64_t cols_of(OpClass const& op, TensorView const& x) {
  if (!is_glu(producer_of(op))) return x.cols();
  return x.cols() % 2 == 0 ? x.cols() / 2 : 0;
}

QuantizeParams params_of(OpClass const& op, Attributes const& attributes, TensorView const* inputs,
                         TensorView const* outputs) {
  Producer const producer = producer_of(op);
  TensorView const& x = inputs[0];
  TensorView const* next = inputs + 1;
  QuantizeParams p{};
  p.producer = producer;
  p.dtype = x.type;
  p.rows = x.rows();
  p.cols = cols_of(op, x);
  p.x = x.data;
  if (is_add(producer) || is_gated(producer)) p.other = (next++)->data;
  if (is_norm(producer)) p.gamma = (next++)->data;
  if (is_layer_norm(producer)) p.beta = (next++)->data;
  p.capacity = next->cols();
  p.idx = static_cast<int32_t const*>(next->data);
  p.epsilon = op.number(attributes, kEpsilon);
  p.bits = has_four_bits(op) ? 4 : 8;

  TensorView const* output = outputs;
  p.xq = static_cast<int8_t*>((output++)->data);
  p.sx = static_cast<float*>((output++)->data);
  p.xo = (output++)->data;
  if (is_add(producer)) {
    p.sum = op.flag(attributes, kEmitSum) ? output->data : nullptr;
    ++output;
  }
  p.y = op.flag(attributes, kEmitY) ? output->data : nullptr;
  return p;
}

Status launch(OpClass const& op, Attributes const& attributes, TensorView const* inputs, TensorView const* outputs,
              void*, cudaStream_t stream) {
  return launch_quantize(params_of(op, attributes, inputs, outputs), stream);
}

size_t state_bytes(OpClass const& op, Attributes const& attributes, TensorView const* inputs) {
  return PredictionState(nullptr, cols_of(op, inputs[0]), op.flag(attributes, kCapacity)).bytes;
}

Status launch_online(OpClass const& op, Attributes const& attributes, TensorView const* inputs,
                     TensorView const* outputs, void*, OpState state, cudaStream_t stream) {
  QuantizeOnlineParams p{};
  p.quantize = params_of(op, attributes, inputs, outputs);
  p.capacity = op.flag(attributes, kCapacity);
  p.sigma = op.number(attributes, kSigma);
  p.sigma_rms = op.number(attributes, kSigmaRms);
  p.set = static_cast<int32_t*>(outputs[op.signature(op, attributes).outputs.size() - 1].data);
  return launch_quantize_online(p, state, stream);
}

OpClass quantize_op(char const* name, Producer producer, bool online) {
  OpClass op;
  op.name = name;
  if (is_norm(producer)) op.fields.push_back({kEpsilon, FieldType::kFloat32});
  if (is_add(producer)) op.fields.push_back({kEmitSum, FieldType::kInt32});
  if (producer != Producer::kPlain) op.fields.push_back({kEmitY, FieldType::kInt32});
  op.signature = signature;
  op.workspace_bytes = no_workspace;
  op.variant = static_cast<int32_t>(producer);
  if (!online) {
    op.launch = launch;
    return op;
  }
  op.fields.push_back({kSigma, FieldType::kFloat32});
  op.fields.push_back({kSigmaRms, FieldType::kFloat32});
  op.fields.push_back({kCapacity, FieldType::kInt32});
  op.state_bytes = state_bytes;
  op.launch_stateful = launch_online;
  return op;
}

OpClass four_bit_op(char const* name, Producer producer) {
  OpClass op = quantize_op(name, producer, false);
  op.variant |= kFourBits;
  return op;
}

}  // namespace

std::vector<OpClass> quantize_ops() {
  return {
      quantize_op("MixQQuantize", Producer::kPlain, false),
      quantize_op("MixQQuantizeOnline", Producer::kPlain, true),
      quantize_op("MixQRMSNorm", Producer::kRmsNorm, false),
      quantize_op("MixQRMSNormOnline", Producer::kRmsNorm, true),
      quantize_op("MixQAddRMSNorm", Producer::kAddRmsNorm, false),
      quantize_op("MixQAddRMSNormOnline", Producer::kAddRmsNorm, true),
      quantize_op("MixQLayerNorm", Producer::kLayerNorm, false),
      quantize_op("MixQLayerNormOnline", Producer::kLayerNorm, true),
      quantize_op("MixQAddLayerNorm", Producer::kAddLayerNorm, false),
      quantize_op("MixQAddLayerNormOnline", Producer::kAddLayerNorm, true),
      quantize_op("MixQGatedSilu", Producer::kGatedSilu, false),
      quantize_op("MixQGatedSiluOnline", Producer::kGatedSilu, true),
      quantize_op("MixQGatedGelu", Producer::kGatedGelu, false),
      quantize_op("MixQGatedGeluOnline", Producer::kGatedGelu, true),
      quantize_op("MixQGatedGeluTanh", Producer::kGatedGeluTanh, false),
      quantize_op("MixQGatedGeluTanhOnline", Producer::kGatedGeluTanh, true),
      quantize_op("MixQGelu", Producer::kGelu, false),
      quantize_op("MixQGeluOnline", Producer::kGelu, true),
      quantize_op("MixQGeluTanh", Producer::kGeluTanh, false),
      quantize_op("MixQGeluTanhOnline", Producer::kGeluTanh, true),
      quantize_op("MixQSwiGLU", Producer::kSwiGlu, false),
      quantize_op("MixQSwiGLUOnline", Producer::kSwiGlu, true),
      quantize_op("MixQGeGLU", Producer::kGeGlu, false),
      quantize_op("MixQGeGLUOnline", Producer::kGeGlu, true),
      quantize_op("MixQGeGLUTanh", Producer::kGeGluTanh, false),
      quantize_op("MixQGeGLUTanhOnline", Producer::kGeGluTanh, true),
      four_bit_op("MixQQuantize4", Producer::kPlain),
      four_bit_op("MixQRMSNorm4", Producer::kRmsNorm),
      four_bit_op("MixQAddRMSNorm4", Producer::kAddRmsNorm),
      four_bit_op("MixQLayerNorm4", Producer::kLayerNorm),
      four_bit_op("MixQAddLayerNorm4", Producer::kAddLayerNorm),
      four_bit_op("MixQGatedSilu4", Producer::kGatedSilu),
      four_bit_op("MixQGatedGelu4", Producer::kGatedGelu),
      four_bit_op("MixQGatedGeluTanh4", Producer::kGatedGeluTanh),
      four_bit_op("MixQGelu4", Producer::kGelu),
      four_bit_op("MixQGeluTanh4", Producer::kGeluTanh),
      four_bit_op("MixQSwiGLU4", Producer::kSwiGlu),
      four_bit_op("MixQGeGLU4", Producer::kGeGlu),
      four_bit_op("MixQGeGLUTanh4", Producer::kGeGluTanh),
  };
}

}  // namespace graphopt::mixq
