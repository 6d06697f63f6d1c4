// What the linears with 4-bit weights ask of their arguments.
#pragma once

#include "mixq/linear/params.h"
#include "mixq/linear_w4a8/params.h"
#include "mixq/linear_w4a8/policy.h"

namespace graphopt::mixq {

/// kOk if sizes and pointers can be used; pointers of calls without tokens are not looked at.
inline Status check_linear_w4a8(LinearW4A8Params const& p) {
  constexpr int64_t kMaxTokens = int64_t{1} << 35;  // the launch grid's first dimension, times the smallest tile
  constexpr int64_t kMaxOutliers = int64_t{1} << 20;
  if (!is_activation_type(p.dtype)) return Status::kBadType;
  if (p.m < 0 || p.n < 1 || p.k < 1 || p.capacity < 16 || p.capacity % 16 != 0) return Status::kBadShape;
  if (p.group < 2 || p.group % 2 != 0) return Status::kBadShape;
  if (p.m > kMaxTokens || p.k > kMaxLinearK || p.capacity > kMaxOutliers) return Status::kTooLarge;
  if (p.m == 0) return Status::kOk;
  size_t const size = element_size(p.dtype);
  GRAPHOPT_TRY(check_pointer(p.xq, 1));
  GRAPHOPT_TRY(check_pointer(p.sx, sizeof(float)));
  GRAPHOPT_TRY(check_pointer(p.xo, size));
  GRAPHOPT_TRY(check_pointer(p.wq4, 1));
  GRAPHOPT_TRY(check_pointer(p.sg, 1));
  GRAPHOPT_TRY(check_pointer(p.sw, sizeof(float)));
  GRAPHOPT_TRY(check_pointer(p.wo, size));
  GRAPHOPT_TRY(check_pointer(p.bias, size));
  if (p.residual != nullptr) GRAPHOPT_TRY(check_pointer(p.residual, size));
  return check_pointer(p.y, size);
}

/// Whether the products can read vectors of 16 bytes that lie in one group.
inline bool products_read_vectors(LinearW4A8Params const& p) {
  constexpr size_t kVector = 16;
  for (void const* pointer : {static_cast<void const*>(p.xq), p.xo, static_cast<void const*>(p.wq4), p.wo}) {
    if (!is_aligned(pointer, kVector)) return false;
  }
  return p.k % static_cast<int64_t>(kVector) == 0 && w4a8_group_shift(p.group, p.k) >= 0;
}

}  // namespace graphopt::mixq
