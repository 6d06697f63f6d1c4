#include "common/check.h"

namespace graphopt {

char const* status_string(Status status) noexcept {
  if (status >= Status::kCudaErrorBase) {
    int32_t const code = static_cast<int32_t>(status) - static_cast<int32_t>(Status::kCudaErrorBase);
    return cudaGetErrorString(static_cast<cudaError_t>(code));
  }
  switch (status) {
    case Status::kOk:
      return "success";
    case Status::kNullPointer:
      return "a required pointer is null";
    case Status::kMisaligned:
      return "a pointer is not aligned to its element size";
    case Status::kBadShape:
      return "a size is negative or zero where it may not be, or the outlier capacity is not a multiple of 16";
    case Status::kBadType:
      return "an element type is not supported";
    case Status::kBadOperation:
      return "the producer is unknown";
    case Status::kTooLarge:
      return "a size exceeds what 32-bit accumulation or the launch grid can hold";
    case Status::kBadAttribute:
      return "a plugin field is missing or has the wrong type";
    case Status::kNoState:
      return "an op that keeps state was run before its shapes were set";
    case Status::kDamaged:
      return "generated kernels are damaged; build the engine again";
    case Status::kOtherLibrary:
      return "generated kernels are of another version of the plugin library; build the engine again";
    default:
      return "unknown status";
  }
}

}  // namespace graphopt
