// Dispatch of the Hopper M-ANT linear on how codes become numbers.
#include "mant/linear/sm90_expand.h"
#include "mant/linear/sm90_folded_launch.cuh"
#include "mant/linear/sm90_launch.cuh"
#include "mant/linear/sm90_mid_launch.cuh"
#include "mant/linear/sm90_prepare.cuh"

namespace graphopt::mant {

extern template Status launch_exact<Sm90Split>(LinearParams const&, int, cudaStream_t);
extern template Status launch_exact<Sm90Bytes>(LinearParams const&, int, cudaStream_t);
extern template Status launch_folded<FoldedFloat<__half>>(LinearParams const&, FoldedTables const&, int, cudaStream_t);
extern template Status launch_folded<FoldedFloat<__nv_bfloat16>>(LinearParams const&, FoldedTables const&, int,
                                                                 cudaStream_t);
extern template Status launch_folded<FoldedBytes>(LinearParams const&, FoldedTables const&, int, cudaStream_t);
extern template Status launch_mid<__half>(LinearParams const&, int, cudaStream_t);
extern template Status launch_mid<__nv_bfloat16>(LinearParams const&, int, cudaStream_t);

namespace {

/// Whether the kernel for some dozens of tokens takes `p`.
bool takes_mid(LinearParams const& p, int multiprocessors) {
  if (!is_mid(p.decode, p.m)) return false;
  return p.m <= kAlwaysMid ||
         plan_mid(p.m, p.n, p.k, multiprocessors).time <= folded_time(2, p.m, p.n, p.k, multiprocessors);
}

/// y of `p`, whose x, if it is not that of the product, is `x`; by the kernels that are estimated to be faster.
template <class Decoder>
Status launch_rounded(LinearParams const& p, void const* x, FoldedTables const& tables, int multiprocessors,
                      cudaStream_t stream) {
  LinearParams taken = p;
  taken.x = x;
  if constexpr (sizeof(typename Decoder::X) == 2) {
    if (takes_mid(p, multiprocessors)) return launch_mid<typename Decoder::X>(taken, multiprocessors, stream);
  }
  int const size = expanded_size(p.decode);
  int64_t const rows = p.workspace == nullptr ? 0 : pick_slab_rows(size, p.m, p.n, p.k, multiprocessors);
  if (rows > 0 && supports_gemm(expanded_product(p, x, tables, p.workspace))) {
    return launch_expanded(p, x, tables, p.workspace, rows, multiprocessors, stream);
  }
  return launch_folded<Decoder>(taken, tables, multiprocessors, stream);
}

/// What comes before the product, behind the slab, which few tokens do without.
void* prepared(LinearParams const& p) {
  return static_cast<char*>(p.workspace) + (p.m > kAlwaysMid ? slabs_bytes(expanded_size(p.decode), p.n, p.k) : 0);
}

/// y of the tokens that the workspace holds at once, again and again.
Status launch_widened(LinearParams const& p, int multiprocessors, cudaStream_t stream) {
  constexpr int kVector = 16;
  int64_t const at_once = widened_tokens(p.m, p.k);
  LinearParams part = p;
  void* const wide = prepared(p);
  for (int64_t first = 0; first < p.m; first += at_once) {
    part.m = std::min(at_once, p.m - first);
    int64_t const vectors = part.m * p.k / kVector;
    dim3 const grid(static_cast<unsigned>(ceil_div<int64_t>(vectors, kWidenThreads)));
    GRAPHOPT_TRY(launch_at(Start::kEarly, widen_x, grid, dim3(kWidenThreads), 0, stream,
                           reinterpret_cast<uint4 const*>(static_cast<int8_t const*>(p.x) + first * p.k),
                           static_cast<uint4*>(wide), vectors));
    part.sx = p.sx + first;
    part.y = static_cast<char*>(p.y) + first * p.n * static_cast<int64_t>(element_size(p.dtype));
    GRAPHOPT_TRY(launch_rounded<FoldedFloat<__half>>(part, wide, {}, multiprocessors, stream));
  }
  return Status::kOk;
}

Status launch_tables(LinearParams const& p, int multiprocessors, cudaStream_t stream) {
  LinearArgs const args = linear_args(p);
  FoldedTables const tables = folded_tables(prepared(p), p.n, args.groups);
  GRAPHOPT_TRY(launch_at(Start::kEarly, fold_tables, dim3(static_cast<unsigned>(ceil_div<int64_t>(p.n, kFoldRows))),
                         dim3(kFoldRows * kFoldGroups), 0, stream, args, tables));
  return launch_rounded<FoldedBytes>(p, p.x, tables, multiprocessors, stream);
}

}  // namespace

Status launch_linear_sm90(LinearParams const& p, int multiprocessors, cudaStream_t stream) {
  bool const exact = p.workspace == nullptr;
  switch (p.decode) {
    case Decode::kSplit:
      return exact ? launch_exact<Sm90Split>(p, multiprocessors, stream) : launch_widened(p, multiprocessors, stream);
    case Decode::kBytes:
      if (exact) return launch_exact<Sm90Bytes>(p, multiprocessors, stream);
      return is_mid(p.decode, p.m) ? launch_widened(p, multiprocessors, stream)
                                   : launch_tables(p, multiprocessors, stream);
    case Decode::kFloat:
      break;
  }
  auto const launch_typed =
      p.dtype == DType::kFloat16 ? launch_rounded<FoldedFloat<__half>> : launch_rounded<FoldedFloat<__nv_bfloat16>>;
  return launch_typed(p, p.x, {}, multiprocessors, stream);
}

}  // namespace graphopt::mant
