// MANTLinear, MANTLinearW4A8 and MANTLinearInt8 as OpClasses. Inputs: x, or xq and sx; codes, types, scale; table, but
// for
// MANTLinearW4A8; bias. Output: y.
#include "mant/linear/params.h"
#include "mant/ops.h"

namespace graphopt::mant {
namespace {

constexpr char const* kGroup = "group";
constexpr char const* kExact = "exact";  // not to round weights before the product

/// Place of each input; -1 where the op does not have it.
struct Inputs {
  int32_t x, sx, codes, types, scale, table, bias;
};

Inputs inputs_of(OpClass const& op) {
  switch (static_cast<Decode>(op.variant)) {
    case Decode::kSplit:
      return {0, 1, 2, 3, 4, -1, 5};
    case Decode::kBytes:
      return {0, 1, 2, 3, 4, 5, 6};
    case Decode::kFloat:
      break;
  }
  return {0, -1, 1, 2, 3, 4, 5};
}

Signature signature(OpClass const& op, Attributes const&) {
  Inputs const at = inputs_of(op);
  bool const integer = at.sx >= 0;
  std::vector<InputSpec> inputs{{integer ? "xq" : "x", integer ? Element::kInt8 : Element::kActivation}};
  if (integer) inputs.push_back({"sx", Element::kFloat32});
  inputs.insert(inputs.end(), {{"codes", Element::kInt8}, {"types", Element::kInt8}, {"scale", Element::kFloat16}});
  if (at.table >= 0) inputs.push_back({"table", integer ? Element::kInt8 : Element::kFloat16});
  inputs.push_back({"bias", Element::kActivation});
  return {inputs, {{"y", Element::kActivation, at.x, DimRef::first_of(at.codes)}}};
}

size_t workspace_bytes(OpClass const& op, TensorView const* inputs) {
  Inputs const at = inputs_of(op);
  return static_cast<size_t>(linear_workspace_bytes(static_cast<Decode>(op.variant), inputs[at.x].rows(),
                                                    inputs[at.codes].rows(), inputs[at.x].cols(),
                                                    inputs[at.types].rows()));
}

Status launch(OpClass const& op, Attributes const& attributes, TensorView const* inputs, TensorView const* outputs,
              void* workspace, cudaStream_t stream) {
  constexpr int64_t kTableCells = 16 * 16;
  Inputs const at = inputs_of(op);
  TensorView const &x = inputs[at.x], &codes = inputs[at.codes], &types = inputs[at.types], &scale = inputs[at.scale];
  LinearParams p{};
  p.decode = static_cast<Decode>(op.variant);
  p.dtype = inputs[at.bias].type;
  p.m = x.rows();
  p.n = codes.rows();
  p.k = x.cols();
  p.group = op.flag(attributes, kGroup);
  if (p.group < 1) return Status::kBadShape;
  int64_t const groups = (p.k + p.group - 1) / p.group;
  bool const fits = codes.cols() == packed_bytes(p.k) && types.rows() == groups && types.cols() == packed_bytes(p.n) &&
                    scale.rows() == groups && scale.cols() == p.n && inputs[at.bias].cols() == p.n;
  if (!fits) return Status::kBadShape;
  if (at.table >= 0) {
    TensorView const& table = inputs[at.table];
    if (table.rows() * table.cols() != kTableCells) return Status::kBadShape;
    p.table = table.data;
  }
  if (at.sx >= 0) {
    p.scales = inputs[at.sx].cols();
    p.sx = static_cast<float const*>(inputs[at.sx].data);
  }
  p.x = x.data;
  p.codes = static_cast<int8_t const*>(codes.data);
  p.types = static_cast<int8_t const*>(types.data);
  p.scale = scale.data;
  p.bias = inputs[at.bias].data;
  p.y = outputs[0].data;
  p.workspace = op.flag(attributes, kExact) != 0 ? nullptr : workspace;
  return launch_linear(p, stream);
}

OpClass make_op(char const* name, Decode decode) {
  OpClass op;
  op.name = name;
  op.fields = {{kGroup, FieldType::kInt32}, {kExact, FieldType::kInt32}};
  op.signature = signature;
  op.workspace_bytes = workspace_bytes;
  op.launch = launch;
  op.variant = static_cast<int32_t>(decode);
  return op;
}

}  // namespace

std::vector<OpClass> linear_ops() {
  return {make_op("MANTLinear", Decode::kFloat), make_op("MANTLinearW4A8", Decode::kSplit),
          make_op("MANTLinearInt8", Decode::kBytes)};
}

}  // namespace graphopt::mant
