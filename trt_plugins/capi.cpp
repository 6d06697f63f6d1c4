#include "capi.h"

#include <algorithm>
#include <exception>
#include <string>
#include <vector>

#include "attention/cached/params.h"
#include "attention/mant/params.h"
#include "attention/vq/params.h"
#include "common/export.h"
#include "common/tensor.h"
#include "fused/params.h"
#include "mant/linear/params.h"
#include "mixq/linear/params.h"
#include "mixq/linear_w4a4/params.h"
#include "mixq/linear_w4a8/params.h"
#include "mixq/online/online.h"
#include "mixq/quantize/params.h"
#include "vq/hadamard/params.h"
#include "vq/jit/generate.h"
#include "vq/jit/launch.h"
#include "vq/linear/params.h"
#include "vq/linear/plan.h"

using graphopt::DType;

namespace {

graphopt::attention::CachedParams cached_sizes(int32_t dtype, int64_t batch, int64_t seq, int64_t heads,
                                               int64_t kv_heads, int64_t head_size, int64_t capacity, int64_t tables) {
  graphopt::attention::CachedParams params{};
  params.dtype = static_cast<DType>(dtype);
  params.batch = batch;
  params.seq = seq;
  params.heads = heads;
  params.kv_heads = kv_heads;
  params.head_size = head_size;
  params.capacity = capacity;
  params.tables = tables;
  return params;
}

graphopt::vq::LinearParams vq_sizes(int32_t dtype, int64_t m, int64_t n, int64_t k, int32_t vector, int32_t bits,
                                    int32_t residuals, int64_t tile_rows, int64_t tile_columns) {
  graphopt::vq::LinearParams params{};
  params.dtype = static_cast<DType>(dtype);
  params.m = m;
  params.n = n;
  params.k = k;
  params.vector = vector;
  params.bits = bits;
  params.residuals = residuals;
  params.tile_rows = tile_rows;
  params.tile_columns = tile_columns;
  return params;
}

void set_new_tokens(graphopt::attention::CachedParams* params, int32_t rotary, float scale, void const* q,
                    void const* k, void const* v, void const* cos, void const* sin, int32_t const* start, void* y,
                    void* workspace) {
  params->rotary = rotary != 0;
  params->scale = scale;
  params->q = q;
  params->k = k;
  params->v = v;
  params->cos = cos;
  params->sin = sin;
  params->start = start;
  params->y = y;
  params->workspace = workspace;
}

void set_cache(graphopt::attention::CachedParams* params, void const* past_k, void const* past_v, void* present_k,
               void* present_v) {
  params->past_k = past_k;
  params->past_v = past_v;
  params->present_k = present_k;
  params->present_v = present_v;
}

}  // namespace

namespace {

graphopt::mixq::QuantizeParams quantize_params(int32_t producer, int32_t dtype, int64_t rows, int64_t cols,
                                               int64_t capacity, void const* x, void const* other, void const* gamma,
                                               void const* beta, int32_t const* idx, float epsilon, int8_t* codes,
                                               float* sx, void* xo, void* sum, void* y, int32_t bits) {
  return {static_cast<graphopt::Producer>(producer), static_cast<DType>(dtype), rows, cols, capacity, x, other,
          gamma, beta, idx, epsilon, codes, sx, xo, sum, y, bits};
}

}  // namespace

