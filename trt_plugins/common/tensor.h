// Tensors as launchers see them: a device pointer, an element type and a row-major shape. No TensorRT here.
#pragma once

#include <cstddef>
#include <cstdint>

#include "common/check.h"

namespace graphopt {

/// Element types; the values are those of the C API.
enum class DType : int32_t { kFloat32 = 0, kFloat16 = 1, kBFloat16 = 2, kInt8 = 3, kInt32 = 4 };

constexpr int32_t kMaxRank = 8;

/// Bytes of one element; 0 for a value outside the enumeration.
constexpr size_t element_size(DType type) {
  switch (type) {
    case DType::kFloat32:
    case DType::kInt32:
      return 4;
    case DType::kFloat16:
    case DType::kBFloat16:
      return 2;
    case DType::kInt8:
      return 1;
  }
  return 0;
}

constexpr bool is_activation_type(DType type) {
  return type == DType::kFloat32 || type == DType::kFloat16 || type == DType::kBFloat16;
}

struct TensorView {
  void* data = nullptr;
  DType type = DType::kFloat32;
  int32_t rank = 0;
  int64_t dims[kMaxRank] = {};

  /// The last dimension; 1 for a scalar.
  int64_t cols() const { return rank == 0 ? 1 : dims[rank - 1]; }

  /// The product of all dimensions but the last.
  int64_t rows() const {
    int64_t product = 1;
    for (int32_t axis = 0; axis + 1 < rank; ++axis) product *= dims[axis];
    return product;
  }
};

/// Whether `pointer` is a multiple of `bytes`, a power of two.
inline bool is_aligned(void const* pointer, size_t bytes) {
  return (reinterpret_cast<uintptr_t>(pointer) & (bytes - 1)) == 0;
}

/// kNullPointer or kMisaligned where a required operand of `elements` elements of `bytes` bytes cannot be used.
inline Status check_pointer(void const* pointer, size_t bytes) {
  if (pointer == nullptr) return Status::kNullPointer;
  return is_aligned(pointer, bytes) ? Status::kOk : Status::kMisaligned;
}

}  // namespace graphopt
