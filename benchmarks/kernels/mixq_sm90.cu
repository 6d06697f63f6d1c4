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
  char const* name;  // a tile of X x W rows [- cluster], fewTOKENS-sSPLIT[-overlap], or mma-gGROUPS for linear_small
  Sm90Choice choice;
  int groups = 0;  // of linear_small, which runs instead if positive
};

constexpr Variant few(char const* name, Sm90Kernel kernel, int split, bool overlap = false) {
  return {name, {kernel, split, overlap}};
}

constexpr Variant kVariants[] = {
    {"128x256-2x1", {Sm90Kernel::kTile128x256x2}},
    {"128x128-1x1", {Sm90Kernel::kTile128x128}},
    {"128x64-1x1", {Sm90Kernel::kTile128x64}},
    few("few16-s1", Sm90Kernel::kFew16, 1),
    few("few16-s2", Sm90Kernel::kFew16, 2),
    few("few16-s4", Sm90Kernel::kFew16, 4),
    few("few16-s8", Sm90Kernel::kFew16, 8),
    few("few16-s1-overlap", Sm90Kernel::kFew16, 1, true),
    few("few16-s4-overlap", Sm90Kernel::kFew16, 4, true),
    few("few32-s1", Sm90Kernel::kFew32, 1),
    few("few32-s2", Sm90Kernel::kFew32, 2),
    few("few32-s4", Sm90Kernel::kFew32, 4),
    few("few32-s8", Sm90Kernel::kFew32, 8),
    few("few64-s1", Sm90Kernel::kFew64, 1),
    few("few64-s2", Sm90Kernel::kFew64, 2),
    few("few64-s4", Sm90Kernel::kFew64, 4),
    few("few64-s8", Sm90Kernel::kFew64, 8),
    {"mma-g1", {}, 1},
    {"mma-g2", {}, 2},
    {"mma-g4", {}, 4},
};

template <class T>
Status run_small(LinearParams const& p, int groups, cudaStream_t stream) {
  LinearArgs<T> const args{p.m,
                           p.n,
                           static_cast<int32_t>(p.k),
                           static_cast<int32_t>(p.capacity),
                           p.xq,
                           p.sx,
                           static_cast<T const*>(p.xo),
                           p.wq,
                           p.sw,
                           static_cast<T const*>(p.wo),
                           static_cast<T const*>(p.bias),
                           static_cast<T*>(p.y)};
  switch (groups) {
    case 4:
      return launch_small<T, 4>(args, stream);
    case 2:
      return launch_small<T, 2>(args, stream);
    default:
      return launch_small<T, 1>(args, stream);
  }
}

template <class T>
Status run(LinearParams const& p, Variant const& variant, int multiprocessors, cudaStream_t stream) {
  if (variant.groups > 0) return run_small<T>(p, variant.groups, stream);
  return launch_linear_sm90<T>(p, variant.choice, multiprocessors, stream);
}

}  // namespace

namespace graphopt::mixq {
extern template Status launch_linear_sm90<__half>(LinearParams const&, Sm90Choice, int, cudaStream_t);
extern template Status launch_linear_sm90<__nv_bfloat16>(LinearParams const&, Sm90Choice, int, cudaStream_t);
}  // namespace graphopt::mixq

#define GRAPHOPT_EXPORT extern "C" __attribute__((visibility("default")))

GRAPHOPT_EXPORT int sm90_variants() { return static_cast<int>(std::size(kVariants)); }

GRAPHOPT_EXPORT char const* sm90_name(int variant) { return kVariants[variant].name; }

GRAPHOPT_EXPORT char const* sm90_status(int status) { return status_string(static_cast<Status>(status)); }

/// Args:
///   bfloat16: T is bfloat16, else half.
///   The rest: see LinearParams; device pointers and a cudaStream_t.
GRAPHOPT_EXPORT int sm90_linear(int variant, int bfloat16, int64_t m, int64_t n, int64_t k, int64_t capacity, void* xq,
                                void* sx, void* xo, void* wq, void* sw, void* wo, void* bias, void* y, void* stream) {
  DType const type = bfloat16 ? DType::kBFloat16 : DType::kFloat16;
  LinearParams const params{type, m, n, k, capacity, static_cast<int8_t const*>(xq), static_cast<float const*>(sx), xo,
                            static_cast<int8_t const*>(wq), static_cast<float const*>(sw), wo, bias, y};
  int multiprocessors = 0;
  if (Status const status = multiprocessor_count(&multiprocessors); status != Status::kOk) {
    return static_cast<int>(status);
  }
  auto const run_typed = bfloat16 ? run<__nv_bfloat16> : run<__half>;
  return static_cast<int>(run_typed(params, kVariants[variant], multiprocessors, static_cast<cudaStream_t>(stream)));
}
