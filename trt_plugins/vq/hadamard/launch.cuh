// Dispatch from a producer and a plan to a kernel, for one element type. Each launch_<type>.cu instantiates it, so that
// the types compile in parallel.
#pragma once

#include <algorithm>
#include <cmath>

#include "common/launch.h"
#include "vq/hadamard/kernel_rows.cuh"
#include "vq/hadamard/kernel_spans.cuh"
#include "vq/hadamard/params.h"

namespace graphopt::vq {

/// Spans of a row on a device with `shared_per_block` bytes.
inline SpanGrid span_grid(int64_t block, int64_t shared_per_block) {
  constexpr int64_t kMostSpan = 32768;  // channels whose float32 values fit the shared memory of the largest devices
  constexpr int64_t kLeastSpan = 2048;
  int64_t const most = shared_per_block > (kMostSpan + kMostSpan / 32) * 4 ? kMostSpan : kMostSpan / 2;
  int64_t const span = std::clamp(block, kLeastSpan, most);
  return {static_cast<int32_t>(span), static_cast<int32_t>(std::max<int64_t>(1, block / span))};
}

template <class T, class Producer>
Status launch_spans(HadamardArgs<T> args, int64_t rows, SpanGrid const& grid, cudaStream_t stream) {
  constexpr int64_t kMostRows = 65535;  // the launch grid's second dimension
  size_t const shared = static_cast<size_t>(grid.span + grid.span / 32) * sizeof(float);
  auto const blocks = static_cast<unsigned>(ceil_div(args.channels, grid.span));
  for (int64_t row = 0; row < rows; row += kMostRows) {
    dim3 const launch_grid(blocks, static_cast<unsigned>(std::min(rows - row, kMostRows)));
    GRAPHOPT_TRY(launch_at(Start::kEarly, hadamard_spans<T, Producer>, launch_grid, dim3(kSpanThreads), shared, stream,
                           args, grid));
    int64_t const step = kMostRows * args.k;
    args.x += step, args.z += kMostRows * args.channels;
    if (args.other != nullptr) args.other += step;
    if (args.sum != nullptr) args.sum += step;
    if (args.y != nullptr) args.y += step;
  }
  return Status::kOk;
}

inline Status prefer_shared_memory(void const* kernel) {
  GRAPHOPT_CUDA_TRY(cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout,
                                         cudaSharedmemCarveoutMaxShared));
  return Status::kOk;
}

template <class T, class Producer>
Status launch_producer(HadamardArgs<T> const& args, HadamardParams const& p, HadamardPlan const& plan,
                       int64_t shared_per_block, cudaStream_t stream) {
  if constexpr (sizeof(T) == 2) {
    if (plan.in_registers) {
      auto const channels = is_norm(p.producer) ? args.k : plan.unit_threads / kWarp * kWarpChannels;
      RowGrid const grid{static_cast<int32_t>(plan.units), plan.parts, channels, plan.block_warps};
      dim3 const threads(static_cast<unsigned>(plan.unit_threads), static_cast<unsigned>(plan.block_units));
      dim3 const blocks(static_cast<unsigned>(ceil_div<int64_t>(plan.units, plan.block_units)));
      void (*const kernel)(HadamardArgs<T>, RowGrid) = hadamard_rows<T, Producer>;
      // What is left to the driver leaves room for fewer blocks than registers do.
      if (plan.shared_bytes > 0) GRAPHOPT_TRY(prefer_shared_memory(reinterpret_cast<void const*>(kernel)));
      return launch_at(Start::kEarly, kernel, blocks, threads, static_cast<size_t>(plan.shared_bytes), stream, args,
                       grid);
    }
  }
  return launch_spans<T, Producer>(args, p.rows, span_grid(p.block, shared_per_block), stream);
}

/// `plan` must be made for T.
template <class T>
Status launch_hadamard_typed(HadamardParams const& p, HadamardPlan const& plan, int64_t shared_per_block,
                             cudaStream_t stream) {
  HadamardArgs<T> args{};
  args.x = static_cast<T const*>(p.x);
  args.other = static_cast<T const*>(p.other);
  args.gamma = static_cast<T const*>(p.gamma);
  args.beta = static_cast<T const*>(p.beta);
  args.signs = p.signs;
  args.z = static_cast<T*>(p.z);
  args.sum = static_cast<T*>(p.sum);
  args.y = static_cast<T*>(p.y);
  args.k = static_cast<int32_t>(p.k);
  args.channels = static_cast<int32_t>(p.channels);
  while (int64_t{1} << args.bits < p.block) ++args.bits;
  args.factor = static_cast<float>(1.0 / std::sqrt(static_cast<double>(p.block)));
  args.epsilon = p.epsilon;
  auto const run = [&](auto producer) {
    return launch_producer<T, decltype(producer)>(args, p, plan, shared_per_block, stream);
  };
  switch (p.producer) {
    case Producer::kPlain:
      return run(Plain{});
    case Producer::kRmsNorm:
      return run(RmsNorm{});
    case Producer::kAddRmsNorm:
      return run(AddRmsNorm{});
    case Producer::kLayerNorm:
      return run(LayerNorm{});
    case Producer::kAddLayerNorm:
      return run(AddLayerNorm{});
    case Producer::kGatedSilu:
      return run(Gated<Silu>{});
    case Producer::kGatedGelu:
      return run(Gated<Gelu>{});
    case Producer::kGatedGeluTanh:
      return run(Gated<GeluTanh>{});
    case Producer::kGelu:
      return run(Activated<Gelu>{});
    case Producer::kGeluTanh:
      return run(Activated<GeluTanh>{});
    default:
      return Status::kBadOperation;
  }
}

}  // namespace graphopt::vq
