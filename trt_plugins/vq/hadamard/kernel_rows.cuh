// Producer and transform of 16-bit values in one launch, inputs read and the output written once.
//
// An index of a channel has, from its lowest bit, three bits within a vector of a thread, five of the lane, two of the
// thread's slot and the rest of the warp. The transform goes over them one after the other:
//   0, 1, 3 and 4   tensor cores: a warp's vectors of one slot are an operand of 16 x 16 as they lie in registers, the
//                   other one holds 1 and -1; products are exact, sums float32
//   2 and slots     in registers
//   5 to 7          between lanes
//   warps           values change place in shared memory, so that the bits of a slot and of a warp trade places
#pragma once

#include <cstdint>
#include <type_traits>

#include "common/ptx.cuh"
#include "common/reduce.cuh"
#include "common/row_math.cuh"
#include "common/team.cuh"
#include "common/vec.cuh"
#include "vq/hadamard/args.cuh"
#include "vq/hadamard/policy.h"

namespace graphopt::vq {

constexpr int kVector = 8;  // channels of a vector

/// Blocks of the largest rows that a multiprocessor has registers for, which bounds what the compiler may use: where it is
/// one, it would spill else.
#if __CUDA_ARCH__ == 900
template <Norm kNorm>
constexpr int kResidentRows = kNorm == Norm::kRms ? 2 : 1;
#else
template <Norm>
constexpr int kResidentRows = 1;
#endif

/// How the rows of HadamardArgs are laid over threads, see plan_hadamard.
struct RowGrid {
  int32_t units;
  int32_t parts;
  int32_t unit_channels;  // channels of a unit that is not the last of its row
  int32_t block_warps;
};

/// Values of a thread: kSlots vectors.
using SlotValues = float[kSlots][kVector];

__device__ __forceinline__ void butterfly(float& a, float& b) {
  float const sum = a + b;
  b = a - b;
  a = sum;
}

/// Bits 0, 1, 3 and 4 of the index: c = v H16.
template <class T>
__device__ __forceinline__ void transform_by_product(float (&c)[kVector], Vec<T> const& v, int lane) {
  constexpr uint32_t kSigns = 0x80008000u;
  int const row = lane / 4, column = 2 * (lane % 4);
  uint32_t const odd = __popc(row & column) % 2 != 0 ? kSigns : 0u;
  // Elements (column, row) and (column + 1, row) of H: they differ where row has bit 0.
  uint32_t const h = round_pair<T>(1.0f, 1.0f) ^ odd ^ (row % 2 != 0 ? 0x80000000u : 0u);
  uint32_t const a[4] = {v.word[0], v.word[2], v.word[1], v.word[3]};
  float low[4] = {0.0f, 0.0f, 0.0f, 0.0f}, high[4] = {0.0f, 0.0f, 0.0f, 0.0f};
  if constexpr (std::is_same_v<T, __half>) {
    mma_f16(low, a, h, h);
    mma_f16(high, a, h, h ^ kSigns);
  } else {
    mma_bf16(low, a, h, h);
    mma_bf16(high, a, h, h ^ kSigns);
  }
#pragma unroll
  for (int pair = 0; pair < 2; ++pair) {
    c[pair] = low[pair];
    c[pair + 2] = high[pair];
    c[pair + 4] = low[pair + 2];
    c[pair + 6] = high[pair + 2];
  }
}

/// Bit `bit` of the number of a slot.
template <int kBit>
__device__ __forceinline__ void transform_slots(SlotValues& v) {
#pragma unroll
  for (int i = 0; i < kSlots; ++i) {
    if ((i >> kBit & 1) != 0) continue;
#pragma unroll
    for (int e = 0; e < kVector; ++e) butterfly(v[i][e], v[i + (1 << kBit)][e]);
  }
}

/// Bit 2 of the lane or more: those of the index from 5 on.
__device__ __forceinline__ void transform_lanes(SlotValues& v, int distance, int lane) {
  float const sign = (lane & distance) != 0 ? -1.0f : 1.0f;
#pragma unroll
  for (int i = 0; i < kSlots; ++i) {
#pragma unroll
    for (int e = 0; e < kVector; ++e) v[i][e] = fmaf(v[i][e], sign, __shfl_xor_sync(0xffffffffu, v[i][e], distance));
  }
}

/// Where a thread's slots lie in its unit: slot j is number base + (j % 2) * odd + (j / 2) * upper of the slots of 256
/// channels that all warps have.
struct SlotPlaces {
  int32_t base, odd, upper;
  __device__ __forceinline__ int32_t operator()(int j) const { return base + j % 2 * odd + j / 2 * upper; }
};

/// Bits of the warp's number, through `shared` [slots of the unit, 2, 32]. Returns where the thread's slots are then.
__device__ __forceinline__ SlotPlaces transform_warps(SlotValues& v, float4* shared, int32_t block_warps, int warp,
                                                      int lane) {
#pragma unroll
  for (int i = 0; i < kSlots; ++i) {
    float4* const mine = shared + (warp * kSlots + i) * 2 * kWarp + lane;
    mine[0] = make_float4(v[i][0], v[i][1], v[i][2], v[i][3]);
    mine[kWarp] = make_float4(v[i][4], v[i][5], v[i][6], v[i][7]);
  }
  __syncthreads();
  int32_t const number = warp % block_warps, low = number % kSlots, group = number / kSlots;
  SlotPlaces from{(warp - number) * kSlots + low, kSlots, 2 * kSlots};
  if (block_warps == 2) from.base += low, from.upper = 1;  // two of its slots each
  auto const slot = [&](int j, int half, int other) {
    return shared[((from(j) + other * kSlots * kSlots) * 2 + half) * kWarp + lane];
  };
#pragma unroll
  for (int j = 0; j < kSlots; ++j) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float4 const part = slot(j, half, 0);
      float* const value = v[j] + 4 * half;
      value[0] = part.x, value[1] = part.y, value[2] = part.z, value[3] = part.w;
    }
  }
  // Blocks of H of more than four warps: the upper bits of the number by adding up all that differ in them.
