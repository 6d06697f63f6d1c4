// Kernel for any K, any group, any alignment and float32: element by element through shared memory. Correct rather than
// fast.
#pragma once

#include "mant/linear/args.cuh"

namespace graphopt::mant {

constexpr int kGenericTile = 32;  // rows of X and of W in a block
constexpr int kGenericThreads = 256;
constexpr int kGenericColumns = 32;                                                 // of a stage; they lie in one group
constexpr int kGenericOutputs = kGenericTile * kGenericTile / kGenericThreads;  // per thread, along M

/// Entry `i` of a row of 4-bit numbers packed two to a byte.
__device__ __forceinline__ int packed_code(int8_t const* row, int64_t i) {
  int const byte = static_cast<uint8_t>(row[i / 32 * 16 + i % 16]);
  return i % 32 < 16 ? byte & 15 : byte >> 4;
}

/// Value of code (n, k) but for scale and factor: float, or an integer.
template <class Number>
__device__ __forceinline__ Number generic_value(LinearArgs const& args, int64_t n, int k, int type) {
  int const code = packed_code(args.codes + n * args.row_bytes, k);
  if constexpr (std::is_same_v<Number, float>) {
    float const value = __half2float(static_cast<__half const*>(args.table)[type * kTypes + code]);
    // As in the tensor cores' operands.
    return args.dtype == DType::kBFloat16 ? to_float(from_float<__nv_bfloat16>(value)) : value;
  } else {
    if (args.table != nullptr) return static_cast<int8_t const*>(args.table)[type * kTypes + code];
    SplitType const of = split_type(type);
    int const i = code & 7, magnitude = of.first * i + of.second * ((1 << i) - i);
    return code < 8 ? magnitude : -magnitude;
  }
}

/// Number: float where x is T, else int32_t.
template <class Number>
__global__ void __launch_bounds__(kGenericThreads) linear_generic(LinearArgs const args) {
  constexpr bool kFloat = std::is_same_v<Number, float>;
  __shared__ Number xs[kGenericTile][kGenericColumns + 1];  // padding: rows start in other banks
  __shared__ Number ws[kGenericTile][kGenericColumns + 1];
  int const thread = static_cast<int>(threadIdx.x), column = thread % kGenericTile;
  int const row0 = thread / kGenericTile * kGenericOutputs;
  int64_t const m0 = int64_t{blockIdx.x} * kGenericTile, n0 = int64_t{blockIdx.y} * kGenericTile;
  int64_t const n = n0 + column;

  float totals[kGenericOutputs] = {};
  Number sums[kGenericOutputs] = {};
  for (int start = 0; start < args.k; start += kGenericColumns) {
    int const group = start / args.group;
    for (int item = thread; item < kGenericTile * kGenericColumns; item += kGenericThreads) {
      int const row = item / kGenericColumns, k = start + item % kGenericColumns;
      Number x = 0, w = 0;
      if (k < args.k && m0 + row < args.m) {
        int64_t const at = (m0 + row) * args.k + k;
        if constexpr (kFloat) {
          x = load_activation(args.x, at, args.dtype);
        } else {
          x = static_cast<int8_t const*>(args.x)[at];
        }
      }
      if (k < args.k && n0 + row < args.n) {
        int const type = packed_code(args.types + int64_t{group} * args.type_bytes, n0 + row);
        w = generic_value<Number>(args, n0 + row, k, type);
      }
      xs[row][item % kGenericColumns] = x;
      ws[row][item % kGenericColumns] = w;
    }
    __syncthreads();
    for (int k = 0; k < kGenericColumns; ++k) {
#pragma unroll
      for (int i = 0; i < kGenericOutputs; ++i) sums[i] += xs[row0 + i][k] * ws[column][k];
    }
    __syncthreads();
    // Floats are added up stage by stage, which loses less than one long sum.
    bool const last = kFloat || start + kGenericColumns >= args.k || (start + kGenericColumns) % args.group == 0;
    if (!last || n >= args.n) continue;
    float factor = __half2float(args.scale[int64_t{group} * args.n + n]);
    if constexpr (!kFloat) {
      int const type = packed_code(args.types + int64_t{group} * args.type_bytes, n);
      factor *= args.table != nullptr ? 1.0f / 128 : split_type(type).factor;
    }
#pragma unroll
    for (int i = 0; i < kGenericOutputs; ++i) {
      float value = static_cast<float>(sums[i]) * factor;
      if constexpr (!kFloat) {
        int64_t const m = min(m0 + row0 + i, args.m - 1);
        value *= args.sx[m * args.scales + (args.scales > 1 ? group : 0)];
      }
      totals[i] += value;
      sums[i] = 0;
    }
  }

  if (n >= args.n) return;
  for (int i = 0; i < kGenericOutputs; ++i) {
    int64_t const m = m0 + row0 + i;
    if (m >= args.m) return;
    store_activation(args.y, m * args.n + n, totals[i] + load_activation(args.bias, n, args.dtype), args.dtype);
  }
}

}  // namespace graphopt::mant
