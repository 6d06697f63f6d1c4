#include <deque>
#include <mutex>

#include "common/launch.h"
#include "vq/jit/kernels.h"
#include "vq/jit/launch.h"
#include "vq/linear/launch_few.cuh"

namespace graphopt::vq::jit {
namespace {

struct Loaded {
  Format format;
  Image image;
  void const* few8 = nullptr;
  void const* few16 = nullptr;
};

std::mutex g_mutex;
std::deque<Loaded> g_loaded;  // whose addresses stay; never unloaded: engines come and go, and share them

/// CUDA keeps the library for every device and context of the process.
Status load(Loaded* loaded) {
  cudaLibrary_t library;
  GRAPHOPT_CUDA_TRY(
      cudaLibraryLoadData(&library, loaded->image.cubin.data(), nullptr, nullptr, 0, nullptr, nullptr, 0));
  cudaKernel_t few8, few16 = nullptr;
  GRAPHOPT_CUDA_TRY(cudaLibraryGetKernel(&few8, library, kFew8));
  if (loaded->image.spec.tokens > 8) GRAPHOPT_CUDA_TRY(cudaLibraryGetKernel(&few16, library, kFew16));
  loaded->few16 = few16;
  loaded->few8 = few8;
  return Status::kOk;
}

/// The newest machine code that runs on a device: of its major number, and of no later minor one.
Loaded* find(Format const& format, int arch) {
  Loaded* best = nullptr;
  for (Loaded& loaded : g_loaded) {
    int const of = loaded.image.spec.arch;
    if (!(loaded.format == format) || of / 10 != arch / 10 || of > arch) continue;
    if (best == nullptr || of > best->image.spec.arch) best = &loaded;
  }
  return best;
}

/// Blocks of a cluster that share K: two, where one each would leave multiprocessors idle.
int split_of(LinearParams const& p, Device const& device, int tokens) {
  if (!device.sm90) return 1;
  int64_t const blocks = ceil_div<int64_t>(p.n, kRows) * ceil_div<int64_t>(p.m, tokens);
  int64_t const one = ceil_div<int64_t>(blocks, device.multiprocessors);
  int64_t const two = ceil_div<int64_t>(2 * blocks, device.multiprocessors);
  return two < 2 * one ? 2 : 1;
}

template <class T>
Status launch_typed(LinearParams const& p, Device const& device, Loaded const& loaded, cudaStream_t stream) {
  constexpr int kFewTokens = 8;
  Spec const& spec = loaded.image.spec;
  int const tokens = p.m > kFewTokens ? spec.tokens : kFewTokens;
  FewSizes const sizes{spec.chunk(loaded.format),      spec.groups, tokens, kRows, 32 * kRowWarps * spec.groups,
                       spec.table_bytes(loaded.format)};
  void const* const kernel = tokens > kFewTokens ? loaded.few16 : loaded.few8;
  return launch_few<T>(kernel, sizes, p, split_of(p, device, tokens), spec.panel_bytes(loaded.format), stream);
}

}  // namespace

Status install(std::string const& bytes) {
  Kernels kernels;
  GRAPHOPT_TRY(decode(bytes, &kernels));
  std::lock_guard<std::mutex> const lock(g_mutex);
  for (Image& image : kernels.images) {
    Loaded const* const known = find(kernels.format, image.spec.arch);
    if (known != nullptr && known->image.spec.arch == image.spec.arch) continue;
    g_loaded.push_back({kernels.format, std::move(image)});
  }
  // Before anything is captured into a graph, if there is a device already; else at the first launch.
  int major = 0, minor = 0;
  if (compute_capability(&major, &minor) != Status::kOk) {
    cudaGetLastError();  // a machine without a GPU may build engines; leave no error behind
    return Status::kOk;
  }
  Loaded* const loaded = find(kernels.format, 10 * major + minor);
  return loaded == nullptr || loaded->few8 != nullptr ? Status::kOk : load(loaded);
}

Status launch(LinearParams const& params, Device const& device, cudaStream_t stream, bool* launched) {
  *launched = false;
  Format format;
  if (!format_of(params, &format) || !takes_vectors(params)) return Status::kOk;
  Loaded* loaded = nullptr;
  {
    std::lock_guard<std::mutex> const lock(g_mutex);
    if (g_loaded.empty()) return Status::kOk;
    int major = 0, minor = 0;
    GRAPHOPT_TRY(compute_capability(&major, &minor));
    loaded = find(format, 10 * major + minor);
    if (loaded == nullptr) return Status::kOk;
    if (loaded->few8 == nullptr) GRAPHOPT_TRY(load(loaded));
  }
  *launched = true;
  return format.dtype == DType::kFloat16 ? launch_typed<__half>(params, device, *loaded, stream)
                                         : launch_typed<__nv_bfloat16>(params, device, *loaded, stream);
}

}  // namespace graphopt::vq::jit
