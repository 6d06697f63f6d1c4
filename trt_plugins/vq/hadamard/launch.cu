// Checks the arguments and dispatches on the element type.
#include <algorithm>
#include <cmath>

#include "common/launch.h"
#include "vq/hadamard/kernel.cuh"
#include "vq/hadamard/params.h"

namespace graphopt::vq {
namespace {

constexpr int64_t kMostSpan = 32768;   // channels whose float32 values fit shared memory from compute capability 8.0 on
constexpr int64_t kSmallSpan = 16384;  // the same from 8.6 on, which have less
constexpr int64_t kLeastSpan = 2048;
constexpr int64_t kMostRows = 65535;  // the launch grid's second dimension

Status check(HadamardParams const& p) {
  constexpr int64_t kMostChannels = int64_t{1} << 30;
  if (!is_activation_type(p.dtype)) return Status::kBadType;
  if (p.rows < 0 || p.k < 1 || p.channels < p.k || p.block < 1 || p.block > kMostHadamardBlock)
    return Status::kBadShape;
  if ((p.block & (p.block - 1)) != 0 || p.channels % p.block != 0) return Status::kBadShape;
  if (p.channels > kMostChannels) return Status::kTooLarge;
  if (p.rows == 0) return Status::kOk;
  GRAPHOPT_TRY(check_pointer(p.x, element_size(p.dtype)));
  GRAPHOPT_TRY(check_pointer(p.signs, 1));
  return check_pointer(p.y, element_size(p.dtype));
}

template <class T>
Status launch_typed(HadamardParams const& p, cudaStream_t stream) {
  int major = 0, minor = 0;
  GRAPHOPT_TRY(compute_capability(&major, &minor));
  int64_t const most = minor == 0 && major < 10 ? kMostSpan : kSmallSpan;
  HadamardArgs<T> args{};
  args.signs = p.signs;
  args.k = static_cast<int32_t>(p.k);
  args.channels = static_cast<int32_t>(p.channels);
  args.span = static_cast<int32_t>(std::clamp(p.block, kLeastSpan, most));
  args.parts = static_cast<int32_t>(std::max<int64_t>(1, p.block / args.span));
  while (int64_t{1} << args.bits < std::min<int64_t>(p.block, args.span)) ++args.bits;
  args.factor = static_cast<float>(1.0 / std::sqrt(static_cast<double>(p.block)));
  size_t const shared = static_cast<size_t>(args.span + args.span / 32) * sizeof(float);
  auto const blocks = static_cast<unsigned>(ceil_div<int64_t>(p.channels, args.span));
  for (int64_t row = 0; row < p.rows; row += kMostRows) {
    args.x = static_cast<T const*>(p.x) + row * p.k;
    args.y = static_cast<T*>(p.y) + row * p.channels;
    dim3 const grid(blocks, static_cast<unsigned>(std::min(p.rows - row, kMostRows)));
    GRAPHOPT_TRY(launch(hadamard<T>, grid, dim3(kHadamardThreads), shared, stream, args));
  }
  return Status::kOk;
}

}  // namespace

Status launch_hadamard(HadamardParams const& params, cudaStream_t stream) {
  GRAPHOPT_TRY(check(params));
  if (params.rows == 0) return Status::kOk;
  return with_activation_type(params.dtype, [&](auto zero) { return launch_typed<decltype(zero)>(params, stream); });
}

}  // namespace graphopt::vq
