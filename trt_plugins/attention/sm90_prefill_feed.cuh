// What feeds the warpgroups of sm90_prefill.cuh: who takes which query rows, the block's shared memory, the warp that
// brings keys and values, and those that bring and rotate queries.
#pragma once

#include <cstdint>

#include "attention/append.cuh"
#include "attention/args.cuh"
#include "attention/sm90_prefill.h"
#include "common/sm90_ring.cuh"
#include "common/wgmma.cuh"

namespace graphopt::attention {

/// Operands of the kernel; lives in constant memory, where the copy engine wants its tensor maps.
template <class T>
struct Sm90PrefillArgs {
  CUtensorMap q;  // [B S, Hq D]
  CUtensorMap k;  // [B Hkv C, D]
  CUtensorMap v;  // [B Hkv C, D]
  AttentionArgs<T> attention;
  int32_t tiles;    // of query rows of a head
  int32_t heads;    // query heads of all sequences
  int32_t section;  // query heads that are worked on together, because L2 holds their keys and values
};

/// Query rows of a head that a block takes.
struct PrefillItem {
  int32_t b;
  int32_t head;     // of q
  int32_t kv_head;  // of all sequences
  int32_t first;    // new token
  int32_t past;     // rows of sequence b before this call
  int32_t visible;  // rows that the last new token sees

  /// Number `index` of the order in which items begin: sections, then those that see most, then heads.
  template <class T>
  __device__ __forceinline__ PrefillItem(Sm90PrefillArgs<T> const& args, int32_t index, int32_t rows) {
    int32_t const start = index / (args.section * args.tiles) * args.section;
    int32_t const size = min(args.section, args.heads - start), rest = index - start * args.tiles;
    int32_t const number = start + rest % size;
    int32_t const heads = args.attention.kv_heads * args.attention.group;  // of this launch
    b = number / heads;
    head = number % heads;
    kv_head = number / args.attention.group;
    first = (args.tiles - 1 - rest / size) * rows;
    past = past_rows(args.attention.start, b, args.attention.capacity);
    visible = visible_rows(past, min(first + rows, args.attention.seq) - 1, args.attention.capacity);
  }
};

/// The block's shared memory.
template <class Traits>
struct Sm90PrefillShared {
  using Tiles = Ring<Traits::kStages, Traits::kTileBytes, 0>;
  static constexpr int kRingBarriers = 2 * 8 * Traits::kStages;
  static constexpr int kItemOffset = Traits::kBarrierOffset + 2 * kRingBarriers + (9 + Traits::kConsumers) * 8;
  static_assert(kItemOffset + 2 * 4 <= Traits::kSharedBytes);

  char* memory;
  uint32_t base = shared_address(memory);

  /// Blocks of 64 columns, kRows rows each.
  __device__ __forceinline__ uint32_t queries(int buffer) const { return base + buffer * Traits::kQueryBytes; }
  __device__ __forceinline__ Tiles keys() const { return {base + Traits::kKeyOffset, barriers()}; }
  __device__ __forceinline__ Tiles values() const { return {base + Traits::kValueOffset, barriers() + kRingBarriers}; }
  __device__ __forceinline__ uint32_t asked(int buffer) const { return barriers() + 2 * kRingBarriers + 8 * buffer; }
  __device__ __forceinline__ uint32_t queries_landed(int buffer) const { return asked(2 + buffer); }
  __device__ __forceinline__ uint32_t queries_full(int buffer) const { return asked(4 + buffer); }
  __device__ __forceinline__ uint32_t queries_empty(int buffer) const { return asked(6 + buffer); }
  __device__ __forceinline__ uint32_t values_landed() const { return asked(8); }  // those to be cleared
  __device__ __forceinline__ uint32_t turn(int warpgroup) const { return asked(9 + warpgroup); }

  /// Number of the item whose queries are, or will be, in a buffer. Called by whole warps; only the lane that reads it
  /// arrives at queries_empty later.
  __device__ __forceinline__ int32_t item(int buffer) const {
    int32_t index = 0;
    if (threadIdx.x % 32 == 0) index = *slot(buffer);
    return __shfl_sync(0xffffffffu, index, 0);
  }
  __device__ __forceinline__ void set_item(int buffer, int32_t index) const { *slot(buffer) = index; }

  /// One thread, before any other use.
  __device__ __forceinline__ void init() const {
    constexpr int kQueryWarps = 3;
    keys().init(Traits::kReaderWarps);
    values().init(Traits::kReaderWarps);
    for (int buffer = 0; buffer < 2; ++buffer) {
      mbarrier_init(asked(buffer), 1);
      mbarrier_init(queries_landed(buffer), 1);
      mbarrier_init(queries_full(buffer), kQueryWarps);
      mbarrier_init(queries_empty(buffer), Traits::kReaderWarps + kQueryWarps + 1);
    }
    mbarrier_init(values_landed(), 1);
    for (int i = 0; i < Traits::kConsumers; ++i) mbarrier_init(turn(i), kWarpgroup / 32);
    mbarrier_init_fence();
  }

