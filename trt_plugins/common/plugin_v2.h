// IPluginV2DynamicExt (TensorRT 8.6) for every OpClass.
//
// TensorRT 8 chooses element types by itself: INT8 tensors are values that it has quantized, with a scale, and FP16 and
// FP32 are interchangeable. Ours are neither. So (1) INT8 operands cross the graph as INT32, four bytes to an element,
// which TensorRT never converts; their last dimension is a quarter, and must divide; and (2) the field `type_id` of each
// node (the value of nvinfer1::DataType: 0 for FP32, 1 for FP16) fixes the activation type T.
// graphopt/engine/tensorrt8.py prepares models accordingly.
#pragma once

#include <NvInferRuntime.h>

#include <vector>

#include "common/device_state.h"
#include "common/op.h"

namespace graphopt {

class PluginV2 final : public nvinfer1::IPluginV2DynamicExt {
 public:
  /// `op` must outlive the plugin. `activation` is kFLOAT or kHALF.
  PluginV2(OpClass const& op, Attributes const& attributes, nvinfer1::DataType activation);

  // IPluginV2
  char const* getPluginType() const noexcept override { return op_.name; }
  char const* getPluginVersion() const noexcept override { return kPluginVersion; }
  int32_t getNbOutputs() const noexcept override { return static_cast<int32_t>(signature_.outputs.size()); }
  int32_t initialize() noexcept override;
  void terminate() noexcept override {}
  size_t getSerializationSize() const noexcept override;
  void serialize(void* buffer) const noexcept override;
  void destroy() noexcept override { delete this; }
  void setPluginNamespace(char const*) noexcept override {}
  char const* getPluginNamespace() const noexcept override { return kPluginNamespace; }

  // IPluginV2Ext
  nvinfer1::DataType getOutputDataType(int32_t index, nvinfer1::DataType const* input_types,
                                       int32_t input_count) const noexcept override;

  // IPluginV2DynamicExt
  nvinfer1::IPluginV2DynamicExt* clone() const noexcept override;
  nvinfer1::DimsExprs getOutputDimensions(int32_t index, nvinfer1::DimsExprs const* inputs, int32_t input_count,
                                          nvinfer1::IExprBuilder& builder) noexcept override;
  bool supportsFormatCombination(int32_t position, nvinfer1::PluginTensorDesc const* operands, int32_t input_count,
                                 int32_t output_count) noexcept override;
  void configurePlugin(nvinfer1::DynamicPluginTensorDesc const* inputs, int32_t input_count,
                       nvinfer1::DynamicPluginTensorDesc const* outputs, int32_t output_count) noexcept override;
  size_t getWorkspaceSize(nvinfer1::PluginTensorDesc const* inputs, int32_t input_count,
                          nvinfer1::PluginTensorDesc const* outputs, int32_t output_count) const noexcept override;
  int32_t enqueue(nvinfer1::PluginTensorDesc const* input_descs, nvinfer1::PluginTensorDesc const* output_descs,
                  void const* const* inputs, void* const* outputs, void* workspace,
                  cudaStream_t stream) noexcept override;

 private:
  bool has_operands(int32_t input_count, int32_t output_count) const;
  TensorView input_view(size_t index, void const* data, nvinfer1::Dims const& dims) const;
  bool outputs_fit(TensorView const* inputs, TensorView const* outputs) const;

  OpClass const& op_;
  Attributes attributes_;
  nvinfer1::DataType activation_;
  Signature signature_;
  DeviceState state_;  // of the context that this plugin was cloned for
};

class CreatorV2 final : public nvinfer1::IPluginCreator {
 public:
  explicit CreatorV2(OpClass op);

  nvinfer1::IPluginV2* createPlugin(char const* name, nvinfer1::PluginFieldCollection const* fields) noexcept override;
  nvinfer1::IPluginV2* deserializePlugin(char const* name, void const* data, size_t length) noexcept override;
  nvinfer1::PluginFieldCollection const* getFieldNames() noexcept override { return &field_names_; }
  char const* getPluginName() const noexcept override { return op_.name; }
  char const* getPluginVersion() const noexcept override { return kPluginVersion; }
  void setPluginNamespace(char const*) noexcept override {}
  char const* getPluginNamespace() const noexcept override { return kPluginNamespace; }

 private:
  OpClass op_;
  std::vector<nvinfer1::PluginField> fields_;
  nvinfer1::PluginFieldCollection field_names_;
};

}  // namespace graphopt
