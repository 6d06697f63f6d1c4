// C functions for benchmarks/kernels/vq.py: every kernel of vector-quantized linears, whatever the plan would be.
#include <algorithm>

#include "vq/jit/launch.h"
#include "vq/linear/expand.h"
#include "vq/linear/launch.h"
#include "vq/linear/params.h"
#include "vq/linear/plan.h"

using namespace graphopt;
using namespace graphopt::vq;

/// Formats that are no preset get no kernel here.
Status graphopt::vq::jit::launch(LinearParams const&, Device const&, cudaStream_t, bool* launched) {
  *launched = false;
  return Status::kOk;
}

namespace {

/// sizes: dtype, m, n, k, v, b, r, tile_rows, tile_columns. pointers: x, codes, codebooks, ratios, scale, bias, y,
/// workspace.
LinearParams params_of(int64_t const* sizes, void* const* pointers) {
  return {static_cast<DType>(sizes[0]),
          sizes[1],
          sizes[2],
          sizes[3],
          static_cast<int32_t>(sizes[4]),
          static_cast<int32_t>(sizes[5]),
          static_cast<int32_t>(sizes[6]),
          sizes[7],
          sizes[8],
          pointers[0],
          static_cast<int8_t const*>(pointers[1]),
          pointers[2],
          static_cast<float const*>(pointers[3]),
          static_cast<float const*>(pointers[4]),
          pointers[5],
          pointers[6],
          pointers[7]};
}

}  // namespace

extern "C" {

char const* vq_status(int status) { return status_string(static_cast<Status>(status)); }

/// `kernel`: a LinearKernel, or -1 for the plan's. split: blocks that share K; of kExpanded, 2 stands for the smallest
/// slabs, whatever number of tokens. Returns -1 where the kernel does not take these operands.
int vq_linear(int kernel, int split, int64_t const* sizes, void* const* pointers, void* stream) {
  LinearParams const params = params_of(sizes, pointers);
  if (kernel < 0) return static_cast<int>(launch_linear(params, static_cast<cudaStream_t>(stream)));
  Device device{};
  if (Status const status = current_device(&device); status != Status::kOk) return static_cast<int>(status);
  Plan plan = make_plan(params, device);
  bool const expanded = kernel == static_cast<int>(LinearKernel::kExpanded);
  if (expanded ? !can_expand(params) : kernel < kFastKernels && plan.candidates[kernel] < 0.0) return -1;
  if (expanded) plan.slab_rows = split == 1 ? best_slab_rows(params, device) : std::min(kSlabStep, params.n);
  plan.kernel = static_cast<LinearKernel>(kernel);
  plan.split = split;
  plan.panel_bytes = panel_bytes(device, plan.preset, plan.kernel);
  return static_cast<int>(launch_linear(params, plan, static_cast<cudaStream_t>(stream)));
}

/// The whole linear with W in slabs of so many rows, or, `alone`, nothing but expanding these. The workspace is as
/// large as they need.
int vq_expanded(int alone, int64_t slab_rows, int64_t const* sizes, void* const* pointers, void* stream) {
  LinearParams const params = params_of(sizes, pointers);
  Device device{};
  if (Status const status = current_device(&device); status != Status::kOk) return static_cast<int>(status);
  if (!can_expand(params)) return -1;
  if (alone == 0) {
    Plan plan{};
    plan.kernel = LinearKernel::kExpanded;
    plan.slab_rows = slab_rows;
    return static_cast<int>(launch_linear(params, plan, static_cast<cudaStream_t>(stream)));
  }
  auto const expand =
      params.dtype == DType::kFloat16 ? launch_expand_typed<__half> : launch_expand_typed<__nv_bfloat16>;
  auto* const factors = reinterpret_cast<float*>(static_cast<char*>(params.workspace) + slab_bytes(params, slab_rows));
  for (int64_t row = 0; row < params.n; row += slab_rows) {
    Slab const slab{row, std::min(slab_rows, params.n - row), params.workspace, factors, /*beside=*/false};
    Status const status = expand(params, slab, device, static_cast<cudaStream_t>(stream));
    if (status != Status::kOk) return static_cast<int>(status);
  }
  return 0;
}
}
