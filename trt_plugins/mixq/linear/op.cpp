// MixQLinear as an OpClass. Inputs: xq, sx, xo, wq, sw, wo, bias. Output: y.
#include "mixq/linear/params.h"
#include "mixq/ops.h"

namespace graphopt::mixq {
namespace {

enum Input : int32_t { kXq, kSx, kXo, kWq, kSw, kWo, kBias };

Signature signature(OpClass const&, Attributes const&) {
  return {{{"xq", Element::kInt8},
           {"sx", Element::kFloat32},
           {"xo", Element::kActivation},
           {"wq", Element::kInt8},
           {"sw", Element::kFloat32},
           {"wo", Element::kActivation},
           {"bias", Element::kActivation}},
          {{"y", Element::kActivation, kXq, DimRef::first_of(kWq)}}};
}

size_t no_workspace(OpClass const&, TensorView const*) { return 0; }

Status launch(OpClass const&, Attributes const&, TensorView const* inputs, TensorView const* outputs, void*,
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
  p.y = outputs[0].data;
  return launch_linear(p, stream);
}

}  // namespace

OpClass linear_op() {
  OpClass op;
  op.name = "MixQLinear";
  op.signature = signature;
  op.workspace_bytes = no_workspace;
  op.launch = launch;
  return op;
}

}  // namespace graphopt::mixq
