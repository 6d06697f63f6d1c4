// The ops of the MixQ scheme, for the registry.
#pragma once

#include <vector>

#include "common/op.h"

namespace graphopt::mixq {

std::vector<OpClass> quantize_ops();
OpClass linear_op();
OpClass linear_w4a8_op();
std::vector<OpClass> online_linear_ops();
OpClass linear_w4a4_op();

}  // namespace graphopt::mixq
