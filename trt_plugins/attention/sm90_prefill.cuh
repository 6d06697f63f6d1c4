// Attention of many query rows over a cache of 16-bit elements by the wgmma of Hopper, after FlashAttention-3 (Shah et al.,
// 2024): one warp brings queries, keys and values by the copy engine, warpgroups take 64 query rows each.
//
//   warpgroup 1:  | S = Q K^T, O += P V | softmax of S    | S = Q K^T, O += P V | ...
//   warpgroup 2:  ... | softmax of S    | S = Q K^T, O += P V | softmax of S    | ...
//
// Products of a tile's scores and those of the tile before with its values are started together, in turns, so that the
// tensor cores have one warpgroup's products while the other one finds weights. Tiles are walked from the last one that
// is seen to the first: what is masked comes first. One persistent block per multiprocessor; the next query rows, those
// that see most first, are whoever's asks for them. Three more warps rotate them where they have landed, while those
// before are worked on.
#pragma once

#include <cstdint>

#include "attention/append.cuh"
#include "attention/args.cuh"
#include "attention/mma.cuh"
#include "attention/sm90_prefill.h"
#include "attention/softmax.cuh"
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
  int32_t head;      // of q
  int32_t kv_head;   // of all sequences
  int32_t first;     // new token
  int32_t past;      // rows of sequence b before this call
  int32_t visible;   // rows that the last new token sees

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
  static constexpr int kItemOffset = Traits::kBarrierOffset + 2 * kRingBarriers + 7 * 8;
  static_assert(kItemOffset + 2 * 4 <= Traits::kSharedBytes);

  char* memory;
  uint32_t base = shared_address(memory);

  /// Blocks of 64 columns, kRows rows each.
  __device__ __forceinline__ uint32_t queries(int buffer) const { return base + buffer * Traits::kQueryBytes; }
  __device__ __forceinline__ Tiles keys() const { return {base + Traits::kKeyOffset, barriers()}; }
  __device__ __forceinline__ Tiles values() const {
    return {base + Traits::kValueOffset, barriers() + kRingBarriers};
  }
  __device__ __forceinline__ uint32_t queries_landed(int buffer) const {
    return barriers() + 2 * kRingBarriers + 8 * buffer;
  }
  __device__ __forceinline__ uint32_t queries_full(int buffer) const { return queries_landed(2 + buffer); }
  __device__ __forceinline__ uint32_t queries_empty(int buffer) const { return queries_landed(4 + buffer); }
  __device__ __forceinline__ uint32_t values_landed() const { return queries_landed(6); }  // those to be cleared
  /// Number of the item whose queries are in a buffer.
  __device__ __forceinline__ int32_t volatile& item(int buffer) const {
    return reinterpret_cast<int32_t volatile*>(memory + kItemOffset)[buffer];
  }

 private:
  __device__ __forceinline__ uint32_t barriers() const { return base + Traits::kBarrierOffset; }
};

/// One warp: ask for query rows, and bring them, keys and values.
template <class Traits>
class Sm90PrefillProducer {
  using T = typename Traits::T;

 public:
  __device__ __forceinline__ Sm90PrefillProducer(Sm90PrefillArgs<T> const& args,
                                                 Sm90PrefillShared<Traits> const& shared)
      : args_(args), shared_(shared), keys_(shared.keys()), values_(shared.values()) {}

  __device__ __forceinline__ void run() {
    int32_t const count = args_.tiles * args_.heads;
    int32_t index = static_cast<int32_t>(blockIdx.x);
    for (RingPosition<2> turn;; turn.advance()) {
      mbarrier_wait(shared_.queries_empty(turn.stage), turn.parity ^ 1);
      if (is_leader()) shared_.item(turn.stage) = index;
      if (index >= count) {
        if (is_leader()) mbarrier_arrive(shared_.queries_landed(turn.stage));
        return;
      }
      PrefillItem const item(args_, index, Traits::kRows);
      if (is_leader()) bring_queries(item, turn.stage);
      bring_tiles(item);
      // Asked for while the last tiles are multiplied.
      if (is_leader()) index = static_cast<int32_t>(gridDim.x) + atomicAdd(args_.attention.counters, 1);
      index = __shfl_sync(0xffffffffu, index, 0);
    }
  }

