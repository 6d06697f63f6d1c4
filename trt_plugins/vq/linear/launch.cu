// Checks the arguments, plans and dispatches.
#include <algorithm>

#include "common/gemm/gemm.h"
#include "common/launch.h"
#include "vq/jit/launch.h"
#include "vq/linear/kernel_generic.cuh"
#include "vq/linear/launch.h"
#include "vq/linear/params.h"
#include "vq/linear/plan.h"

namespace graphopt::vq {
namespace {

Status check(LinearParams const& p) {
  constexpr int64_t kMostTokens = int64_t{1} << 18;  // the launch grids' second dimension, times the fewest tokens
  constexpr int64_t kMostChannels = int64_t{1} << 30;
  if (!is_activation_type(p.dtype)) return Status::kBadType;
  if (p.m < 0 || p.n < 1 || p.k < 1 || p.tile_rows < 1 || p.tile_columns < 1) return Status::kBadShape;
  bool const vector = p.vector == 2 || p.vector == 4 || p.vector == 8 || p.vector == 16;
  if (!vector || p.bits < 1 || p.bits > kMostBits || p.residuals < 1 || p.residuals > kMostResiduals) {
    return Status::kBadShape;
  }
  if (p.lattice() ? p.vector != 8 || p.bits != 16 : p.tile_columns < p.k && p.tile_columns % p.vector != 0) {
    return Status::kBadShape;
  }
  if (p.m > kMostTokens || p.k > kMostChannels || p.n > kMostChannels) return Status::kTooLarge;
  if (p.m == 0) return Status::kOk;
  GRAPHOPT_TRY(check_pointer(p.x, element_size(p.dtype)));
  GRAPHOPT_TRY(check_pointer(p.codes, 1));
  if (p.lattice()) {
    GRAPHOPT_TRY(check_pointer(p.ratios, sizeof(float)));
  } else {
    GRAPHOPT_TRY(check_pointer(p.codebooks, sizeof(__half)));
  }
  GRAPHOPT_TRY(check_pointer(p.scale, sizeof(float)));
  GRAPHOPT_TRY(check_pointer(p.bias, element_size(p.dtype)));
  return check_pointer(p.y, element_size(p.dtype));
}

template <class T>
Status launch_generic(LinearParams const& p, cudaStream_t stream) {
  dim3 const grid(static_cast<unsigned>(ceil_div<int64_t>(p.n, kGenericThreads / kWarp)),
                  static_cast<unsigned>(ceil_div<int64_t>(p.m, kGenericTokens)));
  return launch(linear_generic<T>, grid, dim3(kGenericThreads), 0, stream, p);
}

#ifdef GRAPHOPT_SM90A
/// Slab after slab. Where two take turns, one is expanded while the one before is multiplied by, as far as
/// multiprocessors have nothing to do there; else behind it.
Status launch_expanded(LinearParams const& p, Plan const& plan, cudaStream_t stream) {
  Device device{};
  GRAPHOPT_TRY(current_device(&device));
  bool const half = p.dtype == DType::kFloat16;
  auto const expand = half ? launch_expand_typed<__half> : launch_expand_typed<__nv_bfloat16>;
  int64_t const element = static_cast<int64_t>(element_size(p.dtype));
  int const turns = slab_turns(p, plan.slab_rows);
  int turn = 0;
  for (int64_t row = 0; row < p.n; row += plan.slab_rows, turn = turns - 1 - turn) {
    char* const w = static_cast<char*>(p.workspace) + turn * slab_pitch(p, plan.slab_rows);
    auto* const factors = reinterpret_cast<float*>(w + slab_bytes(p, plan.slab_rows));
    Slab const slab{row, std::min(plan.slab_rows, p.n - row), w, factors, /*beside=*/turns > 1 && row > 0};
    GRAPHOPT_TRY(expand(p, slab, device, stream));
    GemmParams const gemm{/*operands=*/p.dtype,
                          /*dtype=*/p.dtype,
                          /*m=*/p.m,
                          /*n=*/slab.rows,
                          /*k=*/p.k,
                          /*x=*/p.x,
                          /*w=*/w,
                          /*sx=*/nullptr,
                          /*sw=*/p.lattice() ? factors : p.scale + row,
                          /*bias=*/static_cast<char const*>(p.bias) + row * element,
                          /*y=*/static_cast<char*>(p.y) + row * element,
                          /*y_stride=*/p.n};
    GRAPHOPT_TRY(launch_gemm(gemm, device.multiprocessors, stream));
  }
  return Status::kOk;
}
#endif

}  // namespace

Status current_device(Device* device) {
  GRAPHOPT_TRY(multiprocessor_count(&device->multiprocessors));
  int shared_bytes = 0;
  GRAPHOPT_TRY(shared_memory_per_block(&shared_bytes));
  device->shared_bytes = shared_bytes;
  device->sm90 = false;
#ifdef GRAPHOPT_SM90A
  GRAPHOPT_TRY(is_sm90(&device->sm90));
#endif
  return Status::kOk;
}

Status launch_linear(LinearParams const& params, Plan const& plan, cudaStream_t stream) {
  bool const half = params.dtype == DType::kFloat16;
  if (plan.kernel == LinearKernel::kGeneric) {
    if (params.dtype == DType::kFloat32) return launch_generic<float>(params, stream);
    return half ? launch_generic<__half>(params, stream) : launch_generic<__nv_bfloat16>(params, stream);
  }
  if (!is_sm90_kernel(plan.preset, plan.kernel)) {
    return half ? launch_few_typed<__half>(params, plan, stream)
                : launch_few_typed<__nv_bfloat16>(params, plan, stream);
  }
#ifdef GRAPHOPT_SM90A
  if (plan.kernel == LinearKernel::kExpanded) return launch_expanded(params, plan, stream);
  return half ? launch_sm90_typed<__half>(params, plan, stream)
              : launch_sm90_typed<__nv_bfloat16>(params, plan, stream);
#else
  return Status::kBadOperation;
#endif
}

Status launch_linear(LinearParams const& params, cudaStream_t stream) {
  GRAPHOPT_TRY(check(params));
  if (params.m == 0) return Status::kOk;
  Device device{};
  GRAPHOPT_TRY(current_device(&device));
  Plan const plan = make_plan(params, device);
  bool launched = false;
  bool const few = plan.kernel == LinearKernel::kGeneric || params.m <= most_generated(params, device);
  if (plan.preset == Preset::kNone && few) GRAPHOPT_TRY(jit::launch(params, device, stream, &launched));
  return launched ? Status::kOk : launch_linear(params, plan, stream);
}

}  // namespace graphopt::vq
