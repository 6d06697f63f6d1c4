// What TensorRT 8.6 asks of a plugin library.
#include <NvInferRuntime.h>
#include <dlfcn.h>

#include <memory>
#include <vector>

#include "common/export.h"
#include "common/plugin_fields.h"
#include "common/plugin_v2.h"
#include "ops.h"

namespace graphopt {
namespace {

/// Creators live as long as the library: plugins refer to their op.
std::vector<nvinfer1::IPluginCreator*> const& creators() {
  static std::vector<std::unique_ptr<CreatorV2>> const owned = [] {
    std::vector<std::unique_ptr<CreatorV2>> list;
    for (OpClass& op : all_ops()) list.push_back(std::make_unique<CreatorV2>(std::move(op)));
    return list;
  }();
  static std::vector<nvinfer1::IPluginCreator*> const pointers = [] {
    std::vector<nvinfer1::IPluginCreator*> list;
    for (auto const& creator : owned) list.push_back(creator.get());
    return list;
  }();
  return pointers;
}

/// Logs through the TensorRT that the process has loaded.
class LoggerFinder final : public nvinfer1::ILoggerFinder {
 public:
  using GetLogger = nvinfer1::ILogger* (*)();
  explicit LoggerFinder(void* library) : get_(reinterpret_cast<GetLogger>(dlsym(library, "getLogger"))) {}
  nvinfer1::ILogger* findLogger() override { return get_ == nullptr ? nullptr : get_(); }

 private:
  GetLogger get_;
};

}  // namespace
}  // namespace graphopt

extern "C" GRAPHOPT_EXPORT nvinfer1::IPluginCreator* const* getPluginCreators(int32_t& count) {
  count = static_cast<int32_t>(graphopt::creators().size());
  return graphopt::creators().data();
}

extern "C" GRAPHOPT_EXPORT void setLoggerFinder(nvinfer1::ILoggerFinder* finder) {
  graphopt::set_logger_finder(finder);
}

/// Register with the TensorRT 8 that the process has loaded; returns how many creators were accepted. For hosts that open
/// plugin libraries themselves: loadLibrary of TensorRT 8.6.0 refuses even libraries that it can load, without a reason.
extern "C" GRAPHOPT_EXPORT int32_t graphopt_register_plugins() {
  using GetRegistry = nvinfer1::IPluginRegistry* (*)();
  void* library = dlopen("libnvinfer.so.8", RTLD_LAZY | RTLD_NOLOAD);
  if (library == nullptr) return 0;
  auto get_registry = reinterpret_cast<GetRegistry>(dlsym(library, "getPluginRegistry"));
  nvinfer1::IPluginRegistry* registry = get_registry == nullptr ? nullptr : get_registry();
  if (registry == nullptr) return 0;
  static graphopt::LoggerFinder finder(library);
  graphopt::set_logger_finder(&finder);
  int32_t accepted = 0;
  for (nvinfer1::IPluginCreator* creator : graphopt::creators()) {
    accepted += registry->registerCreator(*creator, graphopt::kPluginNamespace) ? 1 : 0;
  }
  return accepted;
}
