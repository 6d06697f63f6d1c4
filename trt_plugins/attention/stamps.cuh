// Where the time of a call goes: blocks note when they pass the phases of a kernel. Compiled to nothing unless
// GRAPHOPT_STAMPS is defined; benchmarks/kernels/attention_stamps.py reads them.
#pragma once

#include <cstdint>

namespace graphopt::attention {

/// What a block has just done.
enum class Phase : int {
  kStart,        // nothing
  kTiles,        // it knows its tiles
  kPredecessor,  // the kernel before has ended
  kValues,       // tables that depend on the head only are filled
  kTables,       // those that depend on queries, too
  kFirstTile,    // attended to the first tile of a segment
  kTilesDone,    // to the last one
  kPart,         // wrote its part of the outputs
  kCounted,      // counted it as done
  kMerged,       // added up all parts
  kEnd,
};

/// Notes of one thread of a block: of every phase the first and the last time that it was passed, in nanoseconds of the
/// device and in cycles of the multiprocessor. A record is 16 phases x {first, last} x {nanoseconds, cycles}; one more
/// number, in place of a phase that does not exist, is the multiprocessor.
class Stamps {
 public:
  static constexpr int64_t kOffsetFloats = int64_t{2} << 20;  // from where parts begin; decode leaves it alone
  static constexpr int kRecordWords = 16 * 4, kAppendRecord = 512, kRecords = 1024;

#ifdef GRAPHOPT_STAMPS
  __device__ __forceinline__ Stamps(float* partial, int32_t record)
      : words_(reinterpret_cast<uint64_t*>(partial + kOffsetFloats) + int64_t{record} * kRecordWords),
        writes_(threadIdx.x == 0 && record < kRecords) {
    if (!writes_) return;
    uint32_t multiprocessor;
    asm volatile("mov.u32 %0, %%smid;" : "=r"(multiprocessor));
    words_[15 * 4] = multiprocessor;
    pass(Phase::kStart);
  }

  __device__ __forceinline__ void pass(Phase phase) {
    if (!writes_) return;
    uint64_t nanoseconds, cycles;
    asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(nanoseconds)::"memory");
    asm volatile("mov.u64 %0, %%clock64;" : "=l"(cycles)::"memory");
    uint64_t* const own = words_ + static_cast<int>(phase) * 4;
    uint32_t const bit = 1u << static_cast<int>(phase);
    if ((passed_ & bit) == 0) own[0] = nanoseconds, own[1] = cycles;
    own[2] = nanoseconds, own[3] = cycles;
    passed_ |= bit;
  }

 private:
  uint64_t* words_;
  bool writes_;
  uint32_t passed_ = 0;
#else
  __device__ __forceinline__ Stamps(float*, int32_t) {}
  __device__ __forceinline__ void pass(Phase) {}
#endif
};

}  // namespace graphopt::attention
