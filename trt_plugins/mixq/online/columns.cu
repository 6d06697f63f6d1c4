#include "mixq/online/columns.h"

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "common/launch.h"
#include "common/packing.h"
#include "common/ptx.cuh"
#include "common/vec.cuh"
#include "mixq/common/channel_list.cuh"

namespace graphopt::mixq {
namespace {

constexpr int kThreads = 256;
constexpr int kRowsPerBlock = 64;  // of W
constexpr int32_t kMadeOffset = 2;  // so that zeros are no column at all, and ones are padding

struct Int8Codes {
  int8_t const* wq;  // [N, K]
  int64_t k;

  __device__ __forceinline__ int32_t get(int64_t n, int32_t channel) const { return wq[n * k + channel]; }
};

struct Int4Codes {
  int8_t const* wq4;  // [N, row_bytes]
  int8_t const* sg;   // [groups, N]
  int64_t row_bytes;
  int64_t n;
  int32_t group;

  __device__ __forceinline__ int32_t get(int64_t row, int32_t channel) const {
    int32_t const vector = channel / kPackedCodes, place = channel % kPackedCodes;
    int32_t const byte = wq4[row * row_bytes + vector * kPackedBytes + place % kPackedBytes];
    int32_t const code = place < kPackedBytes ? static_cast<int8_t>(byte << 4) >> 4 : byte >> 4;
    return code * sg[channel / group * n + row];
  }
};

template <class T, class Codes>
struct ColumnsArgs {
  int64_t n;
  int32_t listed;
  int32_t capacity;
  Codes codes;
  float const* sw;     // [n]
  T const* wo;         // [n, listed]
  int32_t const* idx;  // [listed]
  int32_t const* set;  // [capacity]
  uint32_t* arrived;
  int32_t* made;  // [capacity]
  T* columns;     // [n, capacity]
};

template <class T, class Codes>
__device__ __forceinline__ T column_value(ColumnsArgs<T, Codes> const& args, int64_t row, int32_t channel) {
  if (channel < 0) return from_float<T>(0.0f);
  int32_t const slot = lower_bound(args.idx, args.listed, static_cast<uint32_t>(channel));
  if (slot < args.listed && args.idx[slot] == channel) return args.wo[row * args.listed + slot];
  return from_float<T>(__fmul_rn(__int2float_rn(args.codes.get(row, channel)), args.sw[row]));
}

template <class T, class Codes>
__global__ void __launch_bounds__(kThreads) extend_columns(ColumnsArgs<T, Codes> const args) {
  wait_for_predecessor();
  int32_t const thread = static_cast<int32_t>(threadIdx.x);
  bool stale = false;
  for (int32_t c = thread; c < args.capacity; c += kThreads) stale |= args.made[c] != args.set[c] + kMadeOffset;
  if (__syncthreads_or(stale) == 0) return;

  int64_t const first = int64_t{blockIdx.x} * kRowsPerBlock;
  for (int32_t c = thread; c < args.capacity; c += kThreads) {
    int32_t const channel = args.set[c];
    if (args.made[c] == channel + kMadeOffset) continue;
    for (int64_t row = first; row < first + kRowsPerBlock && row < args.n; ++row) {
      args.columns[row * args.capacity + c] = column_value(args, row, channel);
    }
  }
  // Who is last knows that all others have compared with `made`.
  __shared__ bool last;
  __syncthreads();
  if (thread == 0) {
    __threadfence();
    last = atomicAdd(args.arrived, 1u) == gridDim.x - 1;
  }
  __syncthreads();
  if (!last) return;
  for (int32_t c = thread; c < args.capacity; c += kThreads) args.made[c] = args.set[c] + kMadeOffset;
  if (thread == 0) *args.arrived = 0;
}

Status check(ColumnsParams const& p, ColumnsState const& state) {
  if (!is_activation_type(p.dtype)) return Status::kBadType;
  if (p.n < 1 || p.k < 1 || p.listed < 1 || p.capacity < p.listed || p.capacity % 16 != 0) return Status::kBadShape;
  if (p.wq == nullptr && (p.group < 1 || p.group > (int64_t{1} << 30))) return Status::kBadShape;
  size_t const size = element_size(p.dtype);
  GRAPHOPT_TRY(check_pointer(p.wq == nullptr ? p.wq4 : p.wq, 1));
  if (p.wq == nullptr) GRAPHOPT_TRY(check_pointer(p.sg, 1));
  GRAPHOPT_TRY(check_pointer(p.sw, sizeof(float)));
  GRAPHOPT_TRY(check_pointer(p.wo, size));
  GRAPHOPT_TRY(check_pointer(p.idx, sizeof(int32_t)));
  GRAPHOPT_TRY(check_pointer(p.set, sizeof(int32_t)));
  return check_pointer(state.arrived, alignof(int4));
}

template <class T, class Codes>
Status launch_typed(ColumnsParams const& p, Codes const& codes, ColumnsState const& state, cudaStream_t stream) {
  ColumnsArgs<T, Codes> const args{p.n,
                                   static_cast<int32_t>(p.listed),
                                   static_cast<int32_t>(p.capacity),
                                   codes,
                                   p.sw,
                                   static_cast<T const*>(p.wo),
                                   p.idx,
                                   p.set,
                                   state.arrived,
                                   state.made,
                                   static_cast<T*>(state.columns)};
  dim3 const grid(static_cast<unsigned>(ceil_div<int64_t>(p.n, kRowsPerBlock)));
  return launch_at(Start::kEarly, extend_columns<T, Codes>, grid, dim3(kThreads), 0, stream, args);
}

template <class T>
Status launch_of_type(ColumnsParams const& p, ColumnsState const& state, cudaStream_t stream) {
  if (p.wq != nullptr) return launch_typed<T>(p, Int8Codes{p.wq, p.k}, state, stream);
  Int4Codes const codes{p.wq4, p.sg, packed_bytes(p.k), p.n, static_cast<int32_t>(p.group)};
  return launch_typed<T>(p, codes, state, stream);
}

}  // namespace

ColumnsState::ColumnsState(void* data, DType dtype, int64_t n, int64_t capacity) {
  constexpr size_t kWords = 4;     // before `made`
  constexpr size_t kAlign = 128;  // of columns: a row of the copy engine's boxes
  arrived = static_cast<uint32_t*>(data);
  made = static_cast<int32_t*>(data) + kWords;
  size_t const head = (kWords + static_cast<size_t>(capacity)) * sizeof(int32_t);
  size_t const offset = (head + kAlign - 1) / kAlign * kAlign;
  columns = static_cast<char*>(data) + offset;
  bytes = offset + static_cast<size_t>(n * capacity) * element_size(dtype);
}

Status launch_reset_columns(ColumnsState const& state, cudaStream_t stream) {
  GRAPHOPT_TRY(check_pointer(state.arrived, alignof(int4)));
  size_t const head = static_cast<size_t>(static_cast<char*>(state.columns) - reinterpret_cast<char*>(state.arrived));
  return cuda_status(cudaMemsetAsync(state.arrived, 0, head, stream));
}

Status launch_columns(ColumnsParams const& params, ColumnsState const& state, cudaStream_t stream) {
  GRAPHOPT_TRY(check(params, state));
  return with_activation_type(params.dtype, [&](auto zero) {
    return launch_of_type<decltype(zero)>(params, state, stream);
  });
}

}  // namespace graphopt::mixq
