// MixQLinearW4A8 as an OpClass. Inputs: xq, sx, xo, wq4, sg, sw, wo, bias. Output: y.
#include "mixq/linear_w4a8/params.h"
#include "mixq/ops.h"

namespace graphopt::mixq {
namespace {

enum Input : int32_t { kXq, kSx, kXo, kWq4, kSg, kSw, kWo, kBias };

constexpr char const* kGroup = "group";

Signature signature(OpClass const&, Attributes const&) {
  return {{{"xq", Element::kInt8},
           {"sx", Element::kFloat32},
           {"xo", Element::kActivation},
           {"wq4", Element::kInt8},
           {"sg", Element::kInt8},
           {"sw", Element::kFloat32},
           {"wo", Element::kActivation},
           {"bias", Element::kActivation}},
          {{"y", Element::kActivation, kXq, DimRef::first_of(kWq4)}}};
}

size_t no_workspace(OpClass const&, TensorView const*) { return 0; }

Status launch(OpClass const& op, Attributes const& attributes, TensorView const* inputs, TensorView const* outputs,
              void*, cudaStream_t stream) {
  LinearW4A8Params p{};
  p.dtype = inputs[kXo].type;
  p.m = inputs[kXq].rows();
  p.n = inputs[kWq4].rows();
  p.k = inputs[kXq].cols();
  p.capacity = inputs[kXo].cols();
  p.group = op.flag(attributes, kGroup);
  bool const fits = inputs[kWq4].cols() == packed_row_bytes(p.k) && inputs[kSg].cols() == p.n && p.group > 0 &&
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
  p.y = outputs[0].data;
  return launch_linear_w4a8(p, stream);
}

}  // namespace

OpClass linear_w4a8_op() {
  OpClass op;
  op.name = "MixQLinearW4A8";
  op.fields = {{kGroup, FieldType::kInt32}};
  op.signature = signature;
  op.workspace_bytes = no_workspace;
  op.launch = launch;
  return op;
}

}  // namespace graphopt::mixq
