// Dispatch of the Hopper M-ANT linear on how codes become numbers.
#include "mant/linear/sm90_launch.cuh"

namespace graphopt::mant {

extern template Status launch_sm90_by<__half, Sm90Float<__half>>(LinearParams const&, int, cudaStream_t);
extern template Status launch_sm90_by<__nv_bfloat16, Sm90Float<__nv_bfloat16>>(LinearParams const&, int, cudaStream_t);
extern template Status launch_sm90_by<int8_t, Sm90Split>(LinearParams const&, int, cudaStream_t);
extern template Status launch_sm90_by<int8_t, Sm90Bytes>(LinearParams const&, int, cudaStream_t);

Status launch_linear_sm90(LinearParams const& p, int multiprocessors, cudaStream_t stream) {
  switch (p.decode) {
    case Decode::kSplit:
      return launch_sm90_by<int8_t, Sm90Split>(p, multiprocessors, stream);
    case Decode::kBytes:
      return launch_sm90_by<int8_t, Sm90Bytes>(p, multiprocessors, stream);
    case Decode::kFloat:
      break;
  }
  return p.dtype == DType::kFloat16 ? launch_sm90_by<__half, Sm90Float<__half>>(p, multiprocessors, stream)
                                    : launch_sm90_by<__nv_bfloat16, Sm90Float<__nv_bfloat16>>(p, multiprocessors, stream);
}

}  // namespace graphopt::mant
