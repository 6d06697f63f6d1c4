// The producers as ops, for the registry.
#pragma once

#include <vector>

#include "common/op.h"

namespace graphopt::fused {

std::vector<OpClass> fused_ops();

}  // namespace graphopt::fused