 private:
  __device__ __forceinline__ static int lane() { return static_cast<int>(threadIdx.x) % 32; }
  __device__ __forceinline__ static bool is_leader() { return lane() == 0; }

  __device__ __forceinline__ void bring_queries(PrefillItem const& item, int buffer) const {
    uint32_t const barrier = shared_.queries_landed(buffer);
    mbarrier_arrive_expect(barrier, Traits::kQueryBytes);
#pragma unroll
    for (int i = 0; i < Traits::kBlocks; ++i) {
      tma_load(shared_.queries(buffer) + i * Traits::kRows * kSwizzleBytes, &args_.q, barrier,
               item.head * Traits::kD + i * Traits::kColumns, item.b * args_.attention.seq + item.first);
    }
  }

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

/// Three warps: rotate queries where they have landed, if they are to be, and hand them over.
template <class Traits>
class Sm90PrefillRotator {
  using T = typename Traits::T;
  static constexpr int kD = Traits::kD;
  static constexpr int kPairs = kD / 16;  // of vectors of a row, half a row apart

 public:
  static constexpr int kWarps = 3;

  __device__ __forceinline__ Sm90PrefillRotator(Sm90PrefillArgs<T> const& args, Sm90PrefillShared<Traits> const& shared)
      : args_(args), shared_(shared) {}

  __device__ __forceinline__ void run() const {
    for (RingPosition<2> turn;; turn.advance()) {
      mbarrier_wait(shared_.queries_landed(turn.stage), turn.parity);
      int32_t const index = shared_.item(turn.stage);
      bool const last = index >= args_.tiles * args_.heads;
      if (!last && args_.attention.cos != nullptr) rotate(PrefillItem(args_, index, Traits::kRows), turn.stage);
      async_proxy_fence();
      __syncwarp();
      if (threadIdx.x % 32 == 0) mbarrier_arrive(shared_.queries_full(turn.stage));
      if (last) return;
    }
  }

 private:
  __device__ __forceinline__ void rotate(PrefillItem const& item, int buffer) const {
    AttentionArgs<T> const& to = args_.attention;
    char* const rows = shared_.memory + buffer * Traits::kQueryBytes;
    uint32_t const table = to.tables == 1 ? 0u : static_cast<uint32_t>(item.b * to.seq);  // token of its first row
#pragma unroll(Traits::kConsumers == 2 ? 2 : 1)  // what registers allow
    for (int at = static_cast<int>(threadIdx.x) - 32; at < Traits::kRows * kPairs; at += 32 * kWarps) {
      int const row = at / kPairs, chunk = at % kPairs;
      int64_t const angle = static_cast<int64_t>(table + min(item.first + row, to.seq - 1)) * kD + chunk * 8;
      T* const low = vector(rows, row, chunk);
      T* const high = vector(rows, row, chunk + kPairs);
      Vec<T> const x = load(low), y = load(high);
      float out[Vec<T>::kSize];
      Vec<T> cos = load_cached(to.cos + angle), sin = load_cached(to.sin + angle), rotated;
#pragma unroll
      for (int e = 0; e < Vec<T>::kSize; ++e) out[e] = rotated_value(x.get(e), -y.get(e), cos.get(e), sin.get(e));
      rotated.set(out);
      store(low, rotated);
      cos = load_cached(to.cos + angle + kD / 2), sin = load_cached(to.sin + angle + kD / 2);
#pragma unroll
      for (int e = 0; e < Vec<T>::kSize; ++e) out[e] = rotated_value(y.get(e), x.get(e), cos.get(e), sin.get(e));
      rotated.set(out);
      store(high, rotated);
    }
  }

  /// Columns 8 chunk.. of a row, as the copy engine places them.
  __device__ __forceinline__ static T* vector(char* rows, int row, int chunk) {
    return reinterpret_cast<T*>(rows + (chunk / 8 * Traits::kRows + row) * kSwizzleBytes + ((chunk ^ row) & 7) * 16);
  }

  Sm90PrefillArgs<T> const& args_;
  Sm90PrefillShared<Traits> const shared_;
};

/// One warpgroup that multiplies: 64 query rows of every item.
template <class Traits>
class Sm90PrefillConsumer {
  using T = typename Traits::T;
  using Rows = StagedRows<Traits::kD>;
  using Scores = uint32_t[Traits::kTokens / 8][4];
  using Weights = uint32_t[Traits::kTokens / 16][4];
  using Outputs = uint32_t[Traits::kD / 8][4];
  static constexpr int kFirstTurn = 1;  // barrier of warpgroup 0's turns

