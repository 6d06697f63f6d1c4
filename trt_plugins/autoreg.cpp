// libgraphopt_plugins_autoreg: registers the creators of libgraphopt_plugins with the TensorRT that the process has
// loaded. For hosts that only dlopen plugin libraries (Triton, LD_PRELOAD, polygraphy --plugins); it must be a library
// of its own, because TensorRT's load_library refuses creators that registered themselves.
#include <NvInferRuntime.h>
#include <dlfcn.h>

#include <cstdio>

#include "common/export.h"
#include "common/op.h"

extern "C" nvinfer1::IPluginCreatorInterface* const* getCreators(int32_t& count);
extern "C" void setLoggerFinder(nvinfer1::ILoggerFinder* finder);

namespace {

/// TensorRT's registry is an abstract class whose first functions, those of IPluginV2, are gone from TensorRT 11 and
/// TensorRT-RTX: calling it through the class of one release's header would call another function in the other. So the
/// one function needed, registerCreator(IPluginCreatorInterface&, char const*), is taken by its place in the table.
struct TensorRt {
  char const* library;
  int register_creator;  // entry of the registry's virtual table
};

constexpr TensorRt kTensorRts[] = {{"libnvinfer.so.11", 8}, {"libnvinfer.so.10", 12}, {"libtensorrt_rtx.so.1", 8}};

bool register_creator(void* registry, int entry, nvinfer1::IPluginCreatorInterface* creator) {
  using Register = bool (*)(void*, nvinfer1::IPluginCreatorInterface*, char const*);
  auto const table = *static_cast<Register**>(registry);
  return table[entry](registry, creator, graphopt::kPluginNamespace);
}

/// Logs through the registry's TensorRT, as load_library would set up.
class LoggerFinder final : public nvinfer1::ILoggerFinder {
 public:
  using GetLogger = nvinfer1::ILogger* (*)();
  explicit LoggerFinder(void* library) : get_(reinterpret_cast<GetLogger>(dlsym(library, "getLogger"))) {}
  nvinfer1::ILogger* findLogger() override { return get_ == nullptr ? nullptr : get_(); }

 private:
  GetLogger get_;
};

}  // namespace

/// Register with every TensorRT in the process; returns how many creators were accepted. Creators that a registry
/// already has do not count. Call it again after loading TensorRT if this library came first.
extern "C" GRAPHOPT_EXPORT int32_t graphopt_register_plugins() {
  using GetRegistry = void* (*)();
  int32_t accepted = 0;
  for (TensorRt const& tensorrt : kTensorRts) {
    void* library = dlopen(tensorrt.library, RTLD_LAZY | RTLD_NOLOAD);
    if (library == nullptr) continue;
    auto get_registry = reinterpret_cast<GetRegistry>(dlsym(library, "getPluginRegistry"));
    void* registry = get_registry == nullptr ? nullptr : get_registry();
    if (registry == nullptr) continue;
    static LoggerFinder finder(library);
    setLoggerFinder(&finder);
    int32_t count = 0;
    nvinfer1::IPluginCreatorInterface* const* creators = getCreators(count);
    for (int32_t i = 0; i < count; ++i) {
      accepted += register_creator(registry, tensorrt.register_creator, creators[i]) ? 1 : 0;
    }
  }
  return accepted;
}

namespace {

struct AtLoad {
  AtLoad() {
    if (graphopt_register_plugins() > 0) return;
    std::fputs("graphopt: no plugin was registered; load TensorRT before libgraphopt_plugins_autoreg.so\n", stderr);
  }
} const at_load;

}  // namespace
