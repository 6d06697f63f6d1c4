// The ops of the M-ANT scheme, for the registry.
#pragma once

#include <vector>

#include "common/op.h"

namespace graphopt::mant {

std::vector<OpClass> linear_ops();

}  // namespace graphopt::mant
