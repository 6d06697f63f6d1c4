// Launch of kernels whose blocks share K in clusters.
#pragma once

#include "common/launch.h"

namespace graphopt::vq {

/// Put `split` blocks, which share K, into a cluster. `kernel`: of one parameter, at `args`.
inline Status launch_split(void const* kernel, void const* args, dim3 grid, int threads, size_t shared_bytes, int split,
                           cudaStream_t stream) {
  GRAPHOPT_TRY(allow_shared(kernel, shared_bytes));
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = dim3(threads);
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
#ifdef GRAPHOPT_SM90A
  cudaLaunchAttribute attributes[2];
  bool sm90 = false;
  GRAPHOPT_TRY(is_sm90(&sm90));
  if (sm90) {
    attributes[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attributes[0].val.programmaticStreamSerializationAllowed = 1;
    attributes[1].id = cudaLaunchAttributeClusterDimension;
    attributes[1].val.clusterDim = {static_cast<unsigned>(split), 1, 1};
    config.attrs = attributes;
    config.numAttrs = split > 1 ? 2 : 1;
  }
#else
  static_cast<void>(split);
#endif
  void* arguments[] = {const_cast<void*>(args)};
  return cuda_status(cudaLaunchKernelExC(&config, kernel, arguments));
}

}  // namespace graphopt::vq
