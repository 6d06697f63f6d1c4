// Launch of a chosen kernel. Each launch_<type>.cu instantiates one type of x, so that they compile in parallel.
#pragma once

#include <algorithm>

#include "common/launch.h"
#include "mant/linear/check.h"
#include "mant/linear/kernel_few.cuh"
#include "mant/linear/params.h"
#include "mant/linear/policy.h"

namespace graphopt::mant {

inline LinearArgs linear_args(LinearParams const& p) {
  int64_t const row_bytes = packed_bytes(p.k), group = effective_group(p);
  return {p.m,
          p.n,
          static_cast<int32_t>(p.k),
          static_cast<int32_t>(group),
          group_shift(p),
          static_cast<int32_t>((p.k + group - 1) / group),
          static_cast<int32_t>(row_bytes),
          static_cast<int32_t>(packed_bytes(p.n)),
          static_cast<int32_t>(p.scales),
          p.decode,
          p.dtype,
          p.x,
          p.decode == Decode::kFloat ? nullptr : p.sx,
          p.codes,
          p.types,
          static_cast<__half const*>(p.scale),
          p.decode == Decode::kSplit ? nullptr : p.table,
          p.bias,
          p.y};
}

/// T: what the products take.
template <class T, FewCodes kCodes, class Shape>
Status launch_few(LinearArgs const& args, cudaStream_t stream) {
  constexpr int64_t kMaxGridY = 65535;
  int64_t const across = ceil_div<int64_t>(args.n, Shape::kRows), down = ceil_div<int64_t>(args.m, Shape::kTokens);
  if (down > kMaxGridY) return Status::kTooLarge;
  dim3 const grid(static_cast<unsigned>(across), static_cast<unsigned>(down));
  using Layout = FewLayout<kCodes, Shape>;
  int limit = 0, multiprocessors = 0;
  GRAPHOPT_TRY(multiprocessor_count(&multiprocessors));
  GRAPHOPT_TRY(shared_memory_per_block(&limit));
  static_assert(Layout::shared_bytes(1) <= 99 * 1024, "what sm_86, sm_89 and sm_120 give a block");
  // Where no multiprocessor gets a second block, the first takes its place if the wait for a quantizing op, which keeps
  // the next call's blocks from starting under this one's, and a second tile of tokens make a block slow.
  bool const alone = kCodes != FewCodes::kFloat && Shape::kTokenTiles > 1 && across * down <= multiprocessors;
  int const most = Shape::kWarps * (alone ? Shape::kBlocks : 1);
  int const warps = std::min(most, (limit - Layout::shared_bytes(0)) / Layout::kRingBytes);
  return launch_at(Start::kEarly, linear_few<T, kCodes, Shape>, grid, dim3(static_cast<unsigned>(32 * warps)),
                   static_cast<size_t>(Layout::shared_bytes(warps)), stream, args);
}

template <class T, FewCodes kCodes>
Status launch_linear_few(LinearParams const& p, LinearKernel kernel, cudaStream_t stream) {
  LinearArgs const args = linear_args(p);
  if constexpr (kCodes == FewCodes::kSteps) {
    return kernel == LinearKernel::kFew8 ? launch_few<T, kCodes, Few8Steps>(args, stream) : Status::kBadOperation;
  } else {
    switch (kernel) {
      case LinearKernel::kGeneric:
        break;
      case LinearKernel::kFew8:
        return launch_few<T, kCodes, Few8>(args, stream);
      case LinearKernel::kFew16:
        return launch_few<T, kCodes, Few16>(args, stream);
      case LinearKernel::kFew16Wide:
        if constexpr (kCodes == FewCodes::kPairs) return launch_few<T, kCodes, Few16Wide>(args, stream);
        break;
      case LinearKernel::kFew32:
        return launch_few<T, kCodes, Few32>(args, stream);
    }
    return Status::kBadOperation;
  }
}

}  // namespace graphopt::mant
