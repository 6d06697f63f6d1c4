// Codes of two rows of W on their way from memory.
#pragma once

#include <cstdint>

#include "vq/linear/kernel_few.cuh"

namespace graphopt::vq {

/// Where a lane's codes of a chunk are: from byte `first` of both rows on; what lies behind `limit` reads as zero.
struct ChunkPlace {
  int8_t const* upper;
  int8_t const* lower;
  int first, limit;
};

/// In slots of shared memory that belong to one thread each, kDepth - 1 chunks at a time. Registers do not do: loads
/// into a queue of registers share a scoreboard of their warp, so that to wait for the oldest is to wait for all.
template <class Codes, int kThreads>
class SharedQueue {
  static_assert(Codes::kBytes == 16);
  static constexpr int kRow = 16 * kThreads, kStage = 2 * kRow;
  static constexpr int kDepth = 3;

 public:
  static constexpr int kBytes = kDepth * kStage;

  /// `next()`: the ChunkPlace of one chunk after the other.
  template <class Next>
  __device__ __forceinline__ SharedQueue(uint32_t shared, Next&& next)
      : slots_(shared + static_cast<int>(threadIdx.x) * 16) {
#pragma unroll
    for (int d = 0; d < kDepth - 1; ++d) load(next());
  }

  /// The next chunk; starts another one.
  template <class Next>
  __device__ __forceinline__ void take(ChunkCodes<Codes>& codes, Next&& next) {
    load(next());
    cp_async_wait<kDepth - 1>();
    load_shared(codes.upper.word, slots_ + read_);
    load_shared(codes.lower.word, slots_ + read_ + kRow);
    advance(read_);
  }

 private:
  __device__ __forceinline__ void load(ChunkPlace const& at) {
    bool const valid = at.first < at.limit;
    int const first = valid ? at.first : 0;
    cp_async_16(slots_ + write_, at.upper + first, valid);
    cp_async_16(slots_ + write_ + kRow, at.lower + first, valid);
    cp_async_commit();
    advance(write_);
  }

  __device__ __forceinline__ static void advance(int& place) { place = place + kStage == kBytes ? 0 : place + kStage; }

  uint32_t const slots_;
  int read_ = 0, write_ = 0;
};

/// In registers, one chunk at a time: for codes of which a chunk takes longer than memory does.
template <class Codes>
class RegisterQueue {
 public:
  static constexpr int kBytes = 0;

  template <class Next>
  __device__ __forceinline__ RegisterQueue(uint32_t, Next&& next) {
    load(next());
  }

  template <class Next>
  __device__ __forceinline__ void take(ChunkCodes<Codes>& codes, Next&& next) {
    codes = ahead_;
    load(next());
  }

 private:
  __device__ __forceinline__ void load(ChunkPlace const& at) {
    ahead_.upper.load(at.upper, at.first, at.limit);
    ahead_.lower.load(at.lower, at.first, at.limit);
  }

  ChunkCodes<Codes> ahead_;
};

template <class Weights, int kThreads>
using ChunkQueue = std::conditional_t<Weights::Codes::kBytes == 16, SharedQueue<typename Weights::Codes, kThreads>,
                                      RegisterQueue<typename Weights::Codes>>;

}  // namespace graphopt::vq
