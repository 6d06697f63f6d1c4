// Dispatch from a producer and a plan to a kernel, for one element type. Each launch_<type>.cu instantiates it, so that
// the types compile in parallel.
#pragma once

#include "common/launch.h"
#include "mixq/quantize/kernel.cuh"
#include "mixq/quantize/params.h"

namespace graphopt::mixq {

template <class T, class Producer>
Status launch_producer(QuantizePlan const& plan, QuantizeArgs<T> const& args, cudaStream_t stream) {
  dim3 const grid(static_cast<unsigned>(plan.blocks));
  dim3 const block(static_cast<unsigned>(plan.threads), static_cast<unsigned>(plan.rows_per_block));
  size_t const shared = static_cast<size_t>(plan.shared_bytes);
  auto run = [&](void (*kernel)(QuantizeArgs<T>)) {
    return launch_at(Start::kEarly, kernel, grid, block, shared, stream, args);
  };
  switch (plan.kernel) {
    case QuantizeKernel::kWarpRow:
      return run(quantize_register_rows<T, Producer, true, kVecs, false>);
    case QuantizeKernel::kFewRow:
      return run(quantize_register_rows<T, Producer, false, kFewVecs, false>);
    case QuantizeKernel::kBlockRow:
      return run(quantize_register_rows<T, Producer, false, kVecs, true>);
    case QuantizeKernel::kReread:
      return run(quantize_reread_rows<T, Producer>);
  }
  return Status::kBadOperation;
}

/// `plan` must be made for T.
template <class T>
Status launch_quantize_typed(QuantizeParams const& p, QuantizePlan const& plan, cudaStream_t stream) {
  T const* const x = static_cast<T const*>(p.x);
  auto const cols = static_cast<int32_t>(p.cols);
  QuantizeArgs<T> const args{static_cast<int32_t>(p.rows),
                             cols,
                             static_cast<int32_t>(p.capacity),
                             x,
                             is_glu(p.producer) ? x + cols : static_cast<T const*>(p.other),
                             is_glu(p.producer) ? 2 * cols : cols,
                             static_cast<T const*>(p.gamma),
                             static_cast<T const*>(p.beta),
                             p.idx,
                             p.condition,
                             p.idx_changes,
                             p.epsilon,
                             plan.ahead,
                             p.bits == 8 ? kEightBitMax : kFourBitMax,
                             static_cast<int32_t>(p.bits == 8 ? p.cols : packed_bytes(p.cols)),
                             p.xq,
                             p.sx,
                             static_cast<T*>(p.xo),
                             static_cast<T*>(p.sum),
                             static_cast<T*>(p.y)};
  switch (p.producer) {
    case Producer::kPlain:
      return launch_producer<T, Plain>(plan, args, stream);
    case Producer::kRmsNorm:
      return launch_producer<T, RmsNorm>(plan, args, stream);
    case Producer::kAddRmsNorm:
      return launch_producer<T, AddRmsNorm>(plan, args, stream);
    case Producer::kLayerNorm:
      return launch_producer<T, LayerNorm>(plan, args, stream);
    case Producer::kAddLayerNorm:
      return launch_producer<T, AddLayerNorm>(plan, args, stream);
    case Producer::kGatedSilu:
    case Producer::kSwiGlu:
      return launch_producer<T, Gated<Silu>>(plan, args, stream);
    case Producer::kGatedGelu:
    case Producer::kGeGlu:
      return launch_producer<T, Gated<Gelu>>(plan, args, stream);
    case Producer::kGatedGeluTanh:
    case Producer::kGeGluTanh:
      return launch_producer<T, Gated<GeluTanh>>(plan, args, stream);
    case Producer::kGelu:
      return launch_producer<T, Activated<Gelu>>(plan, args, stream);
    case Producer::kGeluTanh:
      return launch_producer<T, Activated<GeluTanh>>(plan, args, stream);
  }
  return Status::kBadOperation;
}

}  // namespace graphopt::mixq
