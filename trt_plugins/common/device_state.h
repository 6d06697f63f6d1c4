// Device memory of one plugin in one execution context, for ops with state.
#pragma once

#include <cuda_runtime_api.h>

#include "common/check.h"
#include "common/op.h"

namespace graphopt {

class DeviceState {
 public:
  DeviceState() = default;
  ~DeviceState();
  DeviceState(DeviceState const&) = delete;
  DeviceState& operator=(DeviceState const&) = delete;

  /// Hold `bytes` of zeros; what is held already is kept if it has that size. Waits for the device, so it is for where
  /// shapes are set and not for where work is enqueued.
  Status reserve(size_t bytes);

  /// What a launch gets; fresh for the first one after zeros.
  OpState use();

 private:
  void* data_ = nullptr;
  size_t bytes_ = 0;
  bool fresh_ = true;
};

/// Run `op`, on `state` if it has one. kNoState: it has one and none was reserved.
Status launch_op(OpClass const& op, Attributes const& attributes, TensorView const* inputs, TensorView const* outputs,
                 void* workspace, DeviceState& state, cudaStream_t stream);

}  // namespace graphopt
