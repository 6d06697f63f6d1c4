#include "common/plugin_v2.h"

#include <cstring>
#include <string>
#include <type_traits>
#include <utility>

#include "common/plugin_fields.h"

namespace graphopt {
namespace {

using nvinfer1::DataType;

constexpr int32_t kFailure = -1;
constexpr int32_t kPack = 4;  // INT8 values to an INT32 element
constexpr char const* kTypeId = "type_id";

/// What an engine keeps of a plugin, followed by generated kernels. The plugin library's digest is in the plan's
/// manifest, so this needs no versions.
struct Serialized {
  std::array<int32_t, kMaxFields> ints;
  std::array<float, kMaxFields> floats;
  int32_t activation;
};
static_assert(std::is_trivially_copyable_v<Serialized>);

DataType data_type(Element element, DataType activation) {
  switch (element) {
    case Element::kActivation:
      return activation;
    case Element::kInt8:  // packed
    case Element::kInt32:
      return DataType::kINT32;
    case Element::kFloat32:
      return DataType::kFLOAT;
    case Element::kFloat16:
      return DataType::kHALF;
  }
  return activation;
}

DType dtype(Element element, DataType activation) {
  switch (element) {
    case Element::kActivation:
      return activation == DataType::kHALF ? DType::kFloat16 : DType::kFloat32;
    case Element::kInt8:
      return DType::kInt8;
    case Element::kInt32:
      return DType::kInt32;
    case Element::kFloat32:
      return DType::kFloat32;
    case Element::kFloat16:
      return DType::kFloat16;
  }
  return DType::kFloat32;
}

/// The operand as the op knows it: INT8 values unpacked.
TensorView view(Element element, DataType activation, void const* data, nvinfer1::Dims const& dims) {
  TensorView v;
  v.data = const_cast<void*>(data);
  v.type = dtype(element, activation);
  v.rank = dims.nbDims;
  for (int32_t axis = 0; axis < dims.nbDims; ++axis) v.dims[axis] = dims.d[axis];
  if (element == Element::kInt8 && v.rank > 0) v.dims[v.rank - 1] *= kPack;
  return v;
}

bool is_activation(int32_t type_id) {
  return type_id == static_cast<int32_t>(DataType::kFLOAT) || type_id == static_cast<int32_t>(DataType::kHALF);
}

}  // namespace

PluginV2::PluginV2(OpClass const& op, Attributes const& attributes, DataType activation)
    : op_(op), attributes_(attributes), activation_(activation), signature_(op.signature(op, attributes)) {}

bool PluginV2::has_operands(int32_t input_count, int32_t output_count) const {
  return input_count == static_cast<int32_t>(signature_.inputs.size()) &&
         output_count == static_cast<int32_t>(signature_.outputs.size());
}

TensorView PluginV2::input_view(size_t index, void const* data, nvinfer1::Dims const& dims) const {
  return view(signature_.inputs[index].element, activation_, data, dims);
}

int32_t PluginV2::initialize() noexcept {
  // Called before the builder's first launch and before a runtime's: here a GPU without kernels can still be refused.
  Status const status = check_device();
  if (status == Status::kOk) return 0;
  return guarded(op_.name, kFailure, [&] {
    log_error(std::string("graphopt plugin ") + op_.name + ": no kernels for this GPU: " + status_string(status));
    return kFailure;
  });
}

size_t PluginV2::getSerializationSize() const noexcept {
  return sizeof(Serialized) + (attributes_.kernels == nullptr ? 0 : attributes_.kernels->size());
}

void PluginV2::serialize(void* buffer) const noexcept {
  Serialized const state{attributes_.ints, attributes_.floats, static_cast<int32_t>(activation_)};
  std::memcpy(buffer, &state, sizeof(state));
  if (attributes_.kernels == nullptr) return;
  std::memcpy(static_cast<char*>(buffer) + sizeof(state), attributes_.kernels->data(), attributes_.kernels->size());
}

DataType PluginV2::getOutputDataType(int32_t index, DataType const*, int32_t) const noexcept {
  return data_type(signature_.outputs[index].element, activation_);
}

nvinfer1::IPluginV2DynamicExt* PluginV2::clone() const noexcept {
  return guarded(op_.name, static_cast<nvinfer1::IPluginV2DynamicExt*>(nullptr),
                 [&]() -> nvinfer1::IPluginV2DynamicExt* { return new PluginV2(op_, attributes_, activation_); });
}

nvinfer1::DimsExprs PluginV2::getOutputDimensions(int32_t index, nvinfer1::DimsExprs const* inputs,
                                                  int32_t input_count, nvinfer1::IExprBuilder& builder) noexcept {
  nvinfer1::DimsExprs const none{};
  OutputSpec const& spec = signature_.outputs[index];
  if (!has_operands(input_count, getNbOutputs()) || inputs[spec.leading].nbDims < 1) return none;
  nvinfer1::DimsExprs result = inputs[spec.leading];
  nvinfer1::IDimensionExpr const* last = builder.constant(spec.last.axis);
  if (spec.last.input >= 0) {
    nvinfer1::DimsExprs const& source = inputs[spec.last.input];
    int32_t const axis = spec.last.axis < 0 ? source.nbDims + spec.last.axis : spec.last.axis;
    if (axis < 0 || axis >= source.nbDims) return none;
    last = source.d[axis];
    bool const packed = signature_.inputs[spec.last.input].element == Element::kInt8 && axis == source.nbDims - 1;
    if (packed) last = builder.operation(nvinfer1::DimensionOperation::kPROD, *last, *builder.constant(kPack));
    if (spec.last.halved) {
      last = builder.operation(nvinfer1::DimensionOperation::kFLOOR_DIV, *last, *builder.constant(2));
    }
    if (spec.last.packed) {
      last = builder.operation(nvinfer1::DimensionOperation::kCEIL_DIV, *last, *builder.constant(kPackedCodes));
      last = builder.operation(nvinfer1::DimensionOperation::kPROD, *last, *builder.constant(kPackedBytes));
    }
  }
  if (signature_.outputs[index].element == Element::kInt8) {
    last = builder.operation(nvinfer1::DimensionOperation::kFLOOR_DIV, *last, *builder.constant(kPack));
  }
  result.d[result.nbDims - 1] = last;
  return result;
}

bool PluginV2::supportsFormatCombination(int32_t position, nvinfer1::PluginTensorDesc const* operands,
                                         int32_t input_count, int32_t output_count) noexcept {
  if (!has_operands(input_count, output_count)) return false;
  Element const element = position < input_count ? signature_.inputs[position].element
                                                 : signature_.outputs[position - input_count].element;
  return operands[position].format == nvinfer1::TensorFormat::kLINEAR &&
         operands[position].type == data_type(element, activation_);
}

void PluginV2::configurePlugin(nvinfer1::DynamicPluginTensorDesc const* inputs, int32_t input_count,
                               nvinfer1::DynamicPluginTensorDesc const*, int32_t output_count) noexcept {
  // Called in a context too, before it first runs: the last moment at which memory can be had. State depends on sizes
  // that are never dynamic.
  if (!has_operands(input_count, output_count)) return;
  guarded(op_.name, kFailure, [&] {
    std::vector<TensorView> views;
    for (int32_t i = 0; i < input_count; ++i) views.push_back(input_view(i, nullptr, inputs[i].max));
    if (attributes_.kernels == nullptr) generate_kernels(op_, views.data(), &attributes_);
    if (op_.state_bytes == nullptr) return 0;
    Status const status = state_.reserve(op_.state_bytes(op_, attributes_, views.data()));
    if (status == Status::kOk) return 0;
    log_error(std::string("graphopt plugin ") + op_.name + ": no memory for its state: " + status_string(status));
    return kFailure;
  });
}

size_t PluginV2::getWorkspaceSize(nvinfer1::PluginTensorDesc const* inputs, int32_t input_count,
                                  nvinfer1::PluginTensorDesc const*, int32_t) const noexcept {
  return guarded(op_.name, size_t{0}, [&] {
    std::vector<TensorView> views;
    for (int32_t i = 0; i < input_count; ++i) views.push_back(input_view(i, nullptr, inputs[i].dims));
    return op_.workspace_bytes(op_, views.data());
  });
}

/// Whether packed outputs hold whole rows: a last dimension that is no multiple of kPack would be overrun.
bool PluginV2::outputs_fit(TensorView const* inputs, TensorView const* outputs) const {
  for (size_t i = 0; i < signature_.outputs.size(); ++i) {
    OutputSpec const& spec = signature_.outputs[i];
    if (spec.element != Element::kInt8 || spec.last.input < 0) continue;
    TensorView const& source = inputs[spec.last.input];
    int32_t const axis = spec.last.axis < 0 ? source.rank + spec.last.axis : spec.last.axis;
    int64_t const codes = source.dims[axis] / (spec.last.halved ? 2 : 1);
    int64_t const size = spec.last.packed ? packed_bytes(codes) : codes;
    if (size != outputs[i].cols()) return false;
  }
  return true;
}

int32_t PluginV2::enqueue(nvinfer1::PluginTensorDesc const* input_descs,
                          nvinfer1::PluginTensorDesc const* output_descs, void const* const* inputs,
                          void* const* outputs, void* workspace, cudaStream_t stream) noexcept {
  constexpr size_t kMaxOperands = 16;
  size_t const input_count = signature_.inputs.size(), output_count = signature_.outputs.size();
  if (input_count > kMaxOperands || output_count > kMaxOperands) return kFailure;
  TensorView in[kMaxOperands], out[kMaxOperands];
  for (size_t i = 0; i < input_count; ++i) in[i] = input_view(i, inputs[i], input_descs[i].dims);
  for (size_t i = 0; i < output_count; ++i) {
    out[i] = view(signature_.outputs[i].element, activation_, outputs[i], output_descs[i].dims);
  }
  Status const status =
      outputs_fit(in, out) ? launch_op(op_, attributes_, in, out, workspace, state_, stream) : Status::kBadShape;
  if (status == Status::kOk) return 0;
  return guarded(op_.name, kFailure, [&] {
    log_error(std::string("graphopt plugin ") + op_.name + ": " + status_string(status));
    return static_cast<int32_t>(status);
  });
}

CreatorV2::CreatorV2(OpClass op) : op_(std::move(op)) {
  for (FieldSpec const& field : op_.fields) {
    fields_.emplace_back(field.name, nullptr, plugin_type(field.type), /*length=*/1);
  }
  fields_.emplace_back(kTypeId, nullptr, nvinfer1::PluginFieldType::kINT32, /*length=*/1);
  field_names_ = {static_cast<int32_t>(fields_.size()), fields_.data()};
}

nvinfer1::IPluginV2* CreatorV2::createPlugin(char const*, nvinfer1::PluginFieldCollection const* fields) noexcept {
  return guarded(op_.name, static_cast<nvinfer1::IPluginV2*>(nullptr), [&]() -> nvinfer1::IPluginV2* {
    Attributes attributes;
    nvinfer1::PluginFieldCollection const empty{};
    nvinfer1::PluginFieldCollection const& given = fields == nullptr ? empty : *fields;
    if (read_fields(op_, given, &attributes) != Status::kOk) return nullptr;
    nvinfer1::PluginField const* type = find_field(given, kTypeId);
    int32_t type_id = kFailure;
    if (type != nullptr && type->type == nvinfer1::PluginFieldType::kINT32) {
      std::memcpy(&type_id, type->data, sizeof(type_id));
    }
    if (!is_activation(type_id)) {
      log_error(std::string("graphopt plugin ") + op_.name + ": field type_id must be 0 (FP32) or 1 (FP16)");
      return nullptr;
    }
    return new PluginV2(op_, attributes, static_cast<DataType>(type_id));
  });
}

nvinfer1::IPluginV2* CreatorV2::deserializePlugin(char const*, void const* data, size_t length) noexcept {
  return guarded(op_.name, static_cast<nvinfer1::IPluginV2*>(nullptr), [&]() -> nvinfer1::IPluginV2* {
    Serialized state{};
    bool const whole = data != nullptr && length >= sizeof(state) && (length == sizeof(state) || op_.install != nullptr);
    if (whole) std::memcpy(&state, data, sizeof(state));
    if (!whole || !is_activation(state.activation)) {
      log_error(std::string("graphopt plugin ") + op_.name + ": the engine was built with another plugin library");
      return nullptr;
    }
    Attributes attributes{state.ints, state.floats, nullptr};
    auto const* const kernels = static_cast<char const*>(data) + sizeof(state);
    size_t const bytes = length - sizeof(state);
    if (bytes > 0 && install_kernels(op_, kernels, bytes, &attributes) != Status::kOk) return nullptr;
    return new PluginV2(op_, attributes, static_cast<DataType>(state.activation));
  });
}

}  // namespace graphopt
