// What a plugin op is, apart from any TensorRT interface: its name, fields, operands, shapes and launcher. One adapter
// per plugin interface (plugin_v3.cpp) turns every OpClass into a plugin, so a new op never touches TensorRT.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "common/packing.h"
#include "common/tensor.h"

namespace graphopt {

constexpr char const* kPluginNamespace = "graphopt";
constexpr char const* kPluginVersion = "1";

/// Element type of an operand: fixed, or the op's activation type T (the type of its first T input).
enum class Element { kActivation, kInt8, kFloat32, kInt32, kFloat16 };

struct InputSpec {
  char const* name;
  Element element;
};

/// A dimension that a builder may know only symbolically: an axis of an input, or the constant `axis` if input < 0.
struct DimRef {
  int32_t input;
  int32_t axis;         // negative counts from the end
  bool packed = false;  // bytes of so many 4-bit codes, see packed_bytes
  bool halved = false;  // half of the axis, before it is packed

  static constexpr DimRef constant(int32_t value) { return {-1, value}; }
  static constexpr DimRef last_of(int32_t input) { return {input, -1}; }
  static constexpr DimRef first_of(int32_t input) { return {input, 0}; }
  static constexpr DimRef packed_last_of(int32_t input) { return {input, -1, true}; }
  constexpr DimRef half() const { return {input, axis, packed, true}; }
};

/// An output has the leading dimensions of one input, and a last dimension of its own.
struct OutputSpec {
  char const* name;
  Element element;
  int32_t leading;  // index of the input whose dimensions but the last it has
  DimRef last;
};

struct Signature {
  std::vector<InputSpec> inputs;
  std::vector<OutputSpec> outputs;
};

enum class FieldType { kInt32, kFloat32 };

/// One attribute of the ONNX node. Flags (kInt32) default to 0; a kFloat32 field must be given.
struct FieldSpec {
  char const* name;
  FieldType type;
};

constexpr size_t kMaxFields = 8;

/// Values of an op's fields, in the order of OpClass::fields.
struct Attributes {
  std::array<int32_t, kMaxFields> ints{};
  std::array<float, kMaxFields> floats{};
  std::shared_ptr<std::string const> kernels;  // that OpClass::generate made, if any
};

constexpr char const* kKernelsField = "kernels";  // what a plugin calls them in an engine

/// Device memory that belongs to one execution context and keeps its contents from call to call.
struct OpState {
  void* data;  // OpClass::state_bytes, zeros before the first call
  bool fresh;  // no call has used it yet
};

struct OpClass {
  char const* name;               // ONNX op type and plugin name
  std::vector<FieldSpec> fields;  // at most kMaxFields
  Signature (*signature)(OpClass const& op, Attributes const& attributes);
  /// Scratch bytes for operands of at most these shapes.
  size_t (*workspace_bytes)(OpClass const& op, TensorView const* inputs);
  Status (*launch)(OpClass const& op, Attributes const& attributes, TensorView const* inputs, TensorView const* outputs,
                   void* workspace, cudaStream_t stream) = nullptr;
  int32_t variant = 0;  // tells apart the ops that share these functions
  /// Of an op with state, which sets these two instead of `launch`. Two calls with one state must be ordered.
  size_t (*state_bytes)(OpClass const& op, Attributes const& attributes, TensorView const* inputs) = nullptr;
  Status (*launch_stateful)(OpClass const& op, Attributes const& attributes, TensorView const* inputs,
                            TensorView const* outputs, void* workspace, OpState state, cudaStream_t stream) = nullptr;
  /// Of an op whose kernels may be generated when an engine is built: make those for operands of these types and shapes
  /// and take them into use; none are made where the library has its own. Where they cannot be made, *problem says why
  /// in one sentence, and the op runs without them.
  Status (*generate)(OpClass const& op, Attributes const& attributes, TensorView const* inputs, std::string* kernels,
                     std::string* problem) = nullptr;
  /// Take kernels into use that an engine has kept. Refuses what `generate` did not make.
  Status (*install)(std::string const& kernels) = nullptr;

  /// Value of the flag `field`; 0 where the op has no such field.
  int32_t flag(Attributes const& attributes, char const* field) const;
  /// Value of the float `field`; 0 where the op has no such field.
  float number(Attributes const& attributes, char const* field) const;
};

/// kOk if the current device can run the library's kernels, or if there is no device to ask.
Status check_device();

}  // namespace graphopt
