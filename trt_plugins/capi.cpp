#include "capi.h"

#include "common/export.h"
#include "common/tensor.h"
#include "mixq/linear/params.h"
#include "mixq/linear_w4a8/params.h"
#include "mixq/quantize/params.h"

using graphopt::DType;

extern "C" {

GRAPHOPT_EXPORT int32_t graphopt_mixq_quantize(int32_t producer, int32_t dtype, int64_t rows, int64_t cols,
                                               int64_t capacity, void const* x, void const* other, void const* gamma,
                                               void const* beta, int32_t const* idx, float epsilon, int8_t* xq,
                                               float* sx, void* xo, void* sum, void* y, void* stream) {
  graphopt::mixq::QuantizeParams const params{static_cast<graphopt::mixq::Producer>(producer),
                                              static_cast<DType>(dtype),
                                              rows,
                                              cols,
                                              capacity,
                                              x,
                                              other,
                                              gamma,
                                              beta,
                                              idx,
                                              epsilon,
                                              xq,
                                              sx,
                                              xo,
                                              sum,
                                              y};
  return static_cast<int32_t>(graphopt::mixq::launch_quantize(params, static_cast<cudaStream_t>(stream)));
}

GRAPHOPT_EXPORT int32_t graphopt_mixq_linear(int32_t dtype, int64_t m, int64_t n, int64_t k, int64_t capacity,
                                             int8_t const* xq, float const* sx, void const* xo, int8_t const* wq,
                                             float const* sw, void const* wo, void const* bias, void* y, void* stream) {
  graphopt::mixq::LinearParams const params{
      static_cast<DType>(dtype), m, n, k, capacity, xq, sx, xo, wq, sw, wo, bias, y};
  return static_cast<int32_t>(graphopt::mixq::launch_linear(params, static_cast<cudaStream_t>(stream)));
}

GRAPHOPT_EXPORT int32_t graphopt_mixq_linear_w4a8(int32_t dtype, int64_t m, int64_t n, int64_t k, int64_t capacity,
                                                  int64_t group, int8_t const* xq, float const* sx, void const* xo,
                                                  int8_t const* wq4, int8_t const* sg, float const* sw, void const* wo,
                                                  void const* bias, void* y, void* stream) {
  graphopt::mixq::LinearW4A8Params const params{
      static_cast<DType>(dtype), m, n, k, capacity, group, xq, sx, xo, wq4, sg, sw, wo, bias, y};
  return static_cast<int32_t>(graphopt::mixq::launch_linear_w4a8(params, static_cast<cudaStream_t>(stream)));
}

GRAPHOPT_EXPORT char const* graphopt_status_string(int32_t status) {
  return graphopt::status_string(static_cast<graphopt::Status>(status));
}

GRAPHOPT_EXPORT char const* graphopt_plugins_version(void) { return GRAPHOPT_VERSION; }

GRAPHOPT_EXPORT char const* graphopt_plugins_build_info(void) {
  return "cuda=" GRAPHOPT_CUDA_VERSION " archs=" GRAPHOPT_ARCHS " ptx=" GRAPHOPT_PTX " tensorrt_headers=" GRAPHOPT_TENSORRT_VERSION;
}
}
