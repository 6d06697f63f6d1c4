// MixQLinear and MixQLinearAdd as OpClasses. Inputs: xq, sx, xo, wq, sw, wo, bias and, of the latter, residual. Output: y.
#include "mixq/linear/params.h"
#include "mixq/ops.h"

namespace graphopt::mixq {
namespace {

enum Input : int32_t { kXq, kSx, kXo, kWq, kSw, kWo, kBias, kResidual };

/// Variants.
enum Sum : int32_t { kPlain, kAddsResidual };

Signature signature(OpClass const& op, Attributes const&) {
  Signature s{{{"xq", Element::kInt8},
               {"sx", Element::kFloat32},
               {"xo", Element::kActivation},
               {"wq", Element::kInt8},
               {"sw", Element::kFloat32},
               {"wo", Element::kActivation},
               {"bias", Element::kActivation}},
              {{"y", Element::kActivation, kXq, DimRef::first_of(kWq)}}};
  if (op.variant == kAddsResidual) s.inputs.push_back({"residual", Element::kActivation});
  return s;
}

size_t no_workspace(OpClass const&, TensorView const*) { return 0; }

Status launch(OpClass const& op, Attributes const&, TensorView const* inputs, TensorView const* outputs, void*,
              cudaStream_t stream) {
  LinearParams p{};
  p.dtype = inputs[kXo].type;
  p.m = inputs[kXq].rows();
  p.n = inputs[kWq].rows();
  p.k = inputs[kXq].cols();
  p.capacity = inputs[kXo].cols();
  if (inputs[kWq].cols() != p.k || inputs[kWo].cols() != p.capacity || inputs[kWo].rows() != p.n) {
    return Status::kBadShape;
  }
  p.xq = static_cast<int8_t const*>(inputs[kXq].data);
  p.sx = static_cast<float const*>(inputs[kSx].data);
  p.xo = inputs[kXo].data;
  p.wq = static_cast<int8_t const*>(inputs[kWq].data);
  p.sw = static_cast<float const*>(inputs[kSw].data);
  p.wo = inputs[kWo].data;
  p.bias = inputs[kBias].data;
  if (op.variant == kAddsResidual) {
    TensorView const& residual = inputs[kResidual];
    if (residual.rows() != p.m || residual.cols() != p.n) return Status::kBadShape;
    p.residual = residual.data;
  }
  p.y = outputs[0].data;
  return launch_linear(p, stream);
}

OpClass make_op(char const* name, Sum sum) {
  OpClass op;
  op.name = name;
  op.signature = signature;
  op.workspace_bytes = no_workspace;
  op.launch = launch;
  op.variant = sum;
  return op;
}

}  // namespace

std::vector<OpClass> linear_ops() { return {make_op("MixQLinear", kPlain), make_op("MixQLinearAdd", kAddsResidual)}; }

}  // namespace graphopt::mixq
