// Norms and activations by themselves on the host, as a library with the call of the C API: graphopt_fused.
#include <exception>
#include <iostream>
#include <vector>

#include "instructions.h"
#undef __shared__
#define __shared__ static  // blocks run one after the other
// What follows is device code.
#include "fused/kernel.cuh"
#include "fused/policy.h"

namespace {

using namespace graphopt;
using namespace graphopt::fused;

constexpr int kMultiprocessors = 4;  // so that a few rows are many

template <class Kernel>
void run_blocks(FusedPlan const& plan, Kernel const& kernel) {
  emulate::grid_size = {static_cast<unsigned>(plan.blocks), 1, 1};
  emulate::block_size = {static_cast<unsigned>(plan.threads), static_cast<unsigned>(plan.rows_per_block), 1};
  for (unsigned block = 0; block < plan.blocks; ++block) {
    emulate::block_index = {block, 0, 0};
    emulate::Block(plan.threads * plan.rows_per_block, block, kernel).run();
  }
}

template <class T, class Producer>
void run_producer(FusedArgs<T> const& args, FusedPlan const& plan) {
  if constexpr (Producer::kNorm != Norm::kNone) {
    if (plan.kernel == FusedKernel::kFewRows)
      return run_blocks(plan, [&] { normalize_rows<T, Producer, kFewVecs, false>(args); });
    if (plan.kernel == FusedKernel::kRows)
      return run_blocks(plan, [&] { normalize_rows<T, Producer, kVecs, false>(args); });
    if (plan.kernel == FusedKernel::kWarpRows)
      return run_blocks(plan, [&] { normalize_rows<T, Producer, kVecs, true>(args); });
  } else if (plan.kernel == FusedKernel::kFlat) {
    return run_blocks(plan, [&] { activate<T, Producer>(args, args.rows * args.cols / Vec<T>::kSize); });
  }
  run_blocks(plan, [&] { produce_reread_rows<T, Producer>(args); });
}

template <class T>
bool run_typed(graphopt::Producer producer, FusedArgs<T> const& args, FusedPlan const& plan) {
  switch (producer) {
    case graphopt::Producer::kRmsNorm:
      return run_producer<T, RmsNorm>(args, plan), true;
    case graphopt::Producer::kAddRmsNorm:
      return run_producer<T, AddRmsNorm>(args, plan), true;
    case graphopt::Producer::kLayerNorm:
      return run_producer<T, LayerNorm>(args, plan), true;
    case graphopt::Producer::kAddLayerNorm:
      return run_producer<T, AddLayerNorm>(args, plan), true;
    case graphopt::Producer::kGatedSilu:
      return run_producer<T, Gated<Silu>>(args, plan), true;
    case graphopt::Producer::kGatedGelu:
      return run_producer<T, Gated<Gelu>>(args, plan), true;
    case graphopt::Producer::kGatedGeluTanh:
      return run_producer<T, Gated<GeluTanh>>(args, plan), true;
    case graphopt::Producer::kGelu:
      return run_producer<T, Activated<Gelu>>(args, plan), true;
    case graphopt::Producer::kGeluTanh:
      return run_producer<T, Activated<GeluTanh>>(args, plan), true;
    default:
      return false;
  }
}

template <class T>
bool run(int32_t producer, int64_t rows, int64_t cols, void const* x, void const* other, void const* gamma,
         void const* beta, float epsilon, void* y, void* sum) {
  bool aligned = true;
  for (void const* p : {x, other, gamma, beta, static_cast<void const*>(y), static_cast<void const*>(sum)}) {
    aligned = aligned && reinterpret_cast<uintptr_t>(p) % 16 == 0;
  }
  auto const kind = static_cast<graphopt::Producer>(producer);
  FusedPlan const plan = plan_fused({kind, rows, cols, static_cast<int>(sizeof(T)), aligned}, kMultiprocessors);
  FusedArgs<T> const args{static_cast<T const*>(x),    static_cast<T const*>(other), static_cast<T const*>(gamma),
                          static_cast<T const*>(beta), static_cast<T*>(y),           static_cast<T*>(sum),
                          rows,                        static_cast<int32_t>(cols),   epsilon};
  return rows == 0 || run_typed<T>(kind, args, plan);
}

}  // namespace

extern "C" int32_t graphopt_fused(int32_t producer, int32_t dtype, int64_t rows, int64_t cols, void const* x,
                                  void const* other, void const* gamma, void const* beta, float epsilon, void* y,
                                  void* sum, void*) {
  try {
    auto const of = dtype == 0 ? run<float> : dtype == 1 ? run<__half> : run<__nv_bfloat16>;
    return of(producer, rows, cols, x, other, gamma, beta, epsilon, y, sum) ? 0 : 5;
  } catch (std::exception const& error) {
    std::cerr << error.what() << '\n';
    return 1000;
  }
}

extern "C" char const* graphopt_status_string(int32_t) { return "refused"; }
