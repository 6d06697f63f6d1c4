// What TensorRT 10, 11 and RTX ask of a plugin library.
#include <NvInferRuntime.h>

#include <memory>
#include <vector>

#include "common/export.h"
#include "common/plugin_fields.h"
#include "common/plugin_v3.h"
#include "ops.h"

namespace graphopt {
namespace {

/// Creators live as long as the library: plugins refer to their op.
std::vector<nvinfer1::IPluginCreatorInterface*> const& creators() {
  static std::vector<std::unique_ptr<CreatorV3>> const owned = [] {
    std::vector<std::unique_ptr<CreatorV3>> list;
    for (OpClass& op : all_ops()) list.push_back(std::make_unique<CreatorV3>(std::move(op)));
    return list;
  }();
  static std::vector<nvinfer1::IPluginCreatorInterface*> const pointers = [] {
    std::vector<nvinfer1::IPluginCreatorInterface*> list;
    for (auto const& creator : owned) list.push_back(creator.get());
    return list;
  }();
  return pointers;
}

}  // namespace
}  // namespace graphopt

extern "C" GRAPHOPT_EXPORT nvinfer1::IPluginCreatorInterface* const* getCreators(int32_t& count) {
  count = static_cast<int32_t>(graphopt::creators().size());
  return graphopt::creators().data();
}

extern "C" GRAPHOPT_EXPORT void setLoggerFinder(nvinfer1::ILoggerFinder* finder) {
  graphopt::set_logger_finder(finder);
}

/// Of severities as ILogger numbers them; may be called from any thread until it is set to null again.
extern "C" GRAPHOPT_EXPORT void graphopt_plugins_set_log(graphopt::LogFunction function) {
  graphopt::g_log_function.store(function);
}