#pragma unroll 1
  for (int other = 1; other < block_warps / kSlots; ++other) {
    float const sign = __popc(static_cast<unsigned>(group & other)) % 2 != 0 ? -1.0f : 1.0f;
#pragma unroll
    for (int j = 0; j < kSlots; ++j) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float4 const part = slot(j, half, other);
        float* const value = v[j] + 4 * half;
        value[0] = fmaf(part.x, sign, value[0]), value[1] = fmaf(part.y, sign, value[1]);
        value[2] = fmaf(part.z, sign, value[2]), value[3] = fmaf(part.w, sign, value[3]);
      }
    }
  }
  transform_slots<0>(v);
  if (block_warps > 2) transform_slots<1>(v);
  from.base += group * kSlots * kSlots;
  return from;
}

/// Flip the sign of each element whose byte of `signs` is negative.
template <class T>
__device__ __forceinline__ void flip(Vec<T>& v, uint2 signs) {
#pragma unroll
  for (int w = 0; w < 4; ++w) {
    uint32_t const bytes = w < 2 ? signs.x : signs.y;
    v.word[w] ^= __byte_perm(bytes, 0, w % 2 == 0 ? 0x1404 : 0x3424) & 0x80008000u;
  }
}

/// Block: (threads of a unit, its team; units). Shared memory: values that change place, if warps share a block of H.
template <class T, class Producer>
__global__ void __launch_bounds__(max_unit_threads(Producer::kNorm != Norm::kNone), kResidentRows<Producer::kNorm>)
    hadamard_rows(HadamardArgs<T> const args, RowGrid const grid) {
  extern __shared__ float4 exchanged[];
  using Unit = Team<false, true>;
  __shared__ float2 scratch[Unit::kScratch];
  int32_t const number = static_cast<int32_t>(blockIdx.x * blockDim.y + threadIdx.y);
  int32_t const unit = min(number, grid.units - 1);
  int const lane = static_cast<int>(threadIdx.x) % kWarp;
  int const warp = __shfl_sync(0xffffffffu, static_cast<int>(threadIdx.x) / kWarp, 0);
  int32_t const row = unit / grid.parts, first = (unit - row * grid.parts) * grid.unit_channels;
  int32_t const left = number == unit ? args.k - first : 0;  // who has no unit waits at barriers with the others
  int32_t const lane_channel = lane * kVector;
  SlotPlaces places{warp * kSlots, 1, 2};
  auto const channel = [&](int i) { return places(i) * kSlotChannels + lane_channel; };
  auto const inside = [&](int i) { return channel(i) < left; };

  uint2 signs[kSlots];
  auto const load_signs = [&] {
#pragma unroll
    for (int i = 0; i < kSlots; ++i) {
      signs[i] = __ldg(reinterpret_cast<uint2 const*>(args.signs + first + (inside(i) ? channel(i) : 0)));
    }
  };
  if constexpr (Producer::kNorm == Norm::kNone) load_signs();
  wait_for_predecessor();
  release_successor();
  int64_t const start = int64_t{row} * args.k + first;
  Vec<T> v[kSlots], second[Producer::kInputs == 2 ? kSlots : 1];
#pragma unroll
  for (int i = 0; i < kSlots; ++i) {
    if (inside(i)) v[i] = load_streaming(args.x + start + channel(i));
    if (Producer::kInputs == 2 && inside(i)) second[i] = load_streaming(args.other + start + channel(i));
  }
  auto const write = [&](T* output) {
#pragma unroll
    for (int i = 0; i < kSlots; ++i) {
      if (inside(i)) store(output + start + channel(i), v[i]);
    }
  };
  combine<Producer>(v, second);
  if constexpr (Producer::kNorm != Norm::kNone) {
    if (Producer::kInputs == 2 && args.sum != nullptr) write(args.sum);
    load_signs();  // not before: the registers of a second input are free now
    auto const at = [&](int i) { return inside(i) ? channel(i) : 0; };  // beyond the row: blocks that nobody writes
    // Where there are registers for it, gamma is on its way while statistics are made.
    constexpr bool kEarly = Producer::kNorm == Norm::kRms && Producer::kInputs == 1;
    Vec<T> gamma[kSlots], beta;
#pragma unroll
    for (int i = 0; kEarly && i < kSlots; ++i) gamma[i] = load_pinned(args.gamma + at(i));
    Unit team(scratch);
    Moments const m = moments<Producer>(v, team, args.k, args.epsilon, inside);
    keep_packed(v);
#pragma unroll
    for (int i = 0; i < kSlots; ++i) {
      if constexpr (!kEarly) gamma[i] = load_cached(args.gamma + at(i));
      if constexpr (Producer::kNorm == Norm::kLayer) beta = load_cached(args.beta + at(i));
      normalize_vector<Producer>(v[i], m, gamma[i], beta);
    }
  }
  if (args.y != nullptr) write(args.y);

  SlotValues values;
#pragma unroll
  for (int i = 0; i < kSlots; ++i) {
    flip(v[i], signs[i]);
    transform_by_product(values[i], v[i], lane);
#pragma unroll
    for (int e = 0; e < kVector / 2; ++e) butterfly(values[i][e], values[i][e + kVector / 2]);
  }
#pragma unroll 1
  for (int bit = 5; bit < min(args.bits, 8); ++bit) transform_lanes(values, 1 << (bit - 3), lane);
  if (args.bits > 8) transform_slots<0>(values);
  if (args.bits > 9) transform_slots<1>(values);
  if (grid.block_warps > 1) {
    float4* const shared = exchanged + threadIdx.y * blockDim.x * (kSlots * 2);
    places = transform_warps(values, shared, grid.block_warps, warp, lane);
  }
#pragma unroll
  for (int i = 0; i < kSlots; ++i) {
#pragma unroll
    for (int e = 0; e < kVector; ++e) values[i][e] *= args.factor;
    Vec<T> rounded;
    rounded.set(values[i]);
    if (inside(i)) store(args.z + start + channel(i), rounded);
  }
}

}  // namespace graphopt::vq
