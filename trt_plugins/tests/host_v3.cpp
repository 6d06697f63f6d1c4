// Drives the plugin library as TensorRT does, through a plugin's whole life, on machines where no TensorRT runs.
//
//   host_v3 LIBRARY CASES [--describe]
//
// CASES is a folder with cases.txt and the operands' raw bytes; one line per item:
//   case NAME OP
//   field NAME i|f VALUE
//   input TYPE FILE DIM...        TYPE: f32 f16 bf16 i8 i32
//   damage NAME                   flip a bit of that field on its way from the built plugin to the one that runs
//   end
// For each output i of a case it prints "NAME i TYPE DIM..." and writes CASES/NAME.i.bin. With --describe it stops
// short of the GPU: no operand is read and nothing is enqueued. Exit code 1 and one line on stderr say what went wrong.
#include <NvInferRuntime.h>
#include <cuda_runtime.h>
#include <dlfcn.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <deque>
#include <fstream>
#include <iostream>
#include <map>
#include <memory>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

namespace {

using namespace nvinfer1;

constexpr size_t kGuardBytes = 256;      // beyond each output; must come back untouched
constexpr unsigned char kPoison = 0xa5;  // outputs hold it before the run

struct Type {
  DataType trt;
  size_t bytes;
};

std::map<std::string, Type> const kTypes = {{"f32", {DataType::kFLOAT, 4}},
                                            {"f16", {DataType::kHALF, 2}},
                                            {"bf16", {DataType::kBF16, 2}},
                                            {"i8", {DataType::kINT8, 1}},
                                            {"i32", {DataType::kINT32, 4}}};

std::string type_name(DataType type) {
  for (auto const& [name, entry] : kTypes) {
    if (entry.trt == type) return name;
  }
  throw std::runtime_error("the plugin declared an output type that no operand has");
}

void require(bool condition, std::string const& what) {
  if (!condition) throw std::runtime_error(what);
}

void require_cuda(cudaError_t error, char const* what) {
  require(error == cudaSuccess, std::string(what) + ": " + cudaGetErrorString(error));
}

struct FieldValue {
  std::string name;
  PluginFieldType type;
  int32_t integer;
  float number;
};

struct Operand {
  DataType type;
  std::string file;
  Dims dims;
};

struct Case {
  std::string name;
  std::string op;
  std::vector<FieldValue> fields;
  std::vector<Operand> inputs;
  std::string damaged;  // name of a field
};

std::vector<Case> read_cases(std::string const& folder) {
  std::ifstream file(folder + "/cases.txt");
  require(file.good(), folder + "/cases.txt cannot be read");
  std::vector<Case> cases;
  std::string line;
  while (std::getline(file, line)) {
    std::istringstream words(line);
    std::string kind;
    words >> kind;
    if (kind == "case") {
      cases.emplace_back();
      words >> cases.back().name >> cases.back().op;
    } else if (kind == "field") {
      FieldValue field{};
      std::string type;
      words >> field.name >> type;
      field.type = type == "i" ? PluginFieldType::kINT32 : PluginFieldType::kFLOAT32;
      if (type == "i") {
        words >> field.integer;
      } else {
        words >> field.number;
      }
      cases.back().fields.push_back(field);
    } else if (kind == "input") {
      Operand operand{};
      std::string type;
      words >> type >> operand.file;
      operand.type = kTypes.at(type).trt;
      for (int64_t dim; words >> dim;) operand.dims.d[operand.dims.nbDims++] = dim;
      cases.back().inputs.push_back(operand);
    } else if (kind == "damage") {
      words >> cases.back().damaged;
    } else {
      require(kind == "end" || kind.empty(), "unknown line in cases.txt: " + line);
    }
  }
  return cases;
}

/// Dimension expressions as TensorRT hands them out, all constant.
class Dimension final : public IDimensionExpr, public apiv::VDimensionExpr {
 public:
  explicit Dimension(int64_t value) : value_(value) { mImpl = this; }
  bool isConstant() const override { return true; }
  int64_t getConstantValue() const override { return value_; }
  bool isSizeTensor() const override { return false; }

 private:
  int64_t value_;
};

class Builder final : public IExprBuilder, public apiv::VExprBuilder {
 public:
  Builder() { mImpl = this; }
  IDimensionExpr const* constant(int64_t value) override { return &dimensions_.emplace_back(value); }
  IDimensionExpr const* operation(DimensionOperation kind, IDimensionExpr const& first,
                                  IDimensionExpr const& second) override {
    int64_t const a = first.getConstantValue(), b = second.getConstantValue();
    if (kind == DimensionOperation::kPROD) return constant(a * b);
    if (kind == DimensionOperation::kFLOOR_DIV) return constant(a / b);
    if (kind == DimensionOperation::kCEIL_DIV) return constant((a + b - 1) / b);
    return nullptr;  // nothing else is asked for
  }
  IDimensionExpr const* declareSizeTensor(int32_t, IDimensionExpr const&, IDimensionExpr const&) override {
    return nullptr;
  }

