// The ops of the MixQ scheme, for the registry.
#pragma once

#include <vector>

#include "common/op.h"

namespace graphopt::mixq {

std::vector<OpClass> quantize_ops();
std::vector<OpClass> linear_ops();
std::vector<OpClass> four_bit_linear_ops();
std::vector<OpClass> online_linear_ops();

}  // namespace graphopt::mixq
