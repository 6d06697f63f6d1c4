// Whether this library holds code for a device: asked of the runtime, which knows about PTX and binary compatibility.
#include <cuda_runtime.h>

#include "common/op.h"

namespace graphopt {
namespace {

// Compiled for the same architectures as every other kernel of the library.
__global__ void probe() {}

}  // namespace

Status check_device() {
  int count = 0;
  if (cudaGetDeviceCount(&count) != cudaSuccess || count == 0) {
    cudaGetLastError();  // a machine without a GPU or driver may build engines; leave no error behind
    return Status::kOk;
  }
  cudaFuncAttributes attributes;
  cudaError_t const error = cudaFuncGetAttributes(&attributes, probe);
  if (error != cudaSuccess) cudaGetLastError();
  return cuda_status(error);
}

}  // namespace graphopt
