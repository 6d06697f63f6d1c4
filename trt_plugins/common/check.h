// Status codes of the launchers and the C API. Nothing throws, exits or prints across the library's boundary.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace graphopt {

enum class Status : int32_t {
  kOk = 0,
  kNullPointer = 1,      // a required pointer is null
  kMisaligned = 2,       // a pointer is not a multiple of its element's size
  kBadShape = 3,         // a negative size, a zero K or N, or a capacity that is no multiple of 16
  kBadType = 4,          // an element type outside the operand's list
  kBadOperation = 5,     // an unknown producer
  kTooLarge = 6,         // a size beyond what int32 accumulation or the launch grid can hold
  kBadAttribute = 7,     // a plugin field is missing or of the wrong type
  kNoState = 8,          // an op with state was run before its shapes were set
  kDamaged = 9,          // generated kernels are not as they were written
  kOtherLibrary = 10,    // generated kernels are of another version of the library
  kCudaErrorBase = 1000  // this plus a cudaError_t: the CUDA runtime refused
};

/// The Status that carries a CUDA error.
constexpr Status cuda_status(cudaError_t error) {
  return error == cudaSuccess ? Status::kOk : static_cast<Status>(static_cast<int32_t>(Status::kCudaErrorBase) + error);
}

/// One sentence for a Status; never null, owned by the library.
char const* status_string(Status status) noexcept;

}  // namespace graphopt

/// Return the Status of `expression` from the enclosing function unless it is kOk.
#define GRAPHOPT_TRY(expression)                                                                       \
  do {                                                                                                 \
    if (::graphopt::Status status_ = (expression); status_ != ::graphopt::Status::kOk) return status_; \
  } while (false)

/// The same for an expression of type cudaError_t.
#define GRAPHOPT_CUDA_TRY(expression) GRAPHOPT_TRY(::graphopt::cuda_status(expression))
