// Dispatch from a producer and a plan to a kernel, for one element type. Each launch_<type>.cu instantiates it, so that
// the types compile in parallel.
#pragma once

#include "common/launch.h"
#include "fused/kernel.cuh"
#include "fused/params.h"

namespace graphopt::fused {

template <class T, class Producer>
Status launch_producer(FusedArgs<T> const& args, FusedPlan const& plan, cudaStream_t stream) {
  dim3 const blocks(static_cast<unsigned>(plan.blocks));
  dim3 const threads(static_cast<unsigned>(plan.threads), static_cast<unsigned>(plan.rows_per_block));
  if constexpr (Producer::kNorm != Norm::kNone) {
    void (*rows)(FusedArgs<T>) = nullptr;
    if (plan.kernel == FusedKernel::kFewRows) rows = normalize_rows<T, Producer, kFewVecs, false>;
    if (plan.kernel == FusedKernel::kRows) rows = normalize_rows<T, Producer, kVecs, false>;
    if (plan.kernel == FusedKernel::kWarpRows) rows = normalize_rows<T, Producer, kVecs, true>;
    if (rows != nullptr) return launch_at(Start::kEarly, rows, blocks, threads, 0, stream, args);
  } else if (plan.kernel == FusedKernel::kFlat) {
    int64_t const vectors = args.rows * args.cols / Vec<T>::kSize;
    return launch_at(Start::kEarly, activate<T, Producer>, blocks, threads, 0, stream, args, vectors);
  }
  return launch_at(Start::kEarly, produce_reread_rows<T, Producer>, blocks, threads, 0, stream, args);
}

/// `plan` must be made for T.
template <class T>
Status launch_fused_typed(FusedParams const& p, FusedPlan const& plan, cudaStream_t stream) {
  FusedArgs<T> const args{static_cast<T const*>(p.x),
                          static_cast<T const*>(p.other),
                          static_cast<T const*>(p.gamma),
                          static_cast<T const*>(p.beta),
                          static_cast<T*>(p.y),
                          static_cast<T*>(p.sum),
                          p.rows,
                          static_cast<int32_t>(p.cols),
                          p.epsilon};
  switch (p.producer) {
    case Producer::kRmsNorm:
      return launch_producer<T, RmsNorm>(args, plan, stream);
    case Producer::kAddRmsNorm:
      return launch_producer<T, AddRmsNorm>(args, plan, stream);
    case Producer::kLayerNorm:
      return launch_producer<T, LayerNorm>(args, plan, stream);
    case Producer::kAddLayerNorm:
      return launch_producer<T, AddLayerNorm>(args, plan, stream);
    case Producer::kGatedSilu:
      return launch_producer<T, Gated<Silu>>(args, plan, stream);
    case Producer::kGatedGelu:
      return launch_producer<T, Gated<Gelu>>(args, plan, stream);
    case Producer::kGatedGeluTanh:
      return launch_producer<T, Gated<GeluTanh>>(args, plan, stream);
    case Producer::kGelu:
      return launch_producer<T, Activated<Gelu>>(args, plan, stream);
    case Producer::kGeluTanh:
      return launch_producer<T, Activated<GeluTanh>>(args, plan, stream);
    default:
      return Status::kBadOperation;
  }
}

}  // namespace graphopt::fused
