// Launch of the Hopper M-ANT linear for some dozens of tokens.
#pragma once

#include <algorithm>

#include "common/tensor_map.h"
#include "mant/linear/launch.cuh"
#include "mant/linear/sm90_mid.cuh"

namespace graphopt::mant {

template <class T, class Tile>
Status launch_mid_tile(LinearParams const& p, int split, int multiprocessors, cudaStream_t stream) {
  constexpr int64_t kMaxGridY = 65535;
  MidArgs args;
  // A box that reaches past the last token costs more than tokens that exist.
  args.x_rows = static_cast<int32_t>(std::min<int64_t>(p.m, Tile::kTokens));
  constexpr DType kXType = std::is_same_v<T, __half> ? DType::kFloat16 : DType::kBFloat16;
  GRAPHOPT_TRY(encode_tensor_map(&args.x, p.x, kXType, p.m, p.k, args.x_rows));
  GRAPHOPT_TRY(
      encode_tensor_map(&args.codes, p.codes, DType::kInt8, p.n, packed_bytes(p.k), Tile::kRows, Tile::kCodeBytes));
  args.of = linear_args(p);
  int64_t const across = ceil_div<int64_t>(p.n, Tile::kRows), down = ceil_div<int64_t>(p.m, Tile::kTokens);
  if (down > kMaxGridY) return Status::kTooLarge;
  args.split = split;
  args.stages = static_cast<int32_t>(mid_stages(ceil_div<int64_t>(p.k, Tile::kColumns), split));

  auto const kernel = linear_mid<T, Tile>;
  // Where every block can have a multiprocessor of its own, it asks for all of one: behind a small kernel the device
  // would put two on the first ones that are free.
  bool const alone = across * down * split <= mid_slots<Tile>(split, multiprocessors) / Tile::kBlocks;
  int const shared_bytes = alone ? MidTile<128>::kSharedBytes : Tile::kSharedBytes;
  GRAPHOPT_TRY(allow_shared(reinterpret_cast<void const*>(kernel), static_cast<size_t>(shared_bytes)));
  cudaLaunchAttribute attributes[2];
  attributes[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attributes[0].val.programmaticStreamSerializationAllowed = 1;
  attributes[1].id = cudaLaunchAttributeClusterDimension;
  attributes[1].val.clusterDim = {static_cast<unsigned>(split), 1, 1};
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(across * split), static_cast<unsigned>(down));
  config.blockDim = dim3(Tile::kThreads);
  config.dynamicSmemBytes = static_cast<size_t>(shared_bytes);
  config.stream = stream;
  config.attrs = attributes;
  config.numAttrs = 2;
  return cuda_status(cudaLaunchKernelEx(&config, kernel, args));
}

/// Enqueue y of `p`, whose x is of T.
template <class T>
Status launch_mid(LinearParams const& p, int multiprocessors, cudaStream_t stream) {
  MidPlan const plan = plan_mid(p.m, p.n, p.k, multiprocessors);
  auto const launch = plan.tokens == 64 ? launch_mid_tile<T, MidTile<64>> : launch_mid_tile<T, MidTile<128>>;
  return launch(p, plan.split, multiprocessors, stream);
}

}  // namespace graphopt::mant
