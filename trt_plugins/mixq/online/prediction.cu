#include "mixq/online/prediction.h"

#include <algorithm>

#include "common/launch.h"
#include "common/ptx.cuh"
#include "common/reduce.cuh"
#include "mixq/linear/params.h"

namespace graphopt::mixq {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarp;
constexpr int kVectorBytes = 16;
constexpr uint32_t kInSet = ~0u;  // above the bits of every r

struct PredictionArgs {
  int64_t rows;
  int32_t cols;
  int32_t capacity;
  float sigma;
  float sigma_rms;
  int8_t const* xq;  // [rows, cols]
  float const* sx;   // [rows]
  int32_t* set_out;  // [capacity]
  int32_t* changed;
  int32_t* found;
  uint32_t* arrived;
  int32_t* set;      // [capacity]
  uint32_t* excess;  // [cols]
};

/// Sum over the block; the same in every thread. `scratch`: kWarps integers of shared memory.
__device__ __forceinline__ int32_t block_sum(int32_t value, int32_t* scratch) {
  value = __reduce_add_sync(0xffffffffu, value);
  __syncthreads();  // the readers of the last sum are through
  if (threadIdx.x % kWarp == 0) scratch[threadIdx.x / kWarp] = value;
  __syncthreads();
  int const lane = static_cast<int>(threadIdx.x) % kWarp;
  return __reduce_add_sync(0xffffffffu, lane < kWarps ? scratch[lane] : 0);
}

/// How many threads before this one have `flag`; `total` gets how many have it at all.
__device__ __forceinline__ int32_t block_rank(bool flag, int32_t* scratch, int32_t* total) {
  unsigned const ballot = __ballot_sync(0xffffffffu, flag);
  int const lane = static_cast<int>(threadIdx.x) % kWarp, warp = static_cast<int>(threadIdx.x) / kWarp;
  __syncthreads();
  if (lane == 0) scratch[warp] = __popc(ballot);
  __syncthreads();
  int32_t rank = __popc(ballot & ((1u << lane) - 1));
  *total = 0;
  for (int w = 0; w < kWarps; ++w) {
    if (w < warp) rank += scratch[w];
    *total += scratch[w];
  }
  return rank;
}

/// One row of codes, by `lanes` threads of which this is `lane`.
class CodeRow {
 public:
  __device__ __forceinline__ CodeRow(PredictionArgs const& args, int64_t row, int lane, int lanes)
      : codes_(args.xq + row * args.cols), cols_(args.cols), lane_(lane), lanes_(lanes) {
    vectors_ = cols_ % kVectorBytes == 0 && (reinterpret_cast<uintptr_t>(args.xq) & (kVectorBytes - 1)) == 0;
  }

  /// This thread's share of the sum of squares.
  __device__ __forceinline__ int32_t squares() const {
    int32_t sum = 0;
    if (!vectors_) {
      for (int32_t k = lane_; k < cols_; k += lanes_) sum += int32_t{codes_[k]} * codes_[k];
      return sum;
    }
    int4 const* vectors = reinterpret_cast<int4 const*>(codes_);
#pragma unroll 4
    for (int32_t v = lane_; v < cols_ / kVectorBytes; v += lanes_) {
      int4 const four = vectors[v];
      sum = __dp4a(four.x, four.x, sum);
      sum = __dp4a(four.y, four.y, sum);
      sum = __dp4a(four.z, four.z, sum);
      sum = __dp4a(four.w, four.w, sum);
    }
    return sum;
  }

  /// Raise excess[k] to scale |code| / bound where that is above 1.
  __device__ __forceinline__ void mark(float scale, float bound, uint32_t* excess) const {
    for (int32_t k = lane_; k < cols_; k += lanes_) {
      float const magnitude = __int2float_rn(abs(int32_t{codes_[k]}));
      float const ratio = __fdiv_rn(__fmul_rn(magnitude, scale), bound);
      if (ratio > 1.0f) atomicMax(excess + k, __float_as_uint(ratio));
    }
  }

