#include "common/plugin_v3.h"

#include <optional>
#include <sstream>
#include <utility>

#include "common/plugin_fields.h"

namespace graphopt {
namespace {

using nvinfer1::DataType;

constexpr int32_t kFailure = -1;

std::optional<DType> to_dtype(DataType type) {
  switch (type) {
    case DataType::kFLOAT:
      return DType::kFloat32;
    case DataType::kHALF:
      return DType::kFloat16;
    case DataType::kBF16:
      return DType::kBFloat16;
    case DataType::kINT8:
      return DType::kInt8;
    case DataType::kINT32:
      return DType::kInt32;
    default:
      return std::nullopt;
  }
}

/// The TensorRT type of an operand, given that of T.
DataType data_type(Element element, DataType activation) {
  switch (element) {
    case Element::kActivation:
      return activation;
    case Element::kInt8:
      return DataType::kINT8;
    case Element::kFloat32:
      return DataType::kFLOAT;
    case Element::kInt32:
      return DataType::kINT32;
    case Element::kFloat16:
      return DataType::kHALF;
  }
  return activation;
}

bool is_activation(DataType type) {
  std::optional<DType> const known = to_dtype(type);
  return known.has_value() && is_activation_type(*known);
}

TensorView view(void const* data, DataType type, nvinfer1::Dims const& dims) {
  TensorView v;
  v.data = const_cast<void*>(data);
  v.type = to_dtype(type).value_or(DType::kFloat32);
  v.rank = dims.nbDims;
  for (int32_t axis = 0; axis < dims.nbDims; ++axis) v.dims[axis] = dims.d[axis];
  return v;
}

/// "MixQRMSNorm;epsilon=1e-06;emit_y=1": equal for plugins that run equally.
std::string describe(OpClass const& op, Attributes const& attributes) {
  std::ostringstream text;
  text << op.name;
  for (size_t i = 0; i < op.fields.size(); ++i) {
    text << ';' << op.fields[i].name << '=';
    if (op.fields[i].type == FieldType::kInt32) {
      text << attributes.ints[i];
    } else {
      text << attributes.floats[i];
    }
  }
  return text.str();
}

}  // namespace

PluginV3::PluginV3(OpClass const& op, Attributes const& attributes)
    : op_(op),
      attributes_(attributes),
      signature_(op.signature(op, attributes)),
      activation_input_(0),
      timing_cache_id_(describe(op, attributes)) {
  while (signature_.inputs[activation_input_].element != Element::kActivation) ++activation_input_;
  list_fields();
}

void PluginV3::list_fields() {
  fields_.clear();
  for (size_t i = 0; i < op_.fields.size(); ++i) {
    void const* value = op_.fields[i].type == FieldType::kInt32 ? static_cast<void const*>(&attributes_.ints[i])
                                                                : static_cast<void const*>(&attributes_.floats[i]);
    fields_.emplace_back(op_.fields[i].name, value, plugin_type(op_.fields[i].type), /*length=*/1);
  }
  if (std::string const* const kernels = attributes_.kernels.get(); kernels != nullptr) {
    fields_.emplace_back(kKernelsField, kernels->data(), nvinfer1::PluginFieldType::kCHAR,
                         static_cast<int32_t>(kernels->size()));
  }
  serialized_ = {static_cast<int32_t>(fields_.size()), fields_.data()};
}

bool PluginV3::has_operands(int32_t input_count, int32_t output_count) const {
  return input_count == static_cast<int32_t>(signature_.inputs.size()) &&
         output_count == static_cast<int32_t>(signature_.outputs.size());
}

nvinfer1::IPluginCapability* PluginV3::getCapabilityInterface(nvinfer1::PluginCapabilityType type) noexcept {
  switch (type) {
    case nvinfer1::PluginCapabilityType::kCORE:
      return static_cast<nvinfer1::IPluginV3OneCore*>(this);
    case nvinfer1::PluginCapabilityType::kBUILD:
      return static_cast<nvinfer1::IPluginV3OneBuild*>(this);
    case nvinfer1::PluginCapabilityType::kRUNTIME:
      return static_cast<nvinfer1::IPluginV3OneRuntime*>(this);
  }
  return nullptr;
}

nvinfer1::IPluginV3* PluginV3::clone() noexcept {
  return guarded(op_.name, static_cast<nvinfer1::IPluginV3*>(nullptr),
                 [&]() -> nvinfer1::IPluginV3* { return new PluginV3(op_, attributes_); });
}

int32_t PluginV3::configurePlugin(nvinfer1::DynamicPluginTensorDesc const* inputs, int32_t input_count,
                                  nvinfer1::DynamicPluginTensorDesc const*, int32_t output_count) noexcept {
  return guarded(op_.name, kFailure, [&] {
    if (!has_operands(input_count, output_count)) return kFailure;
    // A device that the library was not compiled for must fail the build, not the first enqueue.
    Status const device = check_device();
    if (device != Status::kOk) {
      log_error(std::string("graphopt plugin ") + op_.name + ": no kernels for this GPU: " + status_string(device));
      return kFailure;
    }
    std::vector<TensorView> views;
    for (int32_t i = 0; i < input_count; ++i) views.push_back(view(nullptr, inputs[i].desc.type, inputs[i].max));
    Status const status = generate_kernels(op_, views.data(), &attributes_);
    list_fields();
    if (status == Status::kOk) return 0;
    log_error(std::string("graphopt plugin ") + op_.name + ": " + status_string(status));
    return kFailure;
  });
}

int32_t PluginV3::getOutputDataTypes(DataType* outputs, int32_t output_count, DataType const* inputs,
                                     int32_t input_count) const noexcept {
  if (!has_operands(input_count, output_count)) return kFailure;
  for (int32_t i = 0; i < output_count; ++i) {
    outputs[i] = data_type(signature_.outputs[i].element, inputs[activation_input_]);
  }
  return 0;
}

int32_t PluginV3::getOutputShapes(nvinfer1::DimsExprs const* inputs, int32_t input_count, nvinfer1::DimsExprs const*,
                                  int32_t, nvinfer1::DimsExprs* outputs, int32_t output_count,
                                  nvinfer1::IExprBuilder& builder) noexcept {
  if (!has_operands(input_count, output_count)) return kFailure;
  for (int32_t i = 0; i < output_count; ++i) {
    OutputSpec const& spec = signature_.outputs[i];
    nvinfer1::DimsExprs const& leading = inputs[spec.leading];
    if (leading.nbDims < 1) return kFailure;
    outputs[i] = leading;
    nvinfer1::IDimensionExpr const*& last = outputs[i].d[leading.nbDims - 1];
    if (spec.last.input < 0) {
      last = builder.constant(spec.last.axis);
      continue;
    }
    nvinfer1::DimsExprs const& source = inputs[spec.last.input];
    int32_t const axis = spec.last.axis < 0 ? source.nbDims + spec.last.axis : spec.last.axis;
    if (axis < 0 || axis >= source.nbDims) return kFailure;
    last = source.d[axis];
    using nvinfer1::DimensionOperation;
    if (spec.last.halved) last = builder.operation(DimensionOperation::kFLOOR_DIV, *last, *builder.constant(2));
    if (!spec.last.packed) continue;
    last = builder.operation(DimensionOperation::kCEIL_DIV, *last, *builder.constant(kPackedCodes));
    last = builder.operation(DimensionOperation::kPROD, *last, *builder.constant(kPackedBytes));
  }
  return 0;
}

bool PluginV3::supportsFormatCombination(int32_t position, nvinfer1::DynamicPluginTensorDesc const* operands,
                                         int32_t input_count, int32_t output_count) noexcept {
  if (!has_operands(input_count, output_count)) return false;
  nvinfer1::PluginTensorDesc const& desc = operands[position].desc;
  if (desc.format != nvinfer1::TensorFormat::kLINEAR) return false;
  if (position == activation_input_) return is_activation(desc.type);
  Element const element =
      position < input_count ? signature_.inputs[position].element : signature_.outputs[position - input_count].element;
  // Positions are asked in order, so that T is settled before any other operand of type T.
  return desc.type == data_type(element, operands[activation_input_].desc.type);
}

size_t PluginV3::getWorkspaceSize(nvinfer1::DynamicPluginTensorDesc const* inputs, int32_t input_count,
                                  nvinfer1::DynamicPluginTensorDesc const*, int32_t) const noexcept {
  return guarded(op_.name, size_t{0}, [&] {
    std::vector<TensorView> views;
    for (int32_t i = 0; i < input_count; ++i) views.push_back(view(nullptr, inputs[i].desc.type, inputs[i].max));
    return op_.workspace_bytes(op_, views.data());
  });
}

int32_t PluginV3::onShapeChange(nvinfer1::PluginTensorDesc const* inputs, int32_t input_count,
                                nvinfer1::PluginTensorDesc const*, int32_t output_count) noexcept {
  if (!has_operands(input_count, output_count)) return kFailure;
  if (op_.state_bytes == nullptr) return 0;
  return guarded(op_.name, kFailure, [&] {
    std::vector<TensorView> views;
    for (int32_t i = 0; i < input_count; ++i) views.push_back(view(nullptr, inputs[i].type, inputs[i].dims));
    Status const status = state_.reserve(op_.state_bytes(op_, attributes_, views.data()));
    if (status == Status::kOk) return 0;
    log_error(std::string("graphopt plugin ") + op_.name + ": no memory for its state: " + status_string(status));
    return kFailure;
  });
}

int32_t PluginV3::enqueue(nvinfer1::PluginTensorDesc const* input_descs, nvinfer1::PluginTensorDesc const* output_descs,
                          void const* const* inputs, void* const* outputs, void* workspace,
                          cudaStream_t stream) noexcept {
  constexpr size_t kMaxOperands = 16;
  size_t const input_count = signature_.inputs.size(), output_count = signature_.outputs.size();
  if (input_count > kMaxOperands || output_count > kMaxOperands) return kFailure;
  TensorView in[kMaxOperands], out[kMaxOperands];
  for (size_t i = 0; i < input_count; ++i) in[i] = view(inputs[i], input_descs[i].type, input_descs[i].dims);
  for (size_t i = 0; i < output_count; ++i) out[i] = view(outputs[i], output_descs[i].type, output_descs[i].dims);
  Status const status = launch_op(op_, attributes_, in, out, workspace, state_, stream);
  if (status == Status::kOk) return 0;
  return guarded(op_.name, kFailure, [&] {
    log_error(std::string("graphopt plugin ") + op_.name + ": " + status_string(status));
    return static_cast<int32_t>(status);
  });
}

nvinfer1::IPluginV3* PluginV3::attachToContext(nvinfer1::IPluginResourceContext*) noexcept { return clone(); }

CreatorV3::CreatorV3(OpClass op) : op_(std::move(op)) {
  for (FieldSpec const& field : op_.fields) {
    fields_.emplace_back(field.name, nullptr, plugin_type(field.type), /*length=*/1);
  }
  field_names_ = {static_cast<int32_t>(fields_.size()), fields_.data()};
}

nvinfer1::IPluginV3* CreatorV3::createPlugin(char const*, nvinfer1::PluginFieldCollection const* fields,
                                             nvinfer1::TensorRTPhase) noexcept {
  nvinfer1::IPluginV3* const none = nullptr;
  return guarded(op_.name, none, [&]() -> nvinfer1::IPluginV3* {
    Attributes attributes;
    nvinfer1::PluginFieldCollection const empty{};
    nvinfer1::PluginFieldCollection const& given = fields == nullptr ? empty : *fields;
    if (read_fields(op_, given, &attributes) != Status::kOk) return nullptr;
    nvinfer1::PluginField const* const kernels = find_field(given, kKernelsField);
    if (kernels != nullptr) {
      auto const* const bytes = static_cast<char const*>(kernels->data);
      if (install_kernels(op_, bytes, static_cast<size_t>(kernels->length), &attributes) != Status::kOk) return nullptr;
    }
    return new PluginV3(op_, attributes);
  });
}

}  // namespace graphopt
