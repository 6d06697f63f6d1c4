// Tensor maps: how the Hopper copy engine (TMA) sees a matrix in global memory. Host code only.
#pragma once

#include <cuda.h>

#include <cstdint>

#include "common/tensor.h"

namespace graphopt {

constexpr int32_t kTensorMapRowBytes = 128;  // of a box: one swizzle row

/// Describe row-major [rows, cols] in boxes of `box_rows` x `row_bytes`, which lie in shared memory swizzled by as many
/// bytes, or row behind row where there is no such swizzle.
///
/// Args:
///   map: written.
///   base: device pointer, a multiple of 16 bytes, as a row must be.
///   type: kInt8, kFloat16 or kBFloat16.
///   rows, cols: of the matrix, in elements; a box reads zeros, and writes nothing, outside it.
///   box_rows: 1 to 256.
///   row_bytes: 128, 64 or 32; another multiple of 16 for no swizzle.
///   stride: elements from one row to the next; 0: cols.
Status encode_tensor_map(CUtensorMap* map, void const* base, DType type, int64_t rows, int64_t cols, int32_t box_rows,
                         int32_t row_bytes = kTensorMapRowBytes, int64_t stride = 0);

}  // namespace graphopt
