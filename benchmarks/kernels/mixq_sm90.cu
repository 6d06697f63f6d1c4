// Every kernel that MixQLinear could run on Hopper behind one C function, for mixq_sm90.py, which measures what the
// policy of the library chooses by. Build: benchmarks/kernels/build_mixq_sm90.sh.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <iterator>

#include "mixq/linear/launch.cuh"
#include "mixq/linear/sm90.h"

namespace {

using namespace graphopt;
using namespace graphopt::mixq;

struct Variant {
  char const* name;  // "small", or a tile of X x W rows - blocks of a cluster
  Sm90Kernel kernel;
};

constexpr Variant kVariants[] = {
    {"small", Sm90Kernel::kSmallM},
    {"128x64-1x1", Sm90Kernel::kTile128x64},
    {"128x128-1x1", Sm90Kernel::kTile128x128},
    {"128x256-2x1", Sm90Kernel::kTile128x256x2},
};

}  // namespace

namespace graphopt::mixq {
extern template Status launch_linear_sm90<__half>(LinearParams const&, Sm90Kernel, int, cudaStream_t);
extern template Status launch_linear_sm90<__nv_bfloat16>(LinearParams const&, Sm90Kernel, int, cudaStream_t);
}  // namespace graphopt::mixq

template <class T>
static Status run(LinearParams const& p, Sm90Kernel kernel, int multiprocessors, cudaStream_t stream) {
  if (kernel == Sm90Kernel::kSmallM) return launch_small(linear_args<T>(p), stream);
  return launch_linear_sm90<T>(p, kernel, multiprocessors, stream);
}

#define GRAPHOPT_EXPORT extern "C" __attribute__((visibility("default")))

GRAPHOPT_EXPORT int sm90_variants() { return static_cast<int>(std::size(kVariants)); }

GRAPHOPT_EXPORT char const* sm90_name(int variant) { return kVariants[variant].name; }

GRAPHOPT_EXPORT char const* sm90_status(int status) { return status_string(static_cast<Status>(status)); }

/// The name of the kernel that the library would run.
GRAPHOPT_EXPORT char const* sm90_pick(int64_t m, int64_t n, int64_t k, int64_t capacity, int multiprocessors) {
  Sm90Kernel const kernel = pick_sm90(m, n, k, capacity, multiprocessors);
  for (Variant const& variant : kVariants) {
    if (variant.kernel == kernel) return variant.name;
  }
  return nullptr;
}

/// Args:
///   bfloat16: T is bfloat16, else half.
///   The rest: see LinearParams; device pointers and a cudaStream_t.
GRAPHOPT_EXPORT int sm90_linear(int variant, int bfloat16, int64_t m, int64_t n, int64_t k, int64_t capacity, void* xq,
                                void* sx, void* xo, void* wq, void* sw, void* wo, void* bias, void* y, void* stream) {
  DType const type = bfloat16 ? DType::kBFloat16 : DType::kFloat16;
  LinearParams const params{type, m, n, k, capacity, static_cast<int8_t const*>(xq), static_cast<float const*>(sx), xo,
                            static_cast<int8_t const*>(wq), static_cast<float const*>(sw), wo, bias, nullptr, y};
  int multiprocessors = 0;
  if (Status const status = multiprocessor_count(&multiprocessors); status != Status::kOk) {
    return static_cast<int>(status);
  }
  auto const run_typed = bfloat16 ? run<__nv_bfloat16> : run<__half>;
  Sm90Kernel const kernel = kVariants[variant].kernel;
  return static_cast<int>(run_typed(params, kernel, multiprocessors, static_cast<cudaStream_t>(stream)));
}
