#include "common/device_state.h"

namespace graphopt {
namespace {

/// Fill with zeros on a stream of its own: others may be capturing, and none waits for the default one.
Status fill_with_zeros(void* data, size_t bytes) {
  cudaStream_t stream;
  GRAPHOPT_CUDA_TRY(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  cudaError_t error = cudaMemsetAsync(data, 0, bytes, stream);
  if (error == cudaSuccess) error = cudaStreamSynchronize(stream);
  cudaError_t const destroyed = cudaStreamDestroy(stream);
  return cuda_status(error != cudaSuccess ? error : destroyed);
}

}  // namespace

DeviceState::~DeviceState() {
  // There is nobody to tell that freeing failed: the context that the memory belonged to may be gone.
  if (data_ != nullptr) cudaFree(data_);
}

Status DeviceState::reserve(size_t bytes) {
  if (bytes == bytes_) return Status::kOk;
  void* data = nullptr;
  GRAPHOPT_CUDA_TRY(cudaMalloc(&data, bytes));
  if (Status const status = fill_with_zeros(data, bytes); status != Status::kOk) {
    cudaFree(data);
    return status;
  }
  void* const old = data_;
  data_ = data;
  bytes_ = bytes;
  fresh_ = true;
  return old == nullptr ? Status::kOk : cuda_status(cudaFree(old));
}

OpState DeviceState::use() {
  OpState const state{data_, fresh_};
  fresh_ = false;
  return state;
}

Status launch_op(OpClass const& op, Attributes const& attributes, TensorView const* inputs, TensorView const* outputs,
                 void* workspace, DeviceState& state, cudaStream_t stream) {
  if (op.launch_stateful == nullptr) return op.launch(op, attributes, inputs, outputs, workspace, stream);
  OpState const used = state.use();
  if (used.data == nullptr) return Status::kNoState;
  return op.launch_stateful(op, attributes, inputs, outputs, workspace, used, stream);
}

}  // namespace graphopt
