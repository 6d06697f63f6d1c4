// Dispatch of the Hopper M-ANT linear on how codes become numbers.
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

Status launch_halves(LinearParams const& p, bool mid, int multiprocessors, cudaStream_t stream) {
  return mid ? launch_mid<__half>(p, multiprocessors, stream)
             : launch_folded<FoldedFloat<__half>>(p, {}, multiprocessors, stream);
}

/// y of the tokens that the workspace holds at once, again and again.
Status launch_widened(LinearParams const& p, int multiprocessors, cudaStream_t stream) {
  constexpr int kVector = 16;
  int64_t const at_once = widened_tokens(p.m, p.k);
  bool const mid = is_mid(p.decode, p.m);
  LinearParams part = p;
  part.x = p.workspace;
  for (int64_t first = 0; first < p.m; first += at_once) {
    part.m = std::min(at_once, p.m - first);
    int64_t const vectors = part.m * p.k / kVector;
    dim3 const grid(static_cast<unsigned>(ceil_div<int64_t>(vectors, kWidenThreads)));
    GRAPHOPT_TRY(launch_at(Start::kEarly, widen_x, grid, dim3(kWidenThreads), 0, stream,
                           reinterpret_cast<uint4 const*>(static_cast<int8_t const*>(p.x) + first * p.k),
                           static_cast<uint4*>(p.workspace), vectors));
    part.sx = p.sx + first;
    part.y = static_cast<char*>(p.y) + first * p.n * static_cast<int64_t>(element_size(p.dtype));
    GRAPHOPT_TRY(launch_halves(part, mid, multiprocessors, stream));
  }
  return Status::kOk;
}

Status launch_tables(LinearParams const& p, int multiprocessors, cudaStream_t stream) {
  LinearArgs const args = linear_args(p);
  FoldedTables const tables = folded_tables(p.workspace, p.n, args.groups);
  GRAPHOPT_TRY(launch_at(Start::kEarly, fold_tables, dim3(static_cast<unsigned>(ceil_div<int64_t>(p.n, kFoldRows))),
                         dim3(kFoldRows * kFoldGroups), 0, stream, args, tables));
  return launch_folded<FoldedBytes>(p, tables, multiprocessors, stream);
}

}  // namespace

Status launch_linear_sm90(LinearParams const& p, int multiprocessors, cudaStream_t stream) {
  bool const exact = p.workspace == nullptr, mid = is_mid(p.decode, p.m);
  switch (p.decode) {
    case Decode::kSplit:
      return exact ? launch_exact<Sm90Split>(p, multiprocessors, stream) : launch_widened(p, multiprocessors, stream);
    case Decode::kBytes:
      if (exact) return launch_exact<Sm90Bytes>(p, multiprocessors, stream);
      return mid ? launch_widened(p, multiprocessors, stream) : launch_tables(p, multiprocessors, stream);
    case Decode::kFloat:
      break;
  }
  if (p.dtype == DType::kFloat16) return launch_halves(p, mid, multiprocessors, stream);
  return mid ? launch_mid<__nv_bfloat16>(p, multiprocessors, stream)
             : launch_folded<FoldedFloat<__nv_bfloat16>>(p, {}, multiprocessors, stream);
}

}  // namespace graphopt::mant
