// The ops of attention over a cache, for the registry.
#pragma once

#include "common/op.h"

namespace graphopt::attention {

OpClass cached_op();
OpClass vq_cached_op();
OpClass mant_cached_op();

}  // namespace graphopt::attention