 private:
  std::deque<Dimension> dimensions_;
};

class DeviceBuffer {
 public:
  explicit DeviceBuffer(size_t bytes) { require_cuda(cudaMalloc(&data_, std::max<size_t>(bytes, 1)), "cudaMalloc"); }
  ~DeviceBuffer() { cudaFree(data_); }
  DeviceBuffer(DeviceBuffer const&) = delete;
  DeviceBuffer& operator=(DeviceBuffer const&) = delete;
  void* get() const { return data_; }

 private:
  void* data_ = nullptr;
};

size_t byte_size(Operand const& operand) {
  size_t bytes = kTypes.at(type_name(operand.type)).bytes;
  for (int32_t axis = 0; axis < operand.dims.nbDims; ++axis) bytes *= static_cast<size_t>(operand.dims.d[axis]);
  return bytes;
}

PluginTensorDesc describe(Operand const& operand) {
  return {operand.dims, operand.type, TensorFormat::kLINEAR, /*scale=*/-1.0f};
}

template <class Interface>
Interface* capability(IPluginV3& plugin, PluginCapabilityType type) {
  auto* found = static_cast<Interface*>(plugin.getCapabilityInterface(type));
  require(found != nullptr, "the plugin lacks a capability");
  return found;
}

/// What the build phase learns of a plugin.
struct Built {
  std::vector<Operand> outputs;
  size_t workspace_bytes;
};

/// What the build phase asks of a plugin, in TensorRT's order.
Built build_phase(IPluginV3& plugin, Case const& c) {
  auto* build = capability<IPluginV3OneBuild>(plugin, PluginCapabilityType::kBUILD);
  int32_t const input_count = static_cast<int32_t>(c.inputs.size()), output_count = build->getNbOutputs();
  std::vector<DataType> input_types, output_types(output_count);
  for (Operand const& input : c.inputs) input_types.push_back(input.type);
  require(build->getOutputDataTypes(output_types.data(), output_count, input_types.data(), input_count) == 0,
          "getOutputDataTypes failed");

  Builder builder;
  std::vector<DimsExprs> input_dims(input_count), output_dims(output_count);
  for (int32_t i = 0; i < input_count; ++i) {
    input_dims[i].nbDims = c.inputs[i].dims.nbDims;
    for (int32_t a = 0; a < input_dims[i].nbDims; ++a) input_dims[i].d[a] = builder.constant(c.inputs[i].dims.d[a]);
  }
  require(build->getOutputShapes(input_dims.data(), input_count, nullptr, 0, output_dims.data(), output_count,
                                 builder) == 0,
          "getOutputShapes failed");

  std::vector<Operand> outputs(output_count);
  for (int32_t i = 0; i < output_count; ++i) {
    outputs[i].type = output_types[i];
    outputs[i].dims.nbDims = output_dims[i].nbDims;
    for (int32_t a = 0; a < output_dims[i].nbDims; ++a) {
      outputs[i].dims.d[a] = output_dims[i].d[a]->getConstantValue();
    }
  }

  std::vector<DynamicPluginTensorDesc> operands;
  for (auto const* list : {&c.inputs, const_cast<std::vector<Operand> const*>(&outputs)}) {
    for (Operand const& o : *list) operands.push_back({describe(o), o.dims, o.dims, o.dims});
  }
  for (int32_t position = 0; position < input_count + output_count; ++position) {
    require(build->supportsFormatCombination(position, operands.data(), input_count, output_count),
            "supportsFormatCombination refused operand " + std::to_string(position));
    DynamicPluginTensorDesc const kept = operands[position];
    operands[position].desc.format = TensorFormat::kCHW4;
    require(!build->supportsFormatCombination(position, operands.data(), input_count, output_count),
            "supportsFormatCombination took a format that is not linear");
    operands[position] = kept;
    operands[position].desc.type = DataType::kBOOL;
    require(!build->supportsFormatCombination(position, operands.data(), input_count, output_count),
            "supportsFormatCombination took a wrong type for operand " + std::to_string(position));
    operands[position] = kept;
  }
  require(build->configurePlugin(operands.data(), input_count, operands.data() + input_count, output_count) == 0,
          "configurePlugin failed");
  size_t const workspace_bytes =
      build->getWorkspaceSize(operands.data(), input_count, operands.data() + input_count, output_count);
  require(workspace_bytes < (size_t{1} << 40), "getWorkspaceSize is absurd");
  char const* timing_id = build->getTimingCacheID();
  require(timing_id != nullptr && *timing_id != '\0', "getTimingCacheID is empty");
  return {outputs, workspace_bytes};
}

/// Serialize as an engine would, with copies of the values, and create the runtime plugin from that.
std::unique_ptr<IPluginV3> revive(IPluginCreatorV3One& creator, IPluginV3& built, std::string const& damaged) {
  auto* runtime = capability<IPluginV3OneRuntime>(built, PluginCapabilityType::kRUNTIME);
  PluginFieldCollection const* fields = runtime->getFieldsToSerialize();
  require(fields != nullptr, "getFieldsToSerialize returned null");
  std::deque<std::vector<char>> values;
  std::deque<std::string> names;
  std::vector<PluginField> copies;
  for (int32_t i = 0; i < fields->nbFields; ++i) {
    PluginField const& field = fields->fields[i];
    size_t const bytes = (field.type == PluginFieldType::kCHAR ? 1 : 4) * static_cast<size_t>(field.length);
    auto const* const data = static_cast<char const*>(field.data);
    values.emplace_back(data, data + bytes);
    names.emplace_back(field.name);
    if (damaged == field.name) values.back()[bytes / 2] ^= 1;
    copies.emplace_back(names.back().c_str(), values.back().data(), field.type, field.length);
  }
  PluginFieldCollection const collection{static_cast<int32_t>(copies.size()), copies.data()};
  std::unique_ptr<IPluginV3> revived(creator.createPlugin("revived", &collection, TensorRTPhase::kRUNTIME));
  require(revived != nullptr, "createPlugin failed at run time");
  return revived;
}

std::unique_ptr<DeviceBuffer> upload(std::string const& path, size_t bytes) {
  std::ifstream file(path, std::ios::binary);
  std::vector<char> host(bytes);
  require(bytes == 0 || static_cast<bool>(file.read(host.data(), static_cast<std::streamsize>(bytes))),
          path + " is missing or short");
  auto buffer = std::make_unique<DeviceBuffer>(bytes);
  require_cuda(cudaMemcpy(buffer->get(), host.data(), bytes, cudaMemcpyHostToDevice), "copy to the device");
  return buffer;
}

void run_phase(IPluginV3& revived, Case const& c, Built const& built, std::string const& folder) {
  std::vector<Operand> const& outputs = built.outputs;
  auto* runtime = capability<IPluginV3OneRuntime>(revived, PluginCapabilityType::kRUNTIME);
  std::unique_ptr<IPluginV3> attached(runtime->attachToContext(nullptr));
  require(attached != nullptr, "attachToContext failed");
  runtime = capability<IPluginV3OneRuntime>(*attached, PluginCapabilityType::kRUNTIME);

  std::vector<PluginTensorDesc> input_descs, output_descs;
  std::vector<std::unique_ptr<DeviceBuffer>> buffers;
  std::vector<void const*> inputs;
  std::vector<void*> results;
  for (Operand const& input : c.inputs) {
    input_descs.push_back(describe(input));
    buffers.push_back(upload(folder + "/" + input.file, byte_size(input)));
    inputs.push_back(buffers.back()->get());
  }
  for (Operand const& output : outputs) {
    output_descs.push_back(describe(output));
    buffers.push_back(std::make_unique<DeviceBuffer>(byte_size(output) + kGuardBytes));
    require_cuda(cudaMemset(buffers.back()->get(), kPoison, byte_size(output) + kGuardBytes), "poison");
    results.push_back(buffers.back()->get());
  }
  DeviceBuffer const workspace(built.workspace_bytes + kGuardBytes);
  require_cuda(cudaMemset(workspace.get(), kPoison, built.workspace_bytes + kGuardBytes), "poison");
  require(runtime->onShapeChange(input_descs.data(), static_cast<int32_t>(input_descs.size()), output_descs.data(),
                                 static_cast<int32_t>(output_descs.size())) == 0,
          "onShapeChange failed");
  cudaStream_t stream;
  require_cuda(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "stream");
  require_cuda(cudaDeviceSynchronize(), "poison and copies");
  int32_t const status = runtime->enqueue(input_descs.data(), output_descs.data(), inputs.data(), results.data(),
                                          built.workspace_bytes > 0 ? workspace.get() : nullptr, stream);
  require(status == 0, "enqueue returned " + std::to_string(status));
  require_cuda(cudaStreamSynchronize(stream), "kernel");
  require_cuda(cudaStreamDestroy(stream), "stream");

  std::vector<unsigned char> guard(kGuardBytes);
  require_cuda(cudaMemcpy(guard.data(), static_cast<char*>(workspace.get()) + built.workspace_bytes, kGuardBytes,
                          cudaMemcpyDeviceToHost),
               "copy to the host");
  for (unsigned char const byte : guard) require(byte == kPoison, "the workspace was overrun");
  for (size_t i = 0; i < outputs.size(); ++i) {
    size_t const bytes = byte_size(outputs[i]);
    std::vector<char> host(bytes + kGuardBytes);
    require_cuda(cudaMemcpy(host.data(), results[i], host.size(), cudaMemcpyDeviceToHost), "copy to the host");
    for (size_t b = bytes; b < host.size(); ++b) {
      require(static_cast<unsigned char>(host[b]) == kPoison, "output " + std::to_string(i) + " was overrun");
    }
    std::ofstream file(folder + "/" + c.name + "." + std::to_string(i) + ".bin", std::ios::binary);
    file.write(host.data(), static_cast<std::streamsize>(bytes));
    require(file.good(), "an output file cannot be written");
  }
}

void run_case(std::map<std::string, IPluginCreatorV3One*> const& creators, Case const& c, std::string const& folder,
              bool describe_only) {
  auto const found = creators.find(c.op);
  require(found != creators.end(), "the library has no creator of this name");
  IPluginCreatorV3One& creator = *found->second;
  require(std::strcmp(creator.getPluginNamespace(), "graphopt") == 0, "wrong namespace");
  require(std::strcmp(creator.getPluginVersion(), "1") == 0, "wrong version");

  std::vector<PluginField> fields;
  for (FieldValue const& field : c.fields) {
    void const* value = field.type == PluginFieldType::kINT32 ? static_cast<void const*>(&field.integer)
                                                              : static_cast<void const*>(&field.number);
    fields.emplace_back(field.name.c_str(), value, field.type, 1);
  }
  PluginFieldCollection const collection{static_cast<int32_t>(fields.size()), fields.data()};
  std::unique_ptr<IPluginV3> plugin(creator.createPlugin(c.name.c_str(), &collection, TensorRTPhase::kBUILD));
  require(plugin != nullptr, "createPlugin failed");
  std::unique_ptr<IPluginV3> clone(plugin->clone());
  require(clone != nullptr, "clone failed");
  plugin.reset();  // a clone must not depend on what it was made from

  Built const built = build_phase(*clone, c);
  std::vector<Operand> const& outputs = built.outputs;
  std::unique_ptr<IPluginV3> const revived = revive(creator, *clone, c.damaged);
  clone.reset();
  for (size_t i = 0; i < outputs.size(); ++i) {
    std::cout << c.name << ' ' << i << ' ' << type_name(outputs[i].type);
    for (int32_t a = 0; a < outputs[i].dims.nbDims; ++a) std::cout << ' ' << outputs[i].dims.d[a];
    std::cout << '\n';
  }
  if (!describe_only) run_phase(*revived, c, built, folder);
}

std::map<std::string, IPluginCreatorV3One*> load(char const* path) {
  void* library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
  require(library != nullptr, std::string("dlopen: ") + (library == nullptr ? dlerror() : ""));
  using GetCreators = IPluginCreatorInterface* const* (*)(int32_t&);
  auto get = reinterpret_cast<GetCreators>(dlsym(library, "getCreators"));
  require(get != nullptr && dlsym(library, "setLoggerFinder") != nullptr, "not a plugin library");
  int32_t count = 0;
  IPluginCreatorInterface* const* list = get(count);
  std::map<std::string, IPluginCreatorV3One*> creators;
  for (int32_t i = 0; i < count; ++i) {
    auto* creator = static_cast<IPluginCreatorV3One*>(list[i]);
    creators[creator->getPluginName()] = creator;
  }
  return creators;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 3) {
    std::cerr << "usage: host_v3 LIBRARY CASES [--describe]\n";
    return 2;
  }
  bool const describe_only = argc > 3 && std::strcmp(argv[3], "--describe") == 0;
  std::string current = "loading";
  try {
    auto const creators = load(argv[1]);
    for (Case const& c : read_cases(argv[2])) {
      current = c.name;
      run_case(creators, c, argv[2], describe_only);
    }
  } catch (std::exception const& e) {
    std::cerr << current << ": " << e.what() << '\n';
    return 1;
  }
  return 0;
}
