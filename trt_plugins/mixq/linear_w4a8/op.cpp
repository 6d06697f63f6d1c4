// MixQLinearW4A8 and MixQLinearW4A4 as OpClasses, and their forms that add a residual. Inputs: xq or xq4, sx, xo, wq4, sg,
// sw, wo, bias, residual. Output: y.
#include <algorithm>

#include "mixq/linear_w4a4/params.h"
#include "mixq/linear_w4a8/params.h"
#include "mixq/ops.h"

namespace graphopt::mixq {
namespace {

enum Input : int32_t { kXq, kSx, kXo, kWq4, kSg, kSw, kWo, kBias, kResidual };

constexpr char const* kGroup = "group";

/// Variants, bit by bit: whether the activations' codes are packed, too; whether there is a residual.
enum Variant : int32_t { kFourBits = 1, kAddsResidual = 2 };

bool is_packed(OpClass const& op) { return (op.variant & kFourBits) != 0; }
bool adds_residual(OpClass const& op) { return (op.variant & kAddsResidual) != 0; }

Signature signature(OpClass const& op, Attributes const&) {
  Signature s{{{is_packed(op) ? "xq4" : "xq", Element::kInt8},
               {"sx", Element::kFloat32},
               {"xo", Element::kActivation},
               {"wq4", Element::kInt8},
               {"sg", Element::kInt8},
               {"sw", Element::kFloat32},
               {"wo", Element::kActivation},
               {"bias", Element::kActivation}},
              {{"y", Element::kActivation, kXq, DimRef::first_of(kWq4)}}};
  if (adds_residual(op)) s.inputs.push_back({"residual", Element::kActivation});
  return s;
}

/// Codes of a row of xq or xq4, padding included.
int64_t columns(OpClass const& op, TensorView const* inputs) {
  return inputs[kXq].cols() * (is_packed(op) ? 2 : 1);
}

size_t workspace_bytes(OpClass const& op, TensorView const* inputs) {
  if (!is_packed(op)) return 0;
  return static_cast<size_t>(w4a4_workspace_bytes(inputs[kXq].rows(), columns(op, inputs)));
}

Status launch(OpClass const& op, Attributes const& attributes, TensorView const* inputs, TensorView const* outputs,
              void* workspace, cudaStream_t stream) {
  LinearW4A8Params p{};
  p.dtype = inputs[kXo].type;
  p.m = inputs[kXq].rows();
  p.n = inputs[kWq4].rows();
  p.k = columns(op, inputs);
  p.capacity = inputs[kXo].cols();
  p.group = op.flag(attributes, kGroup);
  if (inputs[kSg].rows() == 1 && p.group > 0) p.group = std::max(p.group, p.k);
  bool const fits = inputs[kWq4].cols() == packed_bytes(p.k) && inputs[kSg].cols() == p.n && p.group > 0 &&
                    inputs[kSg].rows() >= (p.k + p.group - 1) / p.group && inputs[kWo].cols() == p.capacity &&
                    inputs[kWo].rows() == p.n;
  if (!fits) return Status::kBadShape;
  p.xq = static_cast<int8_t const*>(inputs[kXq].data);
  p.sx = static_cast<float const*>(inputs[kSx].data);
  p.xo = inputs[kXo].data;
  p.wq4 = static_cast<int8_t const*>(inputs[kWq4].data);
  p.sg = static_cast<int8_t const*>(inputs[kSg].data);
  p.sw = static_cast<float const*>(inputs[kSw].data);
  p.wo = inputs[kWo].data;
  p.bias = inputs[kBias].data;
  if (adds_residual(op)) {
    TensorView const& residual = inputs[kResidual];
    if (residual.rows() != p.m || residual.cols() != p.n) return Status::kBadShape;
    p.residual = residual.data;
  }
  p.y = outputs[0].data;
  return is_packed(op) ? launch_linear_w4a4({p, workspace}, stream) : launch_linear_w4a8(p, stream);
}

OpClass make_op(char const* name, int32_t variant) {
  OpClass op;
  op.name = name;
  op.fields = {{kGroup, FieldType::kInt32}};
  op.signature = signature;
  op.workspace_bytes = workspace_bytes;
  op.launch = launch;
  op.variant = variant;
  return op;
}

}  // namespace

std::vector<OpClass> four_bit_linear_ops() {
  return {make_op("MixQLinearW4A8", 0), make_op("MixQLinearW4A8Add", kAddsResidual),
          make_op("MixQLinearW4A4", kFourBits), make_op("MixQLinearW4A4Add", kFourBits | kAddsResidual)};
}

}  // namespace graphopt::mixq
