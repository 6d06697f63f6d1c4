// Attention of many query rows over a cache of 16-bit elements by the wgmma of Hopper, after FlashAttention-3 (Shah et al.,
// 2024): one warp brings queries, keys and values by the copy engine, warpgroups take 64 query rows each.
//
//   warpgroup 1:  | S = Q K^T, O += P V | softmax of S    | S = Q K^T, O += P V | ...
//   warpgroup 2:  ... | softmax of S    | S = Q K^T, O += P V | softmax of S    | ...
//
// Products of a tile's scores and those of the tile before with its values are started together, in turns, so that the
// tensor cores have one warpgroup's products while the other one finds weights. Tiles are walked from the last one that
// is seen to the first: what is masked comes first. One persistent block per multiprocessor; the next query rows, those
// that see most first, are whoever's asks for them. Three more warps ask, bring them, and rotate them where they have
// landed, while those before are worked on.
#pragma once

#include <cstdint>

#include "attention/args.cuh"
#include "attention/mma.cuh"
#include "attention/sm90_prefill_feed.cuh"
#include "attention/softmax.cuh"
#include "common/wgmma.cuh"

namespace graphopt::attention {

/// One warpgroup that multiplies: 64 query rows of every item.
template <class Traits>
class Sm90PrefillConsumer {
  using T = typename Traits::T;
  using Rows = StagedRows<Traits::kD>;
  using Scores = uint32_t[Traits::kTokens / 8][4];
  using Weights = uint32_t[Traits::kTokens / 16][4];
  using Outputs = uint32_t[Traits::kD / 8][4];

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
    for (;; query_.advance()) {
      mbarrier_wait(shared_.queries_full(query_.stage), query_.parity);
      int32_t const index = shared_.item(query_.stage);
      if (index >= args_.tiles * args_.heads) return;
      attend(PrefillItem(args_, index, Traits::kRows));
    }
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
      await_turn();
      start_scores(s);
      start_outputs(o, p);
      pass_turn();
      wgmma_wait<1>();
      end_scores(s, tile);
      bool const grows = weigh(s, softmax, item, tile, rescale);
      stay_behind_weights(grows, softmax);
      wgmma_wait<0>();
      wgmma_pin(flat(o));
      if (grows) scale_rows(o, rescale);
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

  /// A branch that keeps the assembler from moving the wait for outputs to before the weights. It must not hold that
  /// wait itself: all warps of a warpgroup have to execute the same one, and they do not agree about `grows`.
  __device__ __forceinline__ static void stay_behind_weights(bool grows, OnlineSoftmax const& softmax) {
    if (grows) asm volatile("nanosleep.u32 %0;" ::"r"(softmax.sign_of_sums()) : "memory");
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

  /// Wait until the warpgroup before has started its products; the first one need not wait the first time.
  __device__ __forceinline__ void await_turn() {
    mbarrier_wait(shared_.turn(warpgroup_), turn_);
    turn_ ^= 1;
  }

  __device__ __forceinline__ void pass_turn() const { release(shared_.turn((warpgroup_ + 1) % Traits::kConsumers)); }

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
  uint32_t turn_ = warpgroup_ == 0 ? 1 : 0;  // parity
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
    shared.init();
  }
  __syncthreads();
  wait_for_predecessor();
  release_successor();

  if (warpgroup < 0) {
    release_registers<Traits::kProducerRegisters>();
    if (threadIdx.x < 32) {
      Sm90PrefillProducer<Traits>(args, shared).run();
    } else {
      Sm90PrefillQueries<Traits>(args, shared).run();
    }
  } else {
    claim_registers<Traits::kConsumerRegisters>();
    Sm90PrefillConsumer<Traits>(args, shared, warpgroup).run();
  }
}

}  // namespace graphopt::attention
