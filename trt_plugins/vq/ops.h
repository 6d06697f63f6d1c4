// The ops of vector-quantized weights, for the registry.
#pragma once

#include <vector>

#include "common/op.h"

namespace graphopt::vq {

OpClass linear_op();
OpClass linear_e8_op();
std::vector<OpClass> hadamard_ops();

}  // namespace graphopt::vq