 private:
  int8_t const* codes_;
  int32_t cols_;
  int lane_, lanes_;
  bool vectors_;
};

/// Find what exceeds its threshold in the rows of this block. kWarpPerRow: else the block shares each row.
template <bool kWarpPerRow>
__device__ __forceinline__ void look_at_rows(PredictionArgs const& args, int32_t* scratch) {
  constexpr float kCodeMax = 127.0f;
  int const thread = static_cast<int>(threadIdx.x);
  int const lane = kWarpPerRow ? thread % kWarp : thread, lanes = kWarpPerRow ? kWarp : kThreads;
  int64_t const step = int64_t{gridDim.x} * (kWarpPerRow ? kWarps : 1);
  int64_t const first = kWarpPerRow ? int64_t{blockIdx.x} * kWarps + thread / kWarp : int64_t{blockIdx.x};
  for (int64_t m = first; m < args.rows; m += step) {
    CodeRow const row(args, m, lane, lanes);
    int32_t squares = 0;
    if (args.sigma_rms > 0.0f) {
      squares = kWarpPerRow ? __reduce_add_sync(0xffffffffu, row.squares()) : block_sum(row.squares(), scratch);
    }
    float const scale = args.sx[m];
    float const rms =
        __fmul_rn(scale, __fsqrt_rn(__fdiv_rn(__int2float_rn(squares), __int2float_rn(args.cols))));
    float const bound = fmaxf(args.sigma, __fmul_rn(args.sigma_rms, rms));
    // The largest code of a row is 127. A scale that is not finite exceeds nothing.
    if (!isfinite(scale) || !(bound > 0.0f) || !(__fdiv_rn(__fmul_rn(kCodeMax, scale), bound) > 1.0f)) continue;
    if (lane == 0) atomicExch(args.found, 1);
    row.mark(scale, bound, args.excess);
  }
}

/// Which channels get a slot: those above `cut`, and the first `ties` of those that are at it.
struct Selection {
  uint32_t cut;
  int32_t ties;
};

__device__ Selection select(PredictionArgs const& args, int32_t* scratch) {
  auto count_above = [&](uint32_t bound) {
    int32_t count = 0;
    for (int32_t k = static_cast<int32_t>(threadIdx.x); k < args.cols; k += kThreads) {
      count += __ldcg(args.excess + k) > bound ? 1 : 0;
    }
    return block_sum(count, scratch);
  };
  if (count_above(0) <= args.capacity) return {0, 0};
  uint32_t low = 0, high = kInSet;  // too many are above `low`, and not too many above `high`
  while (high - low > 1) {
    uint32_t const middle = low + (high - low) / 2;
    if (count_above(middle) <= args.capacity) {
      high = middle;
    } else {
      low = middle;
    }
  }
  return {high, args.capacity - count_above(high)};
}

/// Extend the set by what was found, and leave zeros behind. By one block, when all others are through.
__device__ void extend(PredictionArgs const& args, int32_t* scratch) {
  int32_t const thread = static_cast<int32_t>(threadIdx.x);
  for (int32_t c = thread; c < args.capacity; c += kThreads) {
    if (args.set[c] >= 0 && args.set[c] < args.cols) __stcg(args.excess + args.set[c], kInSet);
  }
  __syncthreads();
  Selection const selection = select(args, scratch);
  int32_t used = 0, tied = 0;
  for (int32_t base = 0; base < args.cols; base += kThreads) {
    int32_t const k = base + thread;
    uint32_t const excess = k < args.cols ? __ldcg(args.excess + k) : 0;
    int32_t ties_here, taken_here;
    bool const tie = excess != 0 && excess == selection.cut;
    int32_t const tie_rank = tied + block_rank(tie, scratch, &ties_here);
    bool const taken = excess > selection.cut || (tie && tie_rank < selection.ties);
    int32_t const slot = used + block_rank(taken, scratch, &taken_here);
    if (taken) args.set[slot] = k;
    if (k < args.cols) __stcg(args.excess + k, 0u);
    used += taken_here;
    tied += ties_here;
  }
  for (int32_t c = used + thread; c < args.capacity; c += kThreads) args.set[c] = -1;
  __syncthreads();
}

template <bool kWarpPerRow>
__global__ void __launch_bounds__(kThreads) predict(PredictionArgs const args) {
  __shared__ int32_t scratch[kWarps];
  __shared__ bool last;
  wait_for_predecessor();
  bool const full = __ldcg(args.set + args.capacity - 1) >= 0;
  if (!full) look_at_rows<kWarpPerRow>(args, scratch);
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) last = atomicAdd(args.arrived, 1u) == gridDim.x - 1;
  __syncthreads();
  if (!last) return;
  __threadfence();
  bool const found = __ldcg(args.found) != 0;
  if (found) extend(args, scratch);
  for (int32_t c = static_cast<int32_t>(threadIdx.x); c < args.capacity; c += kThreads) args.set_out[c] = args.set[c];
  if (threadIdx.x != 0) return;
  *args.changed = found ? 1 : 0;
  *args.found = 0;
  *args.arrived = 0;
}