 public:
  __device__ __forceinline__ Sm90PrefillConsumer(Sm90PrefillArgs<T> const& args,
                                                 Sm90PrefillShared<Traits> const& shared, int warpgroup)
      : args_(args),
        shared_(shared),
        keys_(shared.keys()),
        values_(shared.values()),
        warpgroup_(warpgroup),
        staged_(shared.memory + Traits::kOutputOffset + (warpgroup * 64 + warp_ * 16) * Rows::kPitch) {}

  __device__ __forceinline__ void run() {
    int32_t const count = args_.tiles * args_.heads;
    if (warpgroup_ == Traits::kConsumers - 1) warpgroup_signal(kFirstTurn);
    for (;; query_.advance()) {
      mbarrier_wait(shared_.queries_full(query_.stage), query_.parity);
      int32_t const index = shared_.item(query_.stage);
      if (index >= count) break;
      attend(PrefillItem(args_, index, Traits::kRows));
    }
    if (warpgroup_ == 0) warpgroup_await(kFirstTurn);  // the last signal
  }

 private:
  /// The same registers as one row, for wgmma.
  template <int kCount>
  __device__ __forceinline__ static uint32_t (&flat(uint32_t (&words)[kCount][4]))[4 * kCount] {
    return reinterpret_cast<uint32_t(&)[4 * kCount]>(words);
  }

  __device__ __forceinline__ void attend(PrefillItem const& item) {
    Scores s;
    Weights p;
    Outputs o = {};
    OnlineSoftmax softmax;
    float rescale[2];
    int32_t tile = (item.visible + Traits::kTokens - 1) / Traits::kTokens - 1;

    start_scores(s);
    wgmma_wait<0>();
    end_scores(s, tile);
    weigh(s, softmax, item, tile, rescale);
    round_weights<T>(s, p);
#pragma unroll 1
    while (tile > 0) {
      --tile;
      warpgroup_await(kFirstTurn + warpgroup_);
      start_scores(s);
      start_outputs(o, p);
      warpgroup_signal(kFirstTurn + (warpgroup_ + 1) % Traits::kConsumers);
      wgmma_wait<1>();
      end_scores(s, tile);
      bool const grows = weigh(s, softmax, item, tile, rescale);
      // This branch keeps the assembler from moving the wait to before the weights.
      if (grows) {
        wgmma_wait<0>();
        wgmma_pin(flat(o));
        scale_rows(o, rescale);
      }
      wgmma_wait<0>();
      end_outputs(o);
      round_weights<T>(s, p);
    }
    start_outputs(o, p);
    wgmma_wait<0>();
    end_outputs(o);

    AttentionArgs<T> const& to = args_.attention;
    int32_t const token = item.first + warpgroup_ * 64 + warp_ * 16;
    int64_t const row = (int64_t{item.b} * to.seq + token) * to.heads + item.head;
    softmax.template write<Rows>(o, staged_, to.y + row * Traits::kD, int64_t{to.heads} * Traits::kD, to.seq - token,
                                 Traits::kD);
  }

  /// S = Q K^T.
  __device__ __forceinline__ void start_scores(Scores& s) {
    mbarrier_wait(keys_.full(key_.stage), key_.parity);
    uint64_t const q = wgmma_descriptor(shared_.queries(query_.stage) + warpgroup_ * 64 * kSwizzleBytes);
    uint64_t const k = wgmma_descriptor(keys_.x(key_.stage));
    wgmma_fence();
#pragma unroll
    for (int step = 0; step < Traits::kD / 16; ++step) {
      constexpr int kStepsOfBlock = Traits::kColumns / 16;
      int const block = step / kStepsOfBlock, within = step % kStepsOfBlock * (kWgmmaStepBytes / 16);
      Wgmma<Traits::kTokens>::product(flat(s), q + block * (Traits::kRows * kSwizzleBytes / 16) + within,
                                      k + block * (Traits::kTokens * kSwizzleBytes / 16) + within, step > 0, T{});
    }
    wgmma_commit();
  }

