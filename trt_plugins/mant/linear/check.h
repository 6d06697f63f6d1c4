// What the M-ANT linears ask of their arguments.
#pragma once

#include "mant/linear/params.h"

namespace graphopt::mant {

constexpr int64_t kLeastGroup = 32;
constexpr int64_t kMaxGroup = 16384;  // 127 * 968 times as much fits int32
constexpr int64_t kMaxColumns = int64_t{1} << 30;

/// Columns that share a type; groups longer than K are as long as K.
constexpr int64_t effective_group(LinearParams const& p) {
  int64_t const all = (p.k + kLeastGroup - 1) / kLeastGroup * kLeastGroup;
  return p.group < all ? p.group : all;
}

/// kOk if sizes and pointers can be used; pointers of calls without tokens are not looked at.
inline Status check_linear(LinearParams const& p) {
  constexpr int64_t kMaxTokens = int64_t{1} << 33;  // the launch grid's first dimension, times the smallest tile
  if (!is_activation_type(p.dtype)) return Status::kBadType;
  bool const known = p.decode == Decode::kFloat || p.decode == Decode::kSplit || p.decode == Decode::kBytes;
  if (!known) return Status::kBadOperation;
  if (p.m < 0 || p.n < 1 || p.k < 1 || p.group < kLeastGroup || p.group % kLeastGroup != 0) return Status::kBadShape;
  if (p.m > kMaxTokens || p.k > kMaxColumns || p.n > kMaxColumns) return Status::kTooLarge;
  bool const integer = p.decode != Decode::kFloat;
  if (integer && effective_group(p) > kMaxGroup) return Status::kTooLarge;
  int64_t const groups = (p.k + p.group - 1) / p.group;
  if (integer && p.scales != 1 && p.scales != groups) return Status::kBadShape;
  if (p.m == 0) return Status::kOk;
  size_t const size = element_size(p.dtype);
  GRAPHOPT_TRY(check_pointer(p.x, integer ? 1 : size));
  if (integer) GRAPHOPT_TRY(check_pointer(p.sx, sizeof(float)));
  GRAPHOPT_TRY(check_pointer(p.codes, 1));
  GRAPHOPT_TRY(check_pointer(p.types, 1));
  GRAPHOPT_TRY(check_pointer(p.scale, 2));
  if (p.decode != Decode::kSplit) GRAPHOPT_TRY(check_pointer(p.table, integer ? 1 : 2));
  GRAPHOPT_TRY(check_pointer(p.bias, size));
  if (p.workspace != nullptr) GRAPHOPT_TRY(check_pointer(p.workspace, 16));
  return check_pointer(p.y, size);
}

/// Logarithm of a group that is a power of two; that of one that no K reaches where all columns share one; else -1.
constexpr int group_shift(LinearParams const& p) {
  constexpr int kOneGroup = 30;
  if (p.group >= p.k) return kOneGroup;
  for (int shift = 5; shift < kOneGroup; ++shift) {
    if (p.group == int64_t{1} << shift) return shift;
  }
  return -1;
}

/// Whether rows of x, codes, types and scales can be read in vectors of 16 bytes that lie in one group.
inline bool reads_vectors(LinearParams const& p) {
  constexpr size_t kVector = 16;
  for (void const* pointer : {p.x, static_cast<void const*>(p.codes), static_cast<void const*>(p.types), p.scale}) {
    if (!is_aligned(pointer, kVector)) return false;
  }
  bool const float32 = p.decode == Decode::kFloat && p.dtype == DType::kFloat32;
  return !float32 && p.n % 8 == 0 && p.k % (p.decode == Decode::kFloat ? 8 : 16) == 0 && group_shift(p) >= 0;
}

}  // namespace graphopt::mant
