// Generated kernels of this process: those of its engines, and what the C API was given.
#pragma once

#include <cuda_runtime_api.h>

#include <string>

#include "common/check.h"
#include "vq/linear/params.h"
#include "vq/linear/plan.h"

namespace graphopt::vq::jit {

/// Take kernels into use for their format. Refuses what `decode` refuses.
Status install(std::string const& bytes);

/// Launch the generated kernel for these operands, if there is one for them and this device; *launched says so.
/// `params` must have passed the checks of launch_linear.
Status launch(LinearParams const& params, Device const& device, cudaStream_t stream, bool* launched);

}  // namespace graphopt::vq::jit
