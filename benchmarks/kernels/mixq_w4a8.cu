// Every shape of the w4a8 linear that is worth timing, by number: benchmarks/kernels/mixq_w4a8.py compares them.
#include "mixq/linear_w4a8/launch.cuh"

using namespace graphopt;
using namespace graphopt::mixq;

namespace {

using Launcher = Status (*)(LinearW4A8Args<__half> const&, cudaStream_t);

struct Variant {
  char const* name;
  int most_m;  // tokens above which it makes no sense
  Launcher launch;
};

template <int kRowTiles, int kTokenTiles, int kDepth, int kWarps>
constexpr Launcher kSmall = launch_w4a8_small<__half, SmallShape<kRowTiles, kTokenTiles, kDepth, kWarps>>;

constexpr int kAny = 1 << 30;

constexpr Variant kVariants[] = {
    {"generic", 64, launch_w4a8_generic<__half>},
    {"small-r1t1d2w8", 8, kSmall<1, 1, 2, 8>},
    {"small-r1t1d3w8", 8, kSmall<1, 1, 3, 8>},
    {"small-r1t1d4w8", 8, kSmall<1, 1, 4, 8>},
    {"small-r1t1d4w4", 8, kSmall<1, 1, 4, 4>},
    {"small-r1t1d2w12", 8, kSmall<1, 1, 2, 12>},
    {"small-r2t1d1w8", 8, kSmall<2, 1, 1, 8>},
    {"small-r2t1d2w8", 8, kSmall<2, 1, 2, 8>},
    {"small-r1t2d1w8", 16, kSmall<1, 2, 1, 8>},
    {"small-r1t2d2w8", 16, kSmall<1, 2, 2, 8>},
    {"small-r1t2d3w8", 16, kSmall<1, 2, 3, 8>},
    {"small-r2t2d1w8", 16, kSmall<2, 2, 1, 8>},
    {"small-r2t2d2w8", 16, kSmall<2, 2, 2, 8>},
    {"small-r1t4d1w8", 64, kSmall<1, 4, 1, 8>},
    {"small-r1t4d2w8", 64, kSmall<1, 4, 2, 8>},
    {"small-r2t4d1w8", 64, kSmall<2, 4, 1, 8>},
    {"tile-64x64", kAny, launch_w4a8_tile<__half, W4Tile64x64>},
    {"tile-128x128", kAny, launch_w4a8_tile<__half, W4Tile128x128>},
    {"tile-256x128", kAny, launch_w4a8_tile<__half, W4Tile256x128>},
};

}  // namespace

extern "C" {

int w4a8_variants() { return sizeof(kVariants) / sizeof(kVariants[0]); }
char const* w4a8_name(int variant) { return kVariants[variant].name; }
int w4a8_most_m(int variant) { return kVariants[variant].most_m; }
char const* w4a8_status(int status) { return status_string(static_cast<Status>(status)); }

/// variant: -1 lets the library choose; others are float16 only.
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
                           y};
  auto const queue = static_cast<cudaStream_t>(stream);
  if (variant < 0) return static_cast<int>(launch_linear_w4a8(p, queue));
  return static_cast<int>(kVariants[variant].launch(w4a8_args<__half>(p), queue));
}
}
