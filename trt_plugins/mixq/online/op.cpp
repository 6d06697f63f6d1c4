// Linears with online prediction as OpClass values: the inputs of the linear without it, then idx and set. They keep the
// outlier columns for the set of the last call, and run the linear on those.
#include <cstring>
#include <string>

#include "mixq/online/online.h"
#include "mixq/ops.h"

namespace graphopt::mixq {
namespace {

/// A linear and the name that its form with prediction has.
struct Linear {
  OpClass op;
  std::string online_name;
};

std::vector<Linear> const& linears() {
  static std::vector<Linear> const list = [] {
    std::vector<Linear> all;
    for (OpClass const& op : linear_ops()) all.push_back({op, std::string(op.name) + "Online"});
    for (OpClass const& op : four_bit_linear_ops()) all.push_back({op, std::string(op.name) + "Online"});
    return all;
  }();
  return list;
}

Linear const& linear_of(OpClass const& op) {
  return linears()[op.variant];
}

Signature signature(OpClass const& op, Attributes const& attributes) {
  OpClass const& linear = linear_of(op).op;
  Signature s = linear.signature(linear, attributes);
  s.inputs.push_back({"idx", Element::kInt32});
  s.inputs.push_back({"set", Element::kInt32});
  return s;
}

size_t workspace_bytes(OpClass const& op, TensorView const* inputs) {
  OpClass const& linear = linear_of(op).op;
  return linear.workspace_bytes(linear, inputs);
}

/// The operands by name.
class Operands {
 public:
  Operands(OpClass const& op, Attributes const& attributes, TensorView const* inputs)
      : signature_(op.signature(op, attributes)), inputs_(inputs) {}

  size_t count() const { return signature_.inputs.size(); }

  /// Position of `name`; count() if the linear has no such input.
  size_t find(char const* name) const {
    size_t i = 0;
    while (i < count() && std::strcmp(signature_.inputs[i].name, name) != 0) ++i;
    return i;
  }

  /// The input `name`, or a null pointer without elements.
  TensorView get(char const* name) const {
    size_t const i = find(name);
    return i < count() ? inputs_[i] : TensorView{};
  }

 private:
  Signature signature_;
  TensorView const* inputs_;
};

ColumnsState columns_state(Operands const& operands, void* data) {
  TensorView const wo = operands.get("wo");
  return ColumnsState(data, wo.type, wo.rows(), operands.get("set").cols());
}

size_t state_bytes(OpClass const& op, Attributes const& attributes, TensorView const* inputs) {
  return columns_state(Operands(op, attributes, inputs), nullptr).bytes;
}

Status launch(OpClass const& op, Attributes const& attributes, TensorView const* inputs, TensorView const* outputs,
              void* workspace, OpState state, cudaStream_t stream) {
  constexpr size_t kMostInputs = 12;
  Operands const operands(op, attributes, inputs);
  TensorView const wo = operands.get("wo"), idx = operands.get("idx"), set = operands.get("set");
  if (operands.count() > kMostInputs || idx.cols() != wo.cols()) return Status::kBadShape;
  ColumnsState const columns = columns_state(operands, state.data);
  ColumnsParams p{};
  p.dtype = wo.type;
  p.n = wo.rows();
  p.k = operands.find("wq") < operands.count() ? operands.get("wq").cols() : 2 * operands.get("wq4").cols();
  p.listed = idx.cols();
  p.capacity = set.cols();
  p.group = op.flag(attributes, "group");
  p.wq = static_cast<int8_t const*>(operands.get("wq").data);
  p.wq4 = static_cast<int8_t const*>(operands.get("wq4").data);
  p.sg = static_cast<int8_t const*>(operands.get("sg").data);
  p.sw = static_cast<float const*>(operands.get("sw").data);
  p.wo = wo.data;
  p.idx = static_cast<int32_t const*>(idx.data);
  p.set = static_cast<int32_t const*>(set.data);
  GRAPHOPT_TRY(launch_columns(p, columns, stream));

  TensorView extended[kMostInputs];
  for (size_t i = 0; i < operands.count(); ++i) extended[i] = inputs[i];
  TensorView& outliers = extended[operands.find("wo")];
  outliers.data = columns.columns;
  outliers.dims[outliers.rank - 1] = p.capacity;
  OpClass const& linear = linear_of(op).op;
  return linear.launch(linear, attributes, extended, outputs, workspace, stream);
}

}  // namespace

std::vector<OpClass> online_linear_ops() {
  std::vector<OpClass> ops;
  for (Linear const& linear : linears()) {
    OpClass op;
    op.variant = static_cast<int32_t>(ops.size());
    op.name = linear.online_name.c_str();
    op.fields = linear.op.fields;
    op.signature = signature;
    op.workspace_bytes = workspace_bytes;
    op.state_bytes = state_bytes;
    op.launch_stateful = launch;
    ops.push_back(op);
  }
  return ops;
}

}  // namespace graphopt::mixq
