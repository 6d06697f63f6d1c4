// Makes kernels for formats that have none compiled ahead of time.
#pragma once

#include <string>
#include <vector>

#include "vq/jit/kernels.h"

namespace graphopt::vq::jit {

/// Compute capabilities that this library is compiled for, times ten.
std::vector<int> library_archs();

/// Kernels of `format` for those of `archs` that they can be made for, from the files of $GRAPHOPT_CACHE (default:
/// ~/.cache/graphopt) or else by NVRTC, which are then put there. False, with one sentence in `problem`, if there are
/// none.
bool generate(Format const& format, std::vector<int> const& archs, Kernels* kernels, std::string* problem);

/// The same for a linear of trained codebooks, as bytes, and take them into use. No bytes, and no problem either, where
/// the library has kernels of its own, x is float32 or tiles are odd. Pointers are not looked at.
Status generate_for(LinearParams params, std::vector<int> const& archs, std::string* kernels, std::string* problem);

}  // namespace graphopt::vq::jit
