// Launch of the Hopper M-ANT linear for some dozens of tokens.
#pragma once

#include <algorithm>

#include "common/tensor_map.h"
#include "mant/linear/launch.cuh"
#include "mant/linear/sm90_mid.cuh"

namespace graphopt::mant {

/// Enqueue y of `p`, whose x is of T.
template <class T>
Status launch_mid(LinearParams const& p, int multiprocessors, cudaStream_t stream) {
  constexpr int64_t kMaxGridY = 65535;
  MidArgs args;
  // A box that reaches past the last token costs more than tokens that exist.
  args.x_rows = static_cast<int32_t>(std::min<int64_t>(p.m, MidTile::kTokens));
  constexpr DType kXType = std::is_same_v<T, __half> ? DType::kFloat16 : DType::kBFloat16;
  GRAPHOPT_TRY(encode_tensor_map(&args.x, p.x, kXType, p.m, p.k, args.x_rows));
  GRAPHOPT_TRY(encode_tensor_map(&args.codes, p.codes, DType::kInt8, p.n, packed_bytes(p.k), MidTile::kRows,
                                 MidTile::kCodeBytes));
  args.of = linear_args(p);
  int64_t const across = ceil_div<int64_t>(p.n, MidTile::kRows), down = ceil_div<int64_t>(p.m, MidTile::kTokens);
  if (down > kMaxGridY) return Status::kTooLarge;
  int64_t const stages = ceil_div<int64_t>(p.k, MidTile::kColumns);
  args.split = static_cast<int32_t>(choice("GRAPHOPT_MANT_SPLIT", mid_split(across * down, stages, multiprocessors)));
  args.stages = static_cast<int32_t>(mid_stages(stages, args.split));

  GRAPHOPT_TRY(allow_shared(reinterpret_cast<void const*>(linear_mid<T>), MidTile::kSharedBytes));
  cudaLaunchAttribute attributes[2];
  attributes[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attributes[0].val.programmaticStreamSerializationAllowed = 1;
  attributes[1].id = cudaLaunchAttributeClusterDimension;
  attributes[1].val.clusterDim = {static_cast<unsigned>(args.split), 1, 1};
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(across * args.split), static_cast<unsigned>(down));
  config.blockDim = dim3(MidTile::kThreads);
  config.dynamicSmemBytes = MidTile::kSharedBytes;
  config.stream = stream;
  config.attrs = attributes;
  config.numAttrs = 2;
  return cuda_status(cudaLaunchKernelEx(&config, linear_mid<T>, args));
}

}  // namespace graphopt::mant
