// Checks the arguments, picks the kernel and dispatches on the element type; unpacks codes where int4 has no kernel.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <algorithm>

#include "common/launch.h"
#include "mixq/linear_w4a4/params.h"
#include "mixq/linear_w4a4/policy.h"
#include "mixq/linear_w4a8/check.h"
#include "mixq/linear_w4a8/codes.cuh"

namespace graphopt::mixq {

template <class T>
Status launch_linear_w4a4_typed(LinearW4A8Params const& p, LinearW4A4Kernel kernel, cudaStream_t stream);
extern template Status launch_linear_w4a4_typed<float>(LinearW4A8Params const&, LinearW4A4Kernel, cudaStream_t);
extern template Status launch_linear_w4a4_typed<__half>(LinearW4A8Params const&, LinearW4A4Kernel, cudaStream_t);
extern template Status launch_linear_w4a4_typed<__nv_bfloat16>(LinearW4A8Params const&, LinearW4A4Kernel, cudaStream_t);

namespace {

constexpr int kUnpackThreads = 256;

/// 16 packed bytes -> 32 int8 codes, a vector to a thread. `vectors`: in all of `packed`.
template <bool kAligned>
__global__ void __launch_bounds__(kUnpackThreads)
    unpack_codes(int8_t const* __restrict__ packed, int8_t* __restrict__ codes, int64_t vectors) {
  int64_t const vector = int64_t{blockIdx.x} * kUnpackThreads + threadIdx.x;
  if (vector >= vectors) return;
  Vec<int8_t> source, first, second;
  if constexpr (kAligned) {
    source = load_streaming(packed + vector * 16);
  } else {
    memcpy(&source, packed + vector * 16, sizeof(source));
  }
  GroupScale const one(1);
#pragma unroll
  for (int word = 0; word < 4; ++word) {
    first.word[word] = one.low(source.word[word]);
    second.word[word] = one.high(source.word[word]);
  }
  store(codes + vector * 32, first);
  store(codes + vector * 32 + 16, second);
}

/// The same product with X unpacked, kUnpackedTokens at a time.
Status launch_unpacked(LinearW4A8Params const& packed, void* workspace, cudaStream_t stream) {
  int64_t const row_bytes = packed_bytes(packed.k), size = static_cast<int64_t>(element_size(packed.dtype));
  auto* const codes = static_cast<int8_t*>(workspace);
  for (int64_t first = 0; first < packed.m; first += kUnpackedTokens) {
    LinearW4A8Params p = packed;
    p.m = std::min(kUnpackedTokens, packed.m - first);
    p.sx += first;
    p.xo = static_cast<char const*>(p.xo) + first * p.capacity * size;
    if (p.residual != nullptr) p.residual = static_cast<char const*>(p.residual) + first * p.n * size;
    p.y = static_cast<char*>(p.y) + first * p.n * size;
    p.xq = codes;
    int8_t const* source = packed.xq + first * row_bytes;
    int64_t const vectors = p.m * row_bytes / 16;
    auto const kernel = is_aligned(source, 16) ? unpack_codes<true> : unpack_codes<false>;
    dim3 const grid(static_cast<unsigned>(ceil_div<int64_t>(vectors, kUnpackThreads)));
    GRAPHOPT_TRY(launch(kernel, grid, dim3(kUnpackThreads), 0, stream, source, codes, vectors));
    GRAPHOPT_TRY(launch_linear_w4a8(p, stream));
  }
  return Status::kOk;
}

}  // namespace

Status launch_linear_w4a4(LinearW4A4Params const& params, cudaStream_t stream) {
  LinearW4A8Params p = params.packed;
  GRAPHOPT_TRY(check_linear_w4a8(p));
  if (p.group < p.k && p.group % kPackedCodes != 0) return Status::kBadShape;
  bool const one_group = p.group >= p.k;
  p.k = 2 * packed_bytes(p.k);  // the padding's codes are 0
  if (one_group) p.group = p.k;
  if (p.k > kMaxLinearK) return Status::kTooLarge;
  if (p.m == 0) return Status::kOk;
  GRAPHOPT_TRY(check_pointer(params.workspace, 16));
  int multiprocessors = 0, major = 0, minor = 0;
  GRAPHOPT_TRY(multiprocessor_count(&multiprocessors));
  GRAPHOPT_TRY(compute_capability(&major, &minor));
  bool const int4 = major == 8 && p.n % 2 == 0 && is_aligned(p.sg, 2);
  LinearW4A4Kernel const kernel = pick_linear_w4a4(p.m, p.n, products_read_vectors(p), int4, multiprocessors);
  if (kernel == LinearW4A4Kernel::kUnpack) return launch_unpacked(p, params.workspace, stream);
  return with_activation_type(p.dtype, [&](auto zero) {
    return launch_linear_w4a4_typed<decltype(zero)>(p, kernel, stream);
  });
}

}  // namespace graphopt::mixq