 private:
  __device__ __forceinline__ int32_t volatile* slot(int buffer) const {
    return reinterpret_cast<int32_t volatile*>(memory + kItemOffset) + buffer;
  }
  __device__ __forceinline__ uint32_t barriers() const { return base + Traits::kBarrierOffset; }
};

/// One warp: bring keys and values.
template <class Traits>
class Sm90PrefillProducer {
  using T = typename Traits::T;

 public:
  __device__ __forceinline__ Sm90PrefillProducer(Sm90PrefillArgs<T> const& args,
                                                 Sm90PrefillShared<Traits> const& shared)
      : args_(args), shared_(shared), keys_(shared.keys()), values_(shared.values()) {}

  __device__ __forceinline__ void run() {
    for (RingPosition<2> turn;; turn.advance()) {
      mbarrier_wait(shared_.asked(turn.stage), turn.parity);
      int32_t const index = shared_.item(turn.stage);
      if (is_leader()) mbarrier_arrive(shared_.queries_empty(turn.stage));
      if (index >= args_.tiles * args_.heads) return;
      bring_tiles(PrefillItem(args_, index, Traits::kRows));
    }
  }

 private:
  __device__ __forceinline__ static int lane() { return static_cast<int>(threadIdx.x) % 32; }
  __device__ __forceinline__ static bool is_leader() { return lane() == 0; }

  /// Keys of a tile before the values of the tile before it, as they are needed.
  __device__ __forceinline__ void bring_tiles(PrefillItem const& item) {
    int32_t const tiles = (item.visible + Traits::kTokens - 1) / Traits::kTokens;
    bring_keys(item, tiles - 1);
    for (int32_t tile = tiles - 1; tile >= 0; --tile) {
      if (tile > 0) bring_keys(item, tile - 1);
      bring_values(item, tile);
    }
  }

  __device__ __forceinline__ void bring_tile(CUtensorMap const* map, uint32_t shared, uint32_t barrier,
                                             PrefillItem const& item, int32_t tile) const {
#pragma unroll
    for (int i = 0; i < Traits::kBlocks; ++i) {
      tma_load(shared + i * Traits::kTokens * kSwizzleBytes, map, barrier, i * Traits::kColumns,
               item.kv_head * args_.attention.capacity + tile * Traits::kTokens);
    }
  }

  __device__ __forceinline__ void bring_keys(PrefillItem const& item, int32_t tile) {
    if (is_leader()) {
      keys_.acquire(key_, Traits::kTileBytes);
      bring_tile(&args_.k, keys_.x(key_.stage), keys_.full(key_.stage), item, tile);
    }
    key_.advance();
  }

  __device__ __forceinline__ void bring_values(PrefillItem const& item, int32_t tile) {
    int32_t const rows = item.visible - tile * Traits::kTokens;
    if (rows < Traits::kTokens) {
      bring_last_values(item, tile, rows);
    } else if (is_leader()) {
      values_.acquire(value_, Traits::kTileBytes);
      bring_tile(&args_.v, values_.x(value_.stage), values_.full(value_.stage), item, tile);
    }
    value_.advance();
  }

  /// Rows that nobody sees may hold anything, and zero times that need not be zero: they are cleared.
  __device__ __forceinline__ void bring_last_values(PrefillItem const& item, int32_t tile, int32_t rows) {
    mbarrier_wait(values_.empty(value_.stage), value_.parity ^ 1);
    if (is_leader()) {
      mbarrier_arrive_expect(shared_.values_landed(), Traits::kTileBytes);
      bring_tile(&args_.v, values_.x(value_.stage), shared_.values_landed(), item, tile);
    }
    mbarrier_wait(shared_.values_landed(), landed_);
    landed_ ^= 1;
    constexpr int kVectors = kSwizzleBytes / 16, kBlockVectors = Traits::kTokens * kVectors;
    uint4* const vectors = reinterpret_cast<uint4*>(shared_.memory + (values_.x(value_.stage) - shared_.base));
    for (int at = rows * kVectors + lane(); at < kBlockVectors; at += 32) {
#pragma unroll
      for (int i = 0; i < Traits::kBlocks; ++i) vectors[i * kBlockVectors + at] = make_uint4(0, 0, 0, 0);
    }
    async_proxy_fence();
    __syncwarp();
    if (is_leader()) mbarrier_arrive(values_.full(value_.stage));
  }

  using Tiles = typename Sm90PrefillShared<Traits>::Tiles;

  Sm90PrefillArgs<T> const& args_;
  Sm90PrefillShared<Traits> const shared_;
  Tiles const keys_, values_;
  RingPosition<Traits::kStages> key_, value_;
  uint32_t landed_ = 0;  // parity
};

/// Three warps: ask for query rows, bring them, rotate them where they have landed, if they are to be, and hand them
/// over.
template <class Traits>
class Sm90PrefillQueries {
  using T = typename Traits::T;
  static constexpr int kD = Traits::kD;
  static constexpr int kPairs = kD / 16;  // of vectors of a row, half a row apart
  static constexpr int kWarps = 3;        // from warp 1 on

