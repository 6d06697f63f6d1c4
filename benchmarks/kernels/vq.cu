// C functions for benchmarks/kernels/vq.py: every kernel of vector-quantized linears, whatever the plan would be.
#include "vq/jit/launch.h"
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

extern "C" {

char const* vq_status(int status) { return status_string(static_cast<Status>(status)); }

/// `kernel`: a LinearKernel, or -1 for the plan's. sizes: dtype, m, n, k, v, b, r, tile_rows, tile_columns. pointers:
/// x, codes, codebooks, ratios, scale, bias, y, workspace. Returns -1 where the kernel does not take these operands.
int vq_linear(int kernel, int split, int64_t const* sizes, void* const* pointers, void* stream) {
  LinearParams const params{static_cast<DType>(sizes[0]),
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
  if (kernel < 0) return static_cast<int>(launch_linear(params, static_cast<cudaStream_t>(stream)));
  Device device{};
  if (Status const status = current_device(&device); status != Status::kOk) return static_cast<int>(status);
  Plan plan = make_plan(params, device);
  if (kernel < kFastKernels && plan.candidates[kernel] < 0.0) return -1;
  plan.kernel = static_cast<LinearKernel>(kernel);
  plan.split = split;
  plan.panel_bytes = panel_bytes(device, plan.preset, plan.kernel);
  return static_cast<int>(launch_linear(params, plan, static_cast<cudaStream_t>(stream)));
}
}