__global__ void __launch_bounds__(kThreads)
    init_prediction(int32_t* ready, int32_t* set, int32_t capacity, int32_t const* idx, int32_t listed) {
  bool const done = *ready != 0;
  __syncthreads();
  if (done) return;
  for (int32_t c = static_cast<int32_t>(threadIdx.x); c < capacity; c += kThreads) set[c] = c < listed ? idx[c] : -1;
  if (threadIdx.x == 0) *ready = 1;
}

}  // namespace

PredictionState::PredictionState(void* data, int64_t cols, int64_t capacity) {
  constexpr int64_t kWords = 4;  // before the set
  ready = static_cast<int32_t*>(data);
  changed = ready + 1;
  found = ready + 2;
  arrived = static_cast<uint32_t*>(data) + 3;
  set = ready + kWords;
  excess = static_cast<uint32_t*>(data) + kWords + capacity;
  bytes = static_cast<size_t>(kWords + capacity + cols) * sizeof(int32_t);
}

Status launch_init_prediction(PredictionState const& state, int32_t const* idx, int64_t listed, int64_t capacity,
                              cudaStream_t stream) {
  return launch(init_prediction, dim3(1), dim3(kThreads), 0, stream, state.ready, state.set, capacity, idx, listed);
}

Status launch_reset_prediction(PredictionState const& state, int32_t const* idx, int64_t cols, int64_t listed,
                               int64_t capacity, cudaStream_t stream) {
  if (cols < 1 || listed < 1 || capacity < listed || capacity % 16 != 0) return Status::kBadShape;
  GRAPHOPT_TRY(check_pointer(state.ready, alignof(int4)));
  GRAPHOPT_TRY(check_pointer(idx, sizeof(int32_t)));
  GRAPHOPT_CUDA_TRY(cudaMemsetAsync(state.ready, 0, state.bytes, stream));
  return launch_init_prediction(state, idx, listed, capacity, stream);
}

Status check_prediction(PredictionParams const& p, PredictionState const& state) {
  if (p.rows < 0 || p.cols < 1 || p.capacity < 16 || p.capacity % 16 != 0) return Status::kBadShape;
  if (!(p.sigma >= 0.0f) || !(p.sigma_rms >= 0.0f)) return Status::kBadAttribute;
  if (p.cols > kMaxLinearK) return Status::kTooLarge;
  GRAPHOPT_TRY(check_pointer(state.ready, alignof(int4)));
  GRAPHOPT_TRY(check_pointer(p.set, sizeof(int32_t)));
  if (p.rows == 0) return Status::kOk;
  GRAPHOPT_TRY(check_pointer(p.xq, 1));
  return check_pointer(p.sx, sizeof(float));
}

Status launch_prediction(PredictionParams const& p, PredictionState const& state, cudaStream_t stream) {
  GRAPHOPT_TRY(check_prediction(p, state));
  PredictionArgs const args{p.rows,
                            static_cast<int32_t>(p.cols),
                            static_cast<int32_t>(p.capacity),
                            p.sigma,
                            p.sigma_rms,
                            p.xq,
                            p.sx,
                            p.set,
                            state.changed,
                            state.found,
                            state.arrived,
                            state.set,
                            state.excess};
  int multiprocessors = 0;
  GRAPHOPT_TRY(multiprocessor_count(&multiprocessors));
  constexpr int64_t kBlocksPerMultiprocessor = 8;  // 2048 threads
  int64_t const most = multiprocessors * kBlocksPerMultiprocessor;
  bool const warp_per_row = p.rows > most;
  int64_t const blocks = std::clamp<int64_t>(warp_per_row ? ceil_div<int64_t>(p.rows, kWarps) : p.rows, 1, most);
  return launch_at(Start::kEarly, warp_per_row ? predict<true> : predict<false>, dim3(static_cast<unsigned>(blocks)),
                   dim3(kThreads), 0, stream, args);
}

}  // namespace graphopt::mixq
