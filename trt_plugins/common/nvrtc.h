// NVIDIA's run-time compiler, where there is one: libnvrtc is loaded when it is first needed, never linked.
#pragma once

#include <string>
#include <vector>

namespace graphopt {

/// A file that the source may include under this name.
struct NvrtcHeader {
  char const* name;
  char const* text;
};

/// What a kernel takes, as the assembler says.
struct NvrtcKernel {
  std::string name;
  int registers;
  int spilled_bytes;  // stores and loads
};

struct NvrtcResult {
  std::string cubin;
  std::vector<NvrtcKernel> kernels;
};

/// Compile CUDA C++17 for compute capability `arch` (times ten). False, with one sentence in `problem`, where there is
/// no libnvrtc ($GRAPHOPT_NVRTC names it, else the loader's search path and /usr/local/cuda are tried), where it does
/// not know `arch`, or where the source is refused.
bool nvrtc_compile(std::string const& source, std::vector<NvrtcHeader> const& headers, int arch, NvrtcResult* result,
                   std::string* problem);

}  // namespace graphopt
