// VQHadamard as an OpClass. Inputs: x, signs. Output: y.
#include "vq/hadamard/params.h"
#include "vq/ops.h"

namespace graphopt::vq {
namespace {

enum Input : int32_t { kX, kSigns };

constexpr char const* kBlock = "block";

Signature signature(OpClass const&, Attributes const&) {
  return {{{"x", Element::kActivation}, {"signs", Element::kInt8}},
          {{"y", Element::kActivation, kX, DimRef::last_of(kSigns)}}};
}

size_t workspace_bytes(OpClass const&, TensorView const*) { return 0; }

Status launch(OpClass const& op, Attributes const& attributes, TensorView const* inputs, TensorView const* outputs,
              void*, cudaStream_t stream) {
  return launch_hadamard(
      {inputs[kX].type, inputs[kX].rows(), inputs[kX].cols(), inputs[kSigns].cols(), op.flag(attributes, kBlock),
       inputs[kX].data, static_cast<int8_t const*>(inputs[kSigns].data), outputs[0].data},
      stream);
}

}  // namespace

OpClass hadamard_op() {
  OpClass op;
  op.name = "VQHadamard";
  op.fields = {{kBlock, FieldType::kInt32}};
  op.signature = signature;
  op.workspace_bytes = workspace_bytes;
  op.launch = launch;
  return op;
}

}  // namespace graphopt::vq