extern "C" {

GRAPHOPT_EXPORT int32_t graphopt_mixq_quantize(int32_t producer, int32_t dtype, int64_t rows, int64_t cols,
                                               int64_t capacity, void const* x, void const* other, void const* gamma,
                                               void const* beta, int32_t const* idx, float epsilon, int8_t* xq,
                                               float* sx, void* xo, void* sum, void* y, void* stream) {
  auto const params = quantize_params(producer, dtype, rows, cols, capacity, x, other, gamma, beta, idx, epsilon,
                                xq, sx, xo, sum, y, 8);
  return static_cast<int32_t>(graphopt::mixq::launch_quantize(params, static_cast<cudaStream_t>(stream)));
}

GRAPHOPT_EXPORT int32_t graphopt_mixq_quantize4(int32_t producer, int32_t dtype, int64_t rows, int64_t cols,
                                                int64_t capacity, void const* x, void const* other, void const* gamma,
                                                void const* beta, int32_t const* idx, float epsilon, int8_t* xq4,
                                                float* sx, void* xo, void* sum, void* y, void* stream) {
  auto const params = quantize_params(producer, dtype, rows, cols, capacity, x, other, gamma, beta, idx, epsilon,
                                xq4, sx, xo, sum, y, 4);
  return static_cast<int32_t>(graphopt::mixq::launch_quantize(params, static_cast<cudaStream_t>(stream)));
}

GRAPHOPT_EXPORT int64_t graphopt_mixq_prediction_state_bytes(int64_t cols, int64_t capacity) {
  return static_cast<int64_t>(graphopt::mixq::PredictionState(nullptr, cols, capacity).bytes);
}

GRAPHOPT_EXPORT int32_t graphopt_mixq_prediction_init(int64_t cols, int64_t listed, int64_t capacity,
                                                      int32_t const* idx, void* state, void* stream) {
  graphopt::mixq::PredictionState const prediction(state, cols, capacity);
  return static_cast<int32_t>(graphopt::mixq::launch_reset_prediction(prediction, idx, cols, listed, capacity,
                                                                      static_cast<cudaStream_t>(stream)));
}

GRAPHOPT_EXPORT int32_t graphopt_mixq_quantize_online(int32_t producer, int32_t dtype, int64_t rows, int64_t cols,
                                                      int64_t listed, int64_t capacity, void const* x,
                                                      void const* other, void const* gamma, void const* beta,
                                                      int32_t const* idx, float epsilon, float sigma, float sigma_rms,
                                                      int8_t* xq, float* sx, void* xo, void* sum, void* y,
                                                      int32_t* set, void* state, void* stream) {
  auto const quantize = quantize_params(producer, dtype, rows, cols, listed, x, other, gamma, beta, idx, epsilon,
                                  xq, sx, xo, sum, y, 8);
  graphopt::mixq::QuantizeOnlineParams const params{quantize, capacity, sigma, sigma_rms, set};
  return static_cast<int32_t>(graphopt::mixq::launch_quantize_online(params, {state, /*fresh=*/false},
                                                                     static_cast<cudaStream_t>(stream)));
}

GRAPHOPT_EXPORT int64_t graphopt_mixq_columns_state_bytes(int32_t dtype, int64_t n, int64_t capacity) {
  return static_cast<int64_t>(
      graphopt::mixq::ColumnsState(nullptr, static_cast<DType>(dtype), n, capacity).bytes);
}

GRAPHOPT_EXPORT int32_t graphopt_mixq_columns_init(int32_t dtype, int64_t n, int64_t capacity, void* state,
                                                   void* stream) {
  graphopt::mixq::ColumnsState const columns(state, static_cast<DType>(dtype), n, capacity);
  return static_cast<int32_t>(graphopt::mixq::launch_reset_columns(columns, static_cast<cudaStream_t>(stream)));
}

GRAPHOPT_EXPORT int32_t graphopt_mixq_columns(int32_t dtype, int64_t n, int64_t k, int64_t listed, int64_t capacity,
                                              int64_t group, int8_t const* codes, int8_t const* sg, float const* sw,
                                              void const* wo, int32_t const* idx, int32_t const* set, void* state,
                                              void const** columns, void* stream) {
  if (columns == nullptr) return static_cast<int32_t>(graphopt::Status::kNullPointer);
  bool const packed = group != 0;
  graphopt::mixq::ColumnsParams const params{static_cast<DType>(dtype),
                                             n,
                                             k,
                                             listed,
                                             capacity,
                                             group,
                                             packed ? nullptr : codes,
                                             packed ? codes : nullptr,
                                             sg,
                                             sw,
                                             wo,
                                             idx,
                                             set};
  graphopt::mixq::ColumnsState const kept(state, static_cast<DType>(dtype), n, capacity);
  *columns = kept.columns;
  return static_cast<int32_t>(graphopt::mixq::launch_columns(params, kept, static_cast<cudaStream_t>(stream)));
}

GRAPHOPT_EXPORT int32_t graphopt_mixq_linear_add(int32_t dtype, int64_t m, int64_t n, int64_t k, int64_t capacity,
                                                 int8_t const* xq, float const* sx, void const* xo, int8_t const* wq,
                                                 float const* sw, void const* wo, void const* bias,
                                                 void const* residual, void* y, void* stream) {
  graphopt::mixq::LinearParams const params{
      static_cast<DType>(dtype), m, n, k, capacity, xq, sx, xo, wq, sw, wo, bias, residual, y};
  return static_cast<int32_t>(graphopt::mixq::launch_linear(params, static_cast<cudaStream_t>(stream)));
}

GRAPHOPT_EXPORT int32_t graphopt_mixq_linear(int32_t dtype, int64_t m, int64_t n, int64_t k, int64_t capacity,
                                             int8_t const* xq, float const* sx, void const* xo, int8_t const* wq,
                                             float const* sw, void const* wo, void const* bias, void* y, void* stream) {
  return graphopt_mixq_linear_add(dtype, m, n, k, capacity, xq, sx, xo, wq, sw, wo, bias, nullptr, y, stream);
}

GRAPHOPT_EXPORT int32_t graphopt_mixq_linear_w4a8_add(int32_t dtype, int64_t m, int64_t n, int64_t k, int64_t capacity,
                                                      int64_t group, int8_t const* xq, float const* sx, void const* xo,
                                                      int8_t const* wq4, int8_t const* sg, float const* sw,
                                                      void const* wo, void const* bias, void const* residual, void* y,
                                                      void* stream) {
  graphopt::mixq::LinearW4A8Params const params{
      static_cast<DType>(dtype), m, n, k, capacity, group, xq, sx, xo, wq4, sg, sw, wo, bias, residual, y};
  return static_cast<int32_t>(graphopt::mixq::launch_linear_w4a8(params, static_cast<cudaStream_t>(stream)));
}

GRAPHOPT_EXPORT int32_t graphopt_mixq_linear_w4a8(int32_t dtype, int64_t m, int64_t n, int64_t k, int64_t capacity,
                                                  int64_t group, int8_t const* xq, float const* sx, void const* xo,
                                                  int8_t const* wq4, int8_t const* sg, float const* sw, void const* wo,
                                                  void const* bias, void* y, void* stream) {
  return graphopt_mixq_linear_w4a8_add(dtype, m, n, k, capacity, group, xq, sx, xo, wq4, sg, sw, wo, bias, nullptr, y,
                                       stream);
}

GRAPHOPT_EXPORT int32_t graphopt_mixq_linear_w4a4_add(int32_t dtype, int64_t m, int64_t n, int64_t k, int64_t capacity,
                                                      int64_t group, int8_t const* xq4, float const* sx,
                                                      void const* xo, int8_t const* wq4, int8_t const* sg,
                                                      float const* sw, void const* wo, void const* bias,
                                                      void const* residual, void* y, void* workspace, void* stream) {
  graphopt::mixq::LinearW4A8Params const packed{
      static_cast<DType>(dtype), m, n, k, capacity, group, xq4, sx, xo, wq4, sg, sw, wo, bias, residual, y};
  return static_cast<int32_t>(
      graphopt::mixq::launch_linear_w4a4({packed, workspace}, static_cast<cudaStream_t>(stream)));
}

GRAPHOPT_EXPORT int32_t graphopt_mixq_linear_w4a4(int32_t dtype, int64_t m, int64_t n, int64_t k, int64_t capacity,
                                                  int64_t group, int8_t const* xq4, float const* sx, void const* xo,
                                                  int8_t const* wq4, int8_t const* sg, float const* sw, void const* wo,
                                                  void const* bias, void* y, void* workspace, void* stream) {
  return graphopt_mixq_linear_w4a4_add(dtype, m, n, k, capacity, group, xq4, sx, xo, wq4, sg, sw, wo, bias, nullptr, y,
                                       workspace, stream);
}

GRAPHOPT_EXPORT int64_t graphopt_mixq_linear_w4a4_workspace_bytes(int64_t m, int64_t k) {
  return graphopt::mixq::w4a4_workspace_bytes(m, k);
}

GRAPHOPT_EXPORT int32_t graphopt_mant_linear(int32_t decode, int32_t dtype, int64_t m, int64_t n, int64_t k,
                                             int64_t group, int64_t scales, void const* x, float const* sx,
                                             int8_t const* codes, int8_t const* types, void const* scale,
                                             void const* table, void const* bias, void* y, void* workspace,
                                             void* stream) {
  graphopt::mant::LinearParams const params{static_cast<graphopt::mant::Decode>(decode),
                                            static_cast<DType>(dtype),
                                            m,
                                            n,
                                            k,
                                            group,
                                            scales,
                                            x,
                                            sx,
                                            codes,
                                            types,
                                            scale,
                                            table,
                                            bias,
                                            y,
                                            workspace};
  return static_cast<int32_t>(graphopt::mant::launch_linear(params, static_cast<cudaStream_t>(stream)));
}

GRAPHOPT_EXPORT int64_t graphopt_mant_linear_workspace_bytes(int32_t decode, int64_t m, int64_t n, int64_t k,
                                                             int64_t group) {
  if (m < 0 || n < 1 || k < 1 || group < 1) return 0;
  return graphopt::mant::linear_workspace_bytes(static_cast<graphopt::mant::Decode>(decode), m, n, k,
                                                (k + group - 1) / group);
}

GRAPHOPT_EXPORT int32_t graphopt_cached_attention(int32_t dtype, int64_t batch, int64_t seq, int64_t heads,
                                                  int64_t kv_heads, int64_t head_size, int64_t capacity,
                                                  int64_t tables, int32_t rotary, float scale, void const* q,
                                                  void const* k, void const* v, void const* cos, void const* sin,
                                                  void const* past_k, void const* past_v, int32_t const* start, void* y,
                                                  void* present_k, void* present_v, void* workspace, void* stream) {
  graphopt::attention::CachedParams params =
      cached_sizes(dtype, batch, seq, heads, kv_heads, head_size, capacity, tables);
  set_new_tokens(&params, rotary, scale, q, k, v, cos, sin, start, y, workspace);
  set_cache(&params, past_k, past_v, present_k, present_v);
  return static_cast<int32_t>(graphopt::attention::launch_cached(params, static_cast<cudaStream_t>(stream)));
}

GRAPHOPT_EXPORT int32_t graphopt_vq_attention(int32_t dtype, int64_t batch, int64_t seq, int64_t heads, int64_t kv_heads,
                                              int64_t head_size, int64_t capacity, int64_t vector, int64_t tables,
                                              int32_t rotary, float scale, void const* q, void const* k, void const* v,
                                              void const* cos, void const* sin, void const* codebook_k,
                                              void const* codebook_v, int8_t const* past_k, int8_t const* past_v,
                                              int32_t const* start, void* y, int8_t* present_k, int8_t* present_v,
                                              void* workspace, void* stream) {
  graphopt::attention::CachedParams cache =
      cached_sizes(dtype, batch, seq, heads, kv_heads, head_size, capacity, tables);
  set_new_tokens(&cache, rotary, scale, q, k, v, cos, sin, start, y, workspace);
  set_cache(&cache, past_k, past_v, present_k, present_v);
  graphopt::attention::VqParams const params{cache, vector, codebook_k, codebook_v};
  return static_cast<int32_t>(graphopt::attention::launch_vq(params, static_cast<cudaStream_t>(stream)));
}

GRAPHOPT_EXPORT int32_t graphopt_mant_attention(int32_t dtype, int64_t batch, int64_t seq, int64_t heads,
                                                int64_t kv_heads, int64_t head_size, int64_t capacity, int64_t group,
                                                int64_t tables, int32_t rotary, int32_t selector, float scale,
                                                void const* q, void const* k, void const* v, void const* cos,
                                                void const* sin, void const* k_center, void const* const* past,
                                                int32_t const* start, void* y, void* const* present, void* workspace,
                                                void* stream) {
  if (past == nullptr || present == nullptr) return static_cast<int32_t>(graphopt::Status::kNullPointer);
  graphopt::attention::CachedParams cache =
      cached_sizes(dtype, batch, seq, heads, kv_heads, head_size, capacity, tables);
  set_new_tokens(&cache, rotary, scale, q, k, v, cos, sin, start, y, workspace);
  graphopt::attention::MantParams const params{
      cache,
      group,
      static_cast<graphopt::attention::MantSelector>(selector),
      k_center,
      {past[0], past[1], past[2], past[3], past[4], past[5], past[6]},
      {present[0], present[1], present[2], present[3], present[4], present[5], present[6]}};
  return static_cast<int32_t>(graphopt::attention::launch_mant(params, static_cast<cudaStream_t>(stream)));
}

GRAPHOPT_EXPORT int64_t graphopt_cached_attention_workspace(int32_t dtype, int64_t batch, int64_t seq, int64_t heads,
                                                            int64_t kv_heads, int64_t head_size, int64_t capacity) {
  return static_cast<int64_t>(graphopt::attention::cached_workspace_bytes(
      cached_sizes(dtype, batch, seq, heads, kv_heads, head_size, capacity, /*tables=*/1),
      graphopt::attention::CacheKind::kPlain));
}

GRAPHOPT_EXPORT int64_t graphopt_coded_attention_workspace(int32_t dtype, int64_t batch, int64_t seq, int64_t heads,
                                                           int64_t kv_heads, int64_t head_size, int64_t capacity) {
  return static_cast<int64_t>(graphopt::attention::cached_workspace_bytes(
      cached_sizes(dtype, batch, seq, heads, kv_heads, head_size, capacity, /*tables=*/1),
      graphopt::attention::CacheKind::kCodes));
}

GRAPHOPT_EXPORT int32_t graphopt_vq_linear(int32_t dtype, int64_t m, int64_t n, int64_t k, int32_t vector,
                                           int32_t bits, int32_t residuals, int64_t tile_rows, int64_t tile_columns,
                                           void const* x, int8_t const* codes, void const* codebooks,
                                           float const* scale, void const* bias, void* y, void* workspace,
                                           void* stream) {
  if (m > 0 && codebooks == nullptr) return static_cast<int32_t>(graphopt::Status::kNullPointer);
  graphopt::vq::LinearParams const params{static_cast<DType>(dtype),
                                          m,
                                          n,
                                          k,
                                          vector,
                                          bits,
                                          residuals,
                                          tile_rows,
                                          tile_columns,
                                          x,
                                          codes,
                                          codebooks,
                                          /*ratios=*/nullptr,
                                          scale,
                                          bias,
                                          y,
                                          workspace};
  return static_cast<int32_t>(graphopt::vq::launch_linear(params, static_cast<cudaStream_t>(stream)));
}

GRAPHOPT_EXPORT int64_t graphopt_vq_linear_workspace_bytes(int64_t m, int64_t n, int64_t k, int32_t vector,
                                                           int32_t bits, int32_t residuals, int64_t tile_rows,
                                                           int64_t tile_columns) {
  auto const dtype = static_cast<int32_t>(DType::kFloat16);
  return static_cast<int64_t>(graphopt::vq::linear_workspace_bytes(
      vq_sizes(dtype, m, n, k, vector, bits, residuals, tile_rows, tile_columns)));
}

GRAPHOPT_EXPORT int32_t graphopt_vq_linear_e8(int32_t dtype, int64_t m, int64_t n, int64_t k, int32_t residuals,
                                              void const* x, int8_t const* codes, float const* ratios,
                                              float const* scale, void const* bias, void* y, void* workspace, void* stream) {
  graphopt::vq::LinearParams const params{static_cast<DType>(dtype),
                                          m,
                                          n,
                                          k,
                                          /*vector=*/8,
                                          /*bits=*/16,
                                          residuals,
                                          /*tile_rows=*/n,
                                          /*tile_columns=*/k,
                                          x,
                                          codes,
                                          /*codebooks=*/nullptr,
                                          ratios,
                                          scale,
                                          bias,
                                          y,
                                          workspace};
  return static_cast<int32_t>(graphopt::vq::launch_linear(params, static_cast<cudaStream_t>(stream)));
}

GRAPHOPT_EXPORT int64_t graphopt_vq_plan(int32_t dtype, int64_t m, int64_t n, int64_t k, int32_t vector, int32_t bits,
                                         int32_t residuals, int64_t tile_rows, int64_t tile_columns, int32_t lattice,
                                         int32_t multiprocessors, int32_t compute_capability, char* text,
                                         int64_t size) {
  void* const aligned = reinterpret_cast<void*>(uintptr_t{256});  // only asked for its alignment
  graphopt::vq::LinearParams params = vq_sizes(dtype, m, n, k, vector, bits, residuals, tile_rows, tile_columns);
  params.codebooks = lattice != 0 ? nullptr : aligned;
  params.workspace = aligned;
  constexpr int64_t kLeast = 99 * 1024;
  int64_t const shared_bytes = std::max<int64_t>(kLeast, graphopt::vq::jit::shared_bytes(compute_capability));
  graphopt::vq::Device const device{multiprocessors, compute_capability == 90, shared_bytes};
  return graphopt::vq::describe_plan(params, device, text, size);
}

GRAPHOPT_EXPORT int64_t graphopt_vq_generate(int32_t dtype, int64_t n, int64_t k, int32_t vector, int32_t bits,
                                             int32_t residuals, int64_t tile_rows, int64_t tile_columns,
                                             int32_t compute_capability, void* kernels, int64_t size, char* text,
                                             int64_t text_size) try {
  namespace jit = graphopt::vq::jit;
  std::string bytes, message;
  graphopt::Status const status = jit::generate_for(
      vq_sizes(dtype, /*m=*/0, n, k, vector, bits, residuals, tile_rows, tile_columns),
      compute_capability == 0 ? jit::library_archs() : std::vector<int>{compute_capability}, &bytes, &message);
  jit::Kernels made;
  if (status != graphopt::Status::kOk) message = graphopt::status_string(status);
  if (!bytes.empty() && jit::decode(bytes, &made) == graphopt::Status::kOk) message = jit::describe(made);
  if (text != nullptr && text_size > 0) {
    text[message.copy(text, static_cast<size_t>(text_size - 1))] = '\0';
  }
  if (kernels != nullptr && size > 0) bytes.copy(static_cast<char*>(kernels), static_cast<size_t>(size));
  return static_cast<int64_t>(bytes.size());
} catch (std::exception const&) {  // memory exhausted
  return 0;
}

GRAPHOPT_EXPORT int32_t graphopt_vq_install(void const* kernels, int64_t size) try {
  if (kernels == nullptr || size < 0) return static_cast<int32_t>(graphopt::Status::kNullPointer);
  std::string const bytes(static_cast<char const*>(kernels), static_cast<size_t>(size));
  return static_cast<int32_t>(graphopt::vq::jit::install(bytes));
} catch (std::exception const&) {
  return static_cast<int32_t>(graphopt::Status::kTooLarge);
}

GRAPHOPT_EXPORT int32_t graphopt_vq_hadamard(int32_t producer, int32_t dtype, int64_t rows, int64_t k, int64_t channels,
                                             int64_t block, void const* x, void const* other, void const* gamma,
                                             void const* beta, int8_t const* signs, float epsilon, void* z, void* sum,
                                             void* y, void* stream) {
  graphopt::vq::HadamardParams const params{
      static_cast<graphopt::Producer>(producer), static_cast<DType>(dtype), rows, k, channels, block, epsilon, x, other,
      gamma, beta, signs, z, sum, y};
  return static_cast<int32_t>(graphopt::vq::launch_hadamard(params, static_cast<cudaStream_t>(stream)));
}

GRAPHOPT_EXPORT int32_t graphopt_fused(int32_t producer, int32_t dtype, int64_t rows, int64_t cols, void const* x,
                                       void const* other, void const* gamma, void const* beta, float epsilon, void* y,
                                       void* sum, void* stream) {
  graphopt::fused::FusedParams const params{
      static_cast<graphopt::Producer>(producer), static_cast<DType>(dtype), rows, cols, epsilon, x, other, gamma, beta,
      y, sum};
  return static_cast<int32_t>(graphopt::fused::launch_fused(params, static_cast<cudaStream_t>(stream)));
}

GRAPHOPT_EXPORT char const* graphopt_status_string(int32_t status) {
  return graphopt::status_string(static_cast<graphopt::Status>(status));
}

GRAPHOPT_EXPORT char const* graphopt_plugins_version(void) { return GRAPHOPT_VERSION; }

GRAPHOPT_EXPORT char const* graphopt_plugins_build_info(void) {
  return "cuda=" GRAPHOPT_CUDA_VERSION " archs=" GRAPHOPT_ARCHS " ptx=" GRAPHOPT_PTX " tensorrt_headers=" GRAPHOPT_TENSORRT_VERSION;
}
}
