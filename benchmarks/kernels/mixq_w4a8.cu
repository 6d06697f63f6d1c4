// Every shape of the w4a8 linear that is worth timing, by number: benchmarks/kernels/mixq_w4a8.py compares them.
#include "mixq/linear_w4a8/launch.cuh"
#include "mixq/linear_w4a8/sm90.h"

using namespace graphopt;
using namespace graphopt::mixq;

namespace graphopt::mixq {
extern template Status launch_linear_w4a8_sm90<__half>(LinearW4A8Params const&, Sm90W4Kernel, int, cudaStream_t);
extern template Status launch_linear_w4a8_sm90<__nv_bfloat16>(LinearW4A8Params const&, Sm90W4Kernel, int,
                                                              cudaStream_t);
}  // namespace graphopt::mixq

namespace {

using Launcher = Status (*)(LinearW4A8Params const&, int, cudaStream_t);

struct Variant {
  char const* name;
  int least_m, most_m;  // tokens between which it is worth timing; it computes any number
  Launcher launch;
};

template <auto launch_args>
Status of_args(LinearW4A8Params const& p, int, cudaStream_t stream) {
  return launch_args(w4a8_args<__half>(p), stream);
}

template <Sm90W4Kernel kernel>
Status wgmma(LinearW4A8Params const& p, int multiprocessors, cudaStream_t stream) {
  auto const launch =
      p.dtype == DType::kFloat16 ? launch_linear_w4a8_sm90<__half> : launch_linear_w4a8_sm90<__nv_bfloat16>;
  return supports_sm90(p) ? launch(p, kernel, multiprocessors, stream) : Status::kBadShape;
}

constexpr int kAny = 1 << 30;

constexpr Variant kVariants[] = {
    {"generic", 1, 0, of_args<launch_w4a8_generic<__half>>},
    {"small-8", 1, 8, of_args<launch_w4a8_small<8, Small8, __half>>},
    {"small-16", 1, 16, of_args<launch_w4a8_small<8, Small16, __half>>},
    {"small-32", 1, 64, of_args<launch_w4a8_small<8, Small32, __half>>},
    {"tile-64x64", 64, 128, of_args<launch_w4a8_tile<__half, W4Tile64x64>>},
    {"tile-128x128", 4096, kAny, of_args<launch_w4a8_tile<__half, W4Tile128x128>>},
    {"wgmma-64x64s2", 17, 128, wgmma<Sm90W4Kernel::kTile64x64Split>},
    {"wgmma-64x128", 17, 256, wgmma<Sm90W4Kernel::kTile64x128>},
    {"wgmma-64x128s2", 17, 128, wgmma<Sm90W4Kernel::kTile64x128Split>},
    {"wgmma-128x64", 65, 512, wgmma<Sm90W4Kernel::kTile128x64>},
    {"wgmma-128x64s2", 65, 256, wgmma<Sm90W4Kernel::kTile128x64Split>},
    {"wgmma-128x128", 65, kAny, wgmma<Sm90W4Kernel::kTile128x128>},
    {"wgmma-128x128s2", 65, 512, wgmma<Sm90W4Kernel::kTile128x128Split>},
    {"wgmma-256x128", 129, kAny, wgmma<Sm90W4Kernel::kTile256x128>},
};

}  // namespace

extern "C" {

int w4a8_variants() { return sizeof(kVariants) / sizeof(kVariants[0]); }
char const* w4a8_name(int variant) { return kVariants[variant].name; }
int w4a8_least_m(int variant) { return kVariants[variant].least_m; }
int w4a8_most_m(int variant) { return kVariants[variant].most_m; }
char const* w4a8_status(int status) { return status_string(static_cast<Status>(status)); }

/// variant: -1 lets the library choose; others are float16 only, but for those of wgmma, which also take bfloat16.
int w4a8_linear(int variant, int dtype, int64_t m, int64_t n, int64_t k, int64_t capacity, int64_t group, void* xq,
                void* sx, void* xo, void* wq4, void* sg, void* sw, void* wo, void* bias, void* y, void* stream) {
  LinearW4A8Params const p{static_cast<DType>(dtype),
                           m,
                           n,
                           k,
                           capacity,
                           group,
                           static_cast<int8_t const*>(xq),
                           static_cast<float const*>(sx),
                           xo,
                           static_cast<int8_t const*>(wq4),
                           static_cast<int8_t const*>(sg),
                           static_cast<float const*>(sw),
                           wo,
                           bias,
                           nullptr,
                           y};
  auto const queue = static_cast<cudaStream_t>(stream);
  if (variant < 0) return static_cast<int>(launch_linear_w4a8(p, queue));
  int multiprocessors = 0;
  if (Status const status = multiprocessor_count(&multiprocessors); status != Status::kOk) {
    return static_cast<int>(status);
  }
  return static_cast<int>(kVariants[variant].launch(p, multiprocessors, queue));
}
}
