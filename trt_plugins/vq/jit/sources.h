// The sources that kernels are generated from, as text: trt_plugins/embed.cmake puts them into the library.
#pragma once

#include <vector>

#include "common/nvrtc.h"

namespace graphopt::vq::jit {

std::vector<NvrtcHeader> const& sources();

}  // namespace graphopt::vq::jit