 public:
  __device__ __forceinline__ Sm90PrefillQueries(Sm90PrefillArgs<T> const& args, Sm90PrefillShared<Traits> const& shared)
      : args_(args), shared_(shared) {}

  __device__ __forceinline__ void run() const {
    int32_t asked = static_cast<int32_t>(blockIdx.x);
    for (RingPosition<2> turn;; turn.advance()) {
      if (threadIdx.x == 32) {
        mbarrier_wait(shared_.queries_empty(turn.stage), turn.parity ^ 1);
        bring(asked, turn.stage);
        asked = static_cast<int32_t>(gridDim.x) + atomicAdd(args_.attention.counters, 1);
      }
      __syncwarp();
      mbarrier_wait(shared_.queries_landed(turn.stage), turn.parity);
      int32_t const index = shared_.item(turn.stage);
      bool const last = index >= count();
      if (!last && args_.attention.cos != nullptr) rotate(PrefillItem(args_, index, Traits::kRows), turn.stage);
      async_proxy_fence();
      __syncwarp();
      if (threadIdx.x % 32 == 0) {
        mbarrier_arrive(shared_.queries_full(turn.stage));
        mbarrier_arrive(shared_.queries_empty(turn.stage));
      }
      if (last) return;
    }
  }

 private:
  __device__ __forceinline__ int32_t count() const { return args_.tiles * args_.heads; }

  /// Announce an item, and bring its queries; there are none behind the last one.
  __device__ __forceinline__ void bring(int32_t index, int buffer) const {
    uint32_t const barrier = shared_.queries_landed(buffer);
    shared_.set_item(buffer, index);
    mbarrier_arrive(shared_.asked(buffer));
    if (index >= count()) return mbarrier_arrive(barrier);
    PrefillItem const item(args_, index, Traits::kRows);
    mbarrier_arrive_expect(barrier, Traits::kQueryBytes);
#pragma unroll
    for (int i = 0; i < Traits::kBlocks; ++i) {
      tma_load(shared_.queries(buffer) + i * Traits::kRows * kSwizzleBytes, &args_.q, barrier,
               item.head * Traits::kD + i * Traits::kColumns, item.b * args_.attention.seq + item.first);
    }
  }

  __device__ __forceinline__ void rotate(PrefillItem const& item, int buffer) const {
    AttentionArgs<T> const& to = args_.attention;
    char* const rows = shared_.memory + buffer * Traits::kQueryBytes;
    uint32_t const table = to.tables == 1 ? 0u : static_cast<uint32_t>(item.b * to.seq);  // token of its first row
#pragma unroll(Traits::kConsumers == 2 ? 2 : 1)                                           // what registers allow
    for (int at = static_cast<int>(threadIdx.x) - 32; at < Traits::kRows * kPairs; at += 32 * kWarps) {
      int const row = at / kPairs, chunk = at % kPairs;
      int64_t const angle = static_cast<int64_t>(table + min(item.first + row, to.seq - 1)) * kD + chunk * 8;
      Vec<T> const cos[2] = {load_cached(to.cos + angle), load_cached(to.cos + angle + kD / 2)};
      Vec<T> const sin[2] = {load_cached(to.sin + angle), load_cached(to.sin + angle + kD / 2)};
      T* const low = vector(rows, row, chunk);
      T* const high = vector(rows, row, chunk + kPairs);
      Vec<T> const x = load(low), y = load(high);
      store(low, turned<-1>(x, y, cos[0], sin[0]));
      store(high, turned<1>(y, x, cos[1], sin[1]));
    }
  }

  /// own cos + kSign other sin.
  template <int kSign>
  __device__ __forceinline__ static Vec<T> turned(Vec<T> const& own, Vec<T> const& other, Vec<T> const& cos,
                                                  Vec<T> const& sin) {
    float out[Vec<T>::kSize];
#pragma unroll
    for (int e = 0; e < Vec<T>::kSize; ++e) {
      float const turned = kSign < 0 ? -other.get(e) : other.get(e);
      out[e] = rotated_value(own.get(e), turned, cos.get(e), sin.get(e));
    }
    Vec<T> rounded;
    rounded.set(out);
    return rounded;
  }

  /// Columns 8 chunk.. of a row, as the copy engine places them.
  __device__ __forceinline__ static T* vector(char* rows, int row, int chunk) {
    return reinterpret_cast<T*>(rows + (chunk / 8 * Traits::kRows + row) * kSwizzleBytes + ((chunk ^ row) & 7) * 16);
  }

  Sm90PrefillArgs<T> const& args_;
  Sm90PrefillShared<Traits> const shared_;
};

}  // namespace graphopt::attention
