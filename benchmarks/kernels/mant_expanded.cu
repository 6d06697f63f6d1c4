// Linears of M-ANT for many tokens on Hopper, whichever way is asked for, and their parts, behind C functions for
// mant_expanded.py. Build: benchmarks/kernels/build_mant_expanded.sh.
#include "common/gemm/sm90_gemm.cuh"
#include "mant/linear/sm90_expand.h"
#include "mant/linear/sm90_folded_launch.cuh"
#include "mant/linear/sm90_prepare.cuh"

namespace graphopt::mant {
extern template Status launch_folded<FoldedFloat<__half>>(LinearParams const&, FoldedTables const&, int, cudaStream_t);
extern template Status launch_folded<FoldedFloat<__nv_bfloat16>>(LinearParams const&, FoldedTables const&, int,
                                                                 cudaStream_t);
extern template Status launch_folded<FoldedBytes>(LinearParams const&, FoldedTables const&, int, cudaStream_t);
}  // namespace graphopt::mant

namespace {

using namespace graphopt;
using namespace graphopt::mant;

/// What a call does: a whole linear by one way, or a part of it.
enum Work { kFolded, kExpanded, kPrepare, kExpand };

struct Prepared {
  void const* x;
  FoldedTables tables;
};

Status prepare(LinearParams const& p, void* workspace, cudaStream_t stream, Prepared* to) {
  constexpr int64_t kVector = 16;
  *to = {p.x, {}};
  if (p.decode == Decode::kSplit) {
    int64_t const vectors = p.m * p.k / kVector;
    to->x = workspace;
    return launch_at(Start::kEarly, widen_x, dim3(static_cast<unsigned>(ceil_div<int64_t>(vectors, kWidenThreads))),
                     dim3(kWidenThreads), 0, stream, static_cast<uint4 const*>(p.x), static_cast<uint4*>(workspace),
                     vectors);
  }
  if (p.decode == Decode::kBytes) {
    LinearArgs const args = linear_args(p);
    to->tables = folded_tables(workspace, p.n, args.groups);
    return launch_at(Start::kEarly, fold_tables, dim3(static_cast<unsigned>(ceil_div<int64_t>(p.n, kFoldRows))),
                     dim3(kFoldRows * kFoldGroups), 0, stream, args, to->tables);
  }
  return Status::kOk;
}

Status fold(LinearParams p, Prepared const& of, int multiprocessors, cudaStream_t stream) {
  p.x = of.x;
  DType const type = expanded_type(p.decode, p.dtype);
  auto const launch = type == DType::kInt8      ? launch_folded<FoldedBytes>
                      : type == DType::kFloat16 ? launch_folded<FoldedFloat<__half>>
                                                : launch_folded<FoldedFloat<__nv_bfloat16>>;
  return launch(p, of.tables, multiprocessors, stream);
}

Status run(int work, int64_t slab_rows, LinearParams const& p, cudaStream_t stream) {
  int multiprocessors = 0;
  GRAPHOPT_TRY(multiprocessor_count(&multiprocessors));
  void* const slab = static_cast<char*>(p.workspace);
  int64_t const bytes = (slabs_bytes(expanded_size(p.decode), p.n, p.k, slab_rows) + 255) / 256 * 256;
  Prepared of{};
  GRAPHOPT_TRY(prepare(p, static_cast<char*>(p.workspace) + bytes, stream, &of));
  if (work != kFolded && !supports_gemm(expanded_product(p, of.x, of.tables, slab))) return Status::kBadShape;
  switch (work) {
    case kFolded:
      return fold(p, of, multiprocessors, stream);
    case kExpanded:
      return launch_expanded(p, of.x, of.tables, slab, slab_rows, multiprocessors, stream);
    case kExpand:
      for (int64_t first = 0; first < p.n; first += slab_rows) {
        GRAPHOPT_TRY(launch_expand(p, of.tables, first, std::min(slab_rows, p.n - first), slab, /*beside=*/false,
                                   stream));
      }
      return Status::kOk;
    default:
      return Status::kOk;
  }
}

template <class X, class T>
Status run_tile(int tile, GemmParams const& p, int multiprocessors, cudaStream_t stream) {
  auto const launch = tile == 128 ? launch_gemm_tile<X, T, GemmTile<128, 128, 1>>
                                  : launch_gemm_tile<X, T, GemmTile<128, 256, 2>>;
  return launch(p, multiprocessors, stream);
}

}  // namespace

#define GRAPHOPT_EXPORT extern "C" __attribute__((visibility("default")))

GRAPHOPT_EXPORT char const* mx_status(int status) { return status_string(static_cast<Status>(status)); }

/// Rows of a slab that the library would take, 0 for none, on a device of `multiprocessors`.
GRAPHOPT_EXPORT int64_t mx_slab_rows(int decode, int64_t m, int64_t n, int64_t k, int multiprocessors) {
  return pick_slab_rows(expanded_size(static_cast<Decode>(decode)), m, n, k, multiprocessors);
}

/// Args:
///   work: of Work. slab_rows: a multiple of 256, or N.
///   workspace: slabs_bytes, then what prepared_bytes says with all tokens, in this order, 256 bytes more.
///   The rest: see LinearParams.
GRAPHOPT_EXPORT int mx_linear(int work, int64_t slab_rows, int decode, int dtype, int64_t m, int64_t n, int64_t k,
                              int64_t group, void* x, float* sx, void* codes, void* types, void* scale, void* table,
                              void* bias, void* y, void* workspace, void* stream) {
  LinearParams const p{static_cast<Decode>(decode), static_cast<DType>(dtype), m, n, k, group, 1, x, sx,
                       static_cast<int8_t const*>(codes), static_cast<int8_t const*>(types), scale, table, bias, y,
                       workspace};
  return static_cast<int>(run(work, slab_rows, p, static_cast<cudaStream_t>(stream)));
}

/// The product alone.
///   tile: 0, as launch_gemm chooses, 128 or 256: its columns.
GRAPHOPT_EXPORT int mx_gemm(int tile, int operands, int dtype, int64_t m, int64_t n, int64_t k, void* x, void* w,
                            float* sx, float* sw, void* bias, void* y, int64_t y_stride, void* stream) {
  GemmParams const p{static_cast<DType>(operands), static_cast<DType>(dtype), m, n, k, x, w, sx, sw, bias, y, y_stride};
  int multiprocessors = 0;
  if (Status const status = multiprocessor_count(&multiprocessors); status != Status::kOk) {
    return static_cast<int>(status);
  }
  auto const to = static_cast<cudaStream_t>(stream);
  if (!supports_gemm(p)) return static_cast<int>(Status::kBadShape);
  if (tile == 0) return static_cast<int>(launch_gemm(p, multiprocessors, to));
  bool const half = p.dtype == DType::kFloat16;
  auto const int8 = half ? run_tile<int8_t, __half> : run_tile<int8_t, __nv_bfloat16>;
  auto const launch = p.operands == DType::kInt8       ? int8
                      : p.operands == DType::kBFloat16 ? run_tile<__nv_bfloat16, __nv_bfloat16>
                      : half                           ? run_tile<__half, __half>
                                                       : run_tile<__half, __nv_bfloat16>;
  return static_cast<int>(launch(tile, p, multiprocessors, to));
}
