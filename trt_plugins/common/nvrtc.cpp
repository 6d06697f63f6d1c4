#include "common/nvrtc.h"

#include <dlfcn.h>

#include <algorithm>
#include <cstdlib>
#include <sstream>

namespace graphopt {
namespace {

using Program = void*;
constexpr int kSuccess = 0;

/// Functions of libnvrtc, as nvrtc.h declares them; CUDA 12 and 13 agree about these.
struct Api {
  int (*create)(Program*, char const* source, char const* name, int headers, char const* const* texts,
                char const* const* names) = nullptr;
  int (*compile)(Program, int options, char const* const* values) = nullptr;
  int (*log_size)(Program, size_t*) = nullptr;
  int (*log)(Program, char*) = nullptr;
  int (*cubin_size)(Program, size_t*) = nullptr;
  int (*cubin)(Program, char*) = nullptr;
  int (*destroy)(Program*) = nullptr;
  int (*version)(int* major, int* minor) = nullptr;
  int (*arch_count)(int*) = nullptr;
  int (*archs)(int*) = nullptr;
  std::string problem;  // empty if it can be used
};

template <class Function>
bool bind(void* library, char const* name, Function* function) {
  *function = reinterpret_cast<Function>(dlsym(library, name));
  return *function != nullptr;
}

/// libnvrtc opens this library by its name alone, and finds it beside itself only if it is open already.
void open_builtins(Api const& api) {
  Dl_info info;
  int major = 0, minor = 0;
  if (dladdr(reinterpret_cast<void*>(api.create), &info) == 0 || api.version(&major, &minor) != kSuccess) return;
  std::string const path = info.dli_fname;
  std::string const folder = path.substr(0, path.rfind('/') + 1);
  dlopen((folder + "libnvrtc-builtins.so." + std::to_string(major) + "." + std::to_string(minor)).c_str(),
         RTLD_NOW | RTLD_LOCAL);
}

Api load() {
  Api api;
  char const* const given = std::getenv("GRAPHOPT_NVRTC");
  bool const is_given = given != nullptr && *given != '\0';
  std::vector<char const*> candidates = {"libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so",
                                         "/usr/local/cuda/lib64/libnvrtc.so"};
  if (is_given) candidates = {given};
  void* library = nullptr;
  for (char const* const name : candidates) {
    if (library == nullptr) library = dlopen(name, RTLD_NOW | RTLD_LOCAL);
  }
  bool const whole =
      library != nullptr && bind(library, "nvrtcCreateProgram", &api.create) &&
      bind(library, "nvrtcCompileProgram", &api.compile) && bind(library, "nvrtcGetProgramLogSize", &api.log_size) &&
      bind(library, "nvrtcGetProgramLog", &api.log) && bind(library, "nvrtcGetCUBINSize", &api.cubin_size) &&
      bind(library, "nvrtcGetCUBIN", &api.cubin) && bind(library, "nvrtcDestroyProgram", &api.destroy) &&
      bind(library, "nvrtcVersion", &api.version) && bind(library, "nvrtcGetNumSupportedArchs", &api.arch_count) &&
      bind(library, "nvrtcGetSupportedArchs", &api.archs);
  if (whole) {
    open_builtins(api);
    return api;
  }
  api.problem = is_given ? std::string(given) + ", which GRAPHOPT_NVRTC names, cannot be loaded"
                         : "libnvrtc was not found: install the wheel nvidia-cuda-nvrtc or a CUDA toolkit, or set "
                           "GRAPHOPT_NVRTC to its path";
  return api;
}

bool knows(Api const& api, int arch) {
  int count = 0;
  if (api.arch_count(&count) != kSuccess || count <= 0) return false;
  std::vector<int> archs(static_cast<size_t>(count));
  return api.archs(archs.data()) == kSuccess && std::find(archs.begin(), archs.end(), arch) != archs.end();
}

std::string log_of(Api const& api, Program program) {
  size_t size = 0;
  if (api.log_size(program, &size) != kSuccess || size == 0) return {};
  std::string text(size, '\0');
  if (api.log(program, text.data()) != kSuccess) return {};
  text.resize(size - 1);  // the final zero
  return text;
}

/// The number that begins right behind `key`; 0 where there is none.
int number_after(std::string const& line, std::string const& key) {
  size_t const at = line.find(key);
  return at == std::string::npos ? 0 : std::atoi(line.c_str() + at + key.size());
}

/// Kernels that the assembler's report names, each followed by "N bytes spill stores" and "Used N registers".
std::vector<NvrtcKernel> kernels_of(std::string const& log) {
  std::vector<NvrtcKernel> kernels;
  std::istringstream lines(log);
  for (std::string line; std::getline(lines, line);) {
    std::string const entry = "Compiling entry function '";
    if (size_t const at = line.find(entry); at != std::string::npos) {
      size_t const begin = at + entry.size();
      kernels.push_back({line.substr(begin, line.find('\'', begin) - begin), 0, 0});
    } else if (!kernels.empty() && line.find("spill stores") != std::string::npos) {
      kernels.back().spilled_bytes = number_after(line, "stack frame, ") + number_after(line, "spill stores, ");
    } else if (!kernels.empty() && line.find("Used ") != std::string::npos) {
      kernels.back().registers = number_after(line, "Used ");
    }
  }
  return kernels;
}

}  // namespace

bool nvrtc_compile(std::string const& source, std::vector<NvrtcHeader> const& headers, int arch, NvrtcResult* result,
                   std::string* problem) {
  static Api const api = load();
  *problem = api.problem;
  if (!problem->empty()) return false;
  if (!knows(api, arch)) {
    *problem =
        "this libnvrtc does not know compute capability " + std::to_string(arch / 10) + "." + std::to_string(arch % 10);
    return false;
  }
  std::vector<char const*> names, texts;
  for (NvrtcHeader const& header : headers) names.push_back(header.name), texts.push_back(header.text);
  std::string const target = "--gpu-architecture=sm_" + std::to_string(arch);
  char const* const options[] = {target.c_str(), "--std=c++17", "--device-as-default-execution-space",
                                 "--ptxas-options=-v"};
  Program program = nullptr;
  int status =
      api.create(&program, source.c_str(), "generated.cu", static_cast<int>(names.size()), texts.data(), names.data());
  if (status == kSuccess) status = api.compile(program, static_cast<int>(std::size(options)), options);
  std::string const log = program == nullptr ? std::string() : log_of(api, program);
  size_t size = 0;
  if (status == kSuccess) status = api.cubin_size(program, &size);
  result->cubin.assign(size, '\0');
  if (status == kSuccess) status = api.cubin(program, result->cubin.data());
  if (program != nullptr) api.destroy(&program);
  result->kernels = kernels_of(log);
  if (status != kSuccess) *problem = "libnvrtc failed with code " + std::to_string(status) + ": " + log.substr(0, 1000);
  return status == kSuccess;
}

}  // namespace graphopt
