// The ops of vector-quantized weights, for the registry.
#pragma once

#include "common/op.h"

namespace graphopt::vq {

OpClass linear_op();
OpClass linear_e8_op();
OpClass hadamard_op();

}  // namespace graphopt::vq
