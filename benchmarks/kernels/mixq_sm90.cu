// Every tile of the Hopper MixQ linear kernel behind one C function, for mixq_sm90.py: tiles are tried here before the
// library's policy chooses among them. Build: benchmarks/kernels/build_mixq_sm90.sh.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <iterator>

#include "mixq/linear/sm90_launch.cuh"

namespace {

using namespace graphopt;
using namespace graphopt::mixq;

constexpr Sm90Schedule kCooperative = Sm90Schedule::kCooperative;
constexpr Sm90Schedule kStaggered = Sm90Schedule::kStaggered;
constexpr Sm90Schedule kPingPong = Sm90Schedule::kPingPong;

/// As launch_sm90, with the number of cluster rows walked together if `group` is positive.
template <class T, class Tile>
Status run(LinearParams const& p, int multiprocessors, int group, cudaStream_t stream) {
  Sm90Args<T> args;
  GRAPHOPT_TRY((make_sm90_args<T, Tile>(p, multiprocessors, &args)));
  if (group > 0) args.grid.group = group;
  return launch_sm90_kernel<T, Tile>(args, multiprocessors, stream);
}

using Run = Status (*)(LinearParams const&, int, int, cudaStream_t);

struct Variant {
  char const* name;  // rows of X x rows of W, cluster along M x N, schedule
  Run half;
  Run bfloat16;
};

template <class Tile>
constexpr Variant variant(char const* name) {
  return {name, run<__half, Tile>, run<__nv_bfloat16, Tile>};
}

constexpr Variant kVariants[] = {
    variant<Sm90Tile<128, 256, 2, 1, kCooperative>>("128x256-2x1"),
    variant<Sm90Tile<128, 256, 2, 1, kStaggered>>("128x256-2x1-st"),
    variant<Sm90Tile<128, 256, 1, 1, kCooperative>>("128x256-1x1"),
    variant<Sm90Tile<256, 128, 1, 2, kCooperative>>("256x128-1x2"),
    variant<Sm90Tile<256, 128, 1, 2, kStaggered>>("256x128-1x2-st"),
    variant<Sm90Tile<256, 128, 2, 1, kCooperative>>("256x128-2x1"),
    variant<Sm90Tile<128, 192, 2, 1, kCooperative>>("128x192-2x1"),
    variant<Sm90Tile<128, 128, 2, 1, kCooperative>>("128x128-2x1"),
    variant<Sm90Tile<128, 128, 1, 1, kCooperative>>("128x128-1x1"),
    variant<Sm90Tile<128, 128, 2, 1, kPingPong>>("128x128-2x1-pp"),
    variant<Sm90Tile<128, 128, 1, 2, kPingPong>>("128x128-1x2-pp"),
    variant<Sm90Tile<64, 256, 2, 1, kPingPong>>("64x256-2x1-pp"),
    variant<Sm90Tile<128, 64, 1, 1, kCooperative>>("128x64-1x1"),
    variant<Sm90Tile<64, 64, 1, 1, kPingPong>>("64x64-1x1-pp"),
};

}  // namespace

#define GRAPHOPT_EXPORT extern "C" __attribute__((visibility("default")))

GRAPHOPT_EXPORT int sm90_variants() { return static_cast<int>(std::size(kVariants)); }

GRAPHOPT_EXPORT char const* sm90_name(int variant) { return kVariants[variant].name; }

GRAPHOPT_EXPORT char const* sm90_status(int status) { return status_string(static_cast<Status>(status)); }

/// Args:
///   bfloat16: T is bfloat16, else half.
///   group: cluster rows walked together, 0 for the default.
///   The rest: see LinearParams; device pointers and a cudaStream_t.
GRAPHOPT_EXPORT int sm90_linear(int variant, int bfloat16, int group, int64_t m, int64_t n, int64_t k, int64_t capacity,
                                void* xq, void* sx, void* xo, void* wq, void* sw, void* wo, void* bias, void* y,
                                void* stream) {
  DType const type = bfloat16 ? DType::kBFloat16 : DType::kFloat16;
  LinearParams const params{type, m, n, k, capacity, static_cast<int8_t const*>(xq), static_cast<float const*>(sx), xo,
                            static_cast<int8_t const*>(wq), static_cast<float const*>(sw), wo, bias, y};
  int multiprocessors = 0;
  if (Status const status = multiprocessor_count(&multiprocessors); status != Status::kOk) {
    return static_cast<int>(status);
  }
  Run const run = bfloat16 ? kVariants[variant].bfloat16 : kVariants[variant].half;
  return static_cast<int>(run(params, multiprocessors, group, static_cast<cudaStream_t>(stream)));
}