  /// Scores have been waited for.
  __device__ __forceinline__ void end_scores(Scores& s, int32_t tile) {
    wgmma_pin(flat(s));
    release(keys_.empty(key_.stage));
    key_.advance();
    if (tile == 0) release(shared_.queries_empty(query_.stage));
  }

  /// O += P V.
  __device__ __forceinline__ void start_outputs(Outputs& o, Weights& p) {
    mbarrier_wait(values_.full(value_.stage), value_.parity);
    uint64_t const v = wgmma_columns_descriptor(values_.x(value_.stage), Traits::kTokens * kSwizzleBytes);
    wgmma_pin(flat(p));
    wgmma_pin(flat(o));
    wgmma_fence();
#pragma unroll
    for (int step = 0; step < Traits::kTokens / 16; ++step) {
      Wgmma<Traits::kD>::template product<1>(flat(o), p[step], v + step * (16 * kSwizzleBytes / 16), true, T{});
    }
    wgmma_commit();
  }

  /// Outputs have been waited for.
  __device__ __forceinline__ void end_outputs(Outputs& o) {
    wgmma_pin(flat(o));
    release(values_.empty(value_.stage));
    value_.advance();
  }

  /// Scores of a tile to weights. Returns whether outputs are to be multiplied by `rescale`.
  __device__ __forceinline__ bool weigh(Scores& s, OnlineSoftmax& softmax, PrefillItem const& item, int32_t tile,
                                        float (&rescale)[2]) const {
    int32_t const token = tile * Traits::kTokens, first = item.first + warpgroup_ * 64;
    int32_t const capacity = args_.attention.capacity;
    if (token + Traits::kTokens > visible_rows(item.past, first, capacity)) {
      int32_t const row = first + warp_ * 16 + lane_ / 4;
      mask_scores(s, {visible_rows(item.past, row, capacity) - token,
                      visible_rows(item.past, row + 8, capacity) - token});
    }
    return softmax.weigh(s, args_.attention.scale_log2, rescale);
  }

  /// Tell the producer that this warp has read what `barrier` guards.
  __device__ __forceinline__ void release(uint32_t barrier) const {
    __syncwarp();
    if (lane_ == 0) mbarrier_arrive(barrier);
  }

  using Tiles = typename Sm90PrefillShared<Traits>::Tiles;

  Sm90PrefillArgs<T> const& args_;
  Sm90PrefillShared<Traits> const shared_;
  Tiles const keys_, values_;
  int const warp_ = static_cast<int>(threadIdx.x) / 32 % 4;
  int const lane_ = static_cast<int>(threadIdx.x) % 32;
  int const warpgroup_;
  char* const staged_;
  RingPosition<2> query_;
  RingPosition<Traits::kStages> key_, value_;
};

template <class Traits>
__global__ void __launch_bounds__(Traits::kThreads, 1)
    attention_prefill_sm90(__grid_constant__ Sm90PrefillArgs<typename Traits::T> const args) {
  extern __shared__ __align__(1024) char memory[];
  Sm90PrefillShared<Traits> const shared{memory};
  int const warpgroup = static_cast<int>(threadIdx.x) / kWarpgroup - 1;

  if (threadIdx.x == 0) {
    for (CUtensorMap const* map : {&args.q, &args.k, &args.v}) prefetch_tensor_map(map);
    shared.keys().init(Traits::kReaderWarps);
    shared.values().init(Traits::kReaderWarps);
    for (int buffer = 0; buffer < 2; ++buffer) {
      mbarrier_init(shared.queries_landed(buffer), 1);
      mbarrier_init(shared.queries_full(buffer), Sm90PrefillRotator<Traits>::kWarps);
      mbarrier_init(shared.queries_empty(buffer), Traits::kReaderWarps);
    }
    mbarrier_init(shared.values_landed(), 1);
    mbarrier_init_fence();
  }
  __syncthreads();
  wait_for_predecessor();
  release_successor();

  if (warpgroup < 0) {
    release_registers<Traits::kProducerRegisters>();
    if (threadIdx.x < 32) {
      Sm90PrefillProducer<Traits>(args, shared).run();
    } else {
      Sm90PrefillRotator<Traits>(args, shared).run();
    }
  } else {
    claim_registers<Traits::kConsumerRegisters>();
    Sm90PrefillConsumer<Traits>(args, shared, warpgroup).run();
  }
}

}  // namespace graphopt::attention
