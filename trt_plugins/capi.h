// C interface to the kernels, without TensorRT: for tests, benchmarks and other runtimes.
//
// Pointers are device pointers, tensors row-major and contiguous, sizes in elements, `stream` a cudaStream_t. Calls
// only enqueue work. They return 0 or a status code that graphopt_status_string explains; a refused call has launched
// nothing.
#ifndef GRAPHOPT_CAPI_H
#define GRAPHOPT_CAPI_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

// Element types of activations (T).
enum graphopt_dtype { GRAPHOPT_FLOAT32 = 0, GRAPHOPT_FLOAT16 = 1, GRAPHOPT_BFLOAT16 = 2 };

// What computes the y that is quantized.
enum graphopt_mixq_producer {
  GRAPHOPT_MIXQ_PLAIN = 0,            // y = x
  GRAPHOPT_MIXQ_RMS_NORM = 1,         // y = T(x / sqrt(mean(x^2) + epsilon) * gamma)
  GRAPHOPT_MIXQ_ADD_RMS_NORM = 2,     // the same of sum = T(x + other)
  GRAPHOPT_MIXQ_LAYER_NORM = 3,       // y = T((x - mean) / sqrt(var + epsilon) * gamma + beta)
  GRAPHOPT_MIXQ_ADD_LAYER_NORM = 4,   // the same of sum = T(x + other)
  GRAPHOPT_MIXQ_GATED_SILU = 5,       // y = T(silu(x) * other)
  GRAPHOPT_MIXQ_GATED_GELU = 6,       // y = T(gelu(x) * other)
  GRAPHOPT_MIXQ_GATED_GELU_TANH = 7,  // the same with the tanh form
  GRAPHOPT_MIXQ_GELU = 8,             // y = T(gelu(x))
  GRAPHOPT_MIXQ_GELU_TANH = 9,        // the same with the tanh form
  GRAPHOPT_MIXQ_SWIGLU = 10,          // y = T(silu(gate) * up), x holding gate and up side by side
  GRAPHOPT_MIXQ_GEGLU = 11,           // y = T(gelu(gate) * up), the same
  GRAPHOPT_MIXQ_GEGLU_TANH = 12       // the same with the tanh form
};

// Produce y and quantize it per token. M rows, K columns, C outlier slots.
//   x, other      [M, K] T        other: residual or up, null if the producer has one input; x [M, 2 K] of a GLU
//   gamma, beta   [K] T           null where the producer has none
//   idx           [C] int32       outlier channels, strictly ascending, then -1; C a multiple of 16; not to be written by
//                                 the kernel before on the stream: reading it may start earlier
//   xq [M, K] int8, sx [M] float, xo [M, C] T
//   sum, y        [M, K] T        null: not written
int32_t graphopt_mixq_quantize(int32_t producer, int32_t dtype, int64_t rows, int64_t cols, int64_t capacity,
                               void const* x, void const* other, void const* gamma, void const* beta,
                               int32_t const* idx, float epsilon, int8_t* xq, float* sx, void* xo, void* sum, void* y,
                               void* stream);

// Online outlier prediction (MixQ, SC'24, section 4): graphopt_mixq_quantize that extends its outlier channels by those
// whose codes say that they exceed a threshold in some row, max(sigma, sigma_rms * rms of the row), and then quantizes
// again. The channels are remembered in `state`, a buffer of graphopt_mixq_prediction_state_bytes(cols, capacity) on a
// boundary of 16 bytes that belongs to this layer and stream of calls, and that _init has prepared.
//   idx           [listed] int32     channels known before, strictly ascending, then -1; listed a multiple of 16
//   xo            [M, capacity] T    capacity a multiple of 16, at least listed
//   set           [capacity] int32   written: the channels of xo, strictly ascending, then -1
// The others are as above. Each code and value is that of graphopt_mixq_quantize for the channels `set`.
int64_t graphopt_mixq_prediction_state_bytes(int64_t cols, int64_t capacity);
int32_t graphopt_mixq_prediction_init(int64_t cols, int64_t listed, int64_t capacity, int32_t const* idx, void* state,
                                      void* stream);
int32_t graphopt_mixq_quantize_online(int32_t producer, int32_t dtype, int64_t rows, int64_t cols, int64_t listed,
                                      int64_t capacity, void const* x, void const* other, void const* gamma,
                                      void const* beta, int32_t const* idx, float epsilon, float sigma, float sigma_rms,
                                      int8_t* xq, float* sx, void* xo, void* sum, void* y, int32_t* set, void* state,
                                      void* stream);

// The outlier columns that a linear needs for predicted channels: *columns gets the address in `state` of [N, capacity]
// T, wo[:, j] for the channel idx[j], T(sw wc[:, k]) for another channel k, 0 in padding. Only columns whose channel
// changed since the last call are made. `state` is as above, of graphopt_mixq_columns_state_bytes(dtype, n, capacity).
//   codes         [N, K] int8 (group 0), or [N, 16 ceil(K / 32)] as wq4 below
//   sg            [ceil(K / group), N] int8, null where group is 0
//   sw [N] float, wo [N, listed] T, idx [listed] int32, set [capacity] int32
int64_t graphopt_mixq_columns_state_bytes(int32_t dtype, int64_t n, int64_t capacity);
int32_t graphopt_mixq_columns_init(int32_t dtype, int64_t n, int64_t capacity, void* state, void* stream);
int32_t graphopt_mixq_columns(int32_t dtype, int64_t n, int64_t k, int64_t listed, int64_t capacity, int64_t group,
                              int8_t const* codes, int8_t const* sg, float const* sw, void const* wo,
                              int32_t const* idx, int32_t const* set, void* state, void const** columns, void* stream);

// The same with 4-bit codes: sx = max |xm| / 7, xq4 [M, 16 ceil(K / 32)] int8, two codes to a byte as in wq4 below.
int32_t graphopt_mixq_quantize4(int32_t producer, int32_t dtype, int64_t rows, int64_t cols, int64_t capacity,
                                void const* x, void const* other, void const* gamma, void const* beta,
                                int32_t const* idx, float epsilon, int8_t* xq4, float* sx, void* xo, void* sum, void* y,
                                void* stream);

// y = T(sx sw (xq wq^T) + xo wo^T + bias). Codes of W, here and below, must not be written by the kernel before on the
// stream: reading them may start earlier.
//   xq [M, K] int8, sx [M] float, xo [M, C] T, wq [N, K] int8, sw [N] float, wo [N, C] T, bias [N] T, y [M, N] T
int32_t graphopt_mixq_linear(int32_t dtype, int64_t m, int64_t n, int64_t k, int64_t capacity, int8_t const* xq,
                             float const* sx, void const* xo, int8_t const* wq, float const* sw, void const* wo,
                             void const* bias, void* y, void* stream);

// Of the three linears: the same with residual [M, N] T, or null, added before the one rounding; y may be the residual.
int32_t graphopt_mixq_linear_add(int32_t dtype, int64_t m, int64_t n, int64_t k, int64_t capacity, int8_t const* xq,
                                 float const* sx, void const* xo, int8_t const* wq, float const* sw, void const* wo,
                                 void const* bias, void const* residual, void* y, void* stream);
int32_t graphopt_mixq_linear_w4a8_add(int32_t dtype, int64_t m, int64_t n, int64_t k, int64_t capacity, int64_t group,
                                      int8_t const* xq, float const* sx, void const* xo, int8_t const* wq4,
                                      int8_t const* sg, float const* sw, void const* wo, void const* bias,
                                      void const* residual, void* y, void* stream);
int32_t graphopt_mixq_linear_w4a4_add(int32_t dtype, int64_t m, int64_t n, int64_t k, int64_t capacity, int64_t group,
                                      int8_t const* xq4, float const* sx, void const* xo, int8_t const* wq4,
                                      int8_t const* sg, float const* sw, void const* wo, void const* bias,
                                      void const* residual, void* y, void* workspace, void* stream);

// y = T(sx sw (xq wc^T) + xo wo^T + bias), wc[n, k] = sg[k / group, n] wq4[n, k].
//   wq4  [N, 16 ceil(K / 32)] int8   codes in -7..7; byte 16 v + i: column 32 v + i low, 32 v + 16 + i high; 0 in padding
//   sg   [ceil(K / group), N] int8   in 1..18; group even
//   the others as above
int32_t graphopt_mixq_linear_w4a8(int32_t dtype, int64_t m, int64_t n, int64_t k, int64_t capacity, int64_t group,
                                  int8_t const* xq, float const* sx, void const* xo, int8_t const* wq4,
                                  int8_t const* sg, float const* sw, void const* wo, void const* bias, void* y,
                                  void* stream);

// The same with xq4 in place of xq, group a multiple of 32 or at least K, and scratch memory.
//   xq4        [M, 16 ceil(K / 32)] int8   codes as those of wq4
//   workspace  of graphopt_mixq_linear_w4a4_workspace_bytes(M, K) bytes, a multiple of 16
int32_t graphopt_mixq_linear_w4a4(int32_t dtype, int64_t m, int64_t n, int64_t k, int64_t capacity, int64_t group,
                                  int8_t const* xq4, float const* sx, void const* xo, int8_t const* wq4,
                                  int8_t const* sg, float const* sw, void const* wo, void const* bias, void* y,
                                  void* workspace, void* stream);

int64_t graphopt_mixq_linear_w4a4_workspace_bytes(int64_t m, int64_t k);

// How 4-bit codes of a M-ANT weight become numbers.
enum graphopt_mant_decode {
  GRAPHOPT_MANT_FLOAT = 0,  // table [16, 16] float16; x is T
  GRAPHOPT_MANT_SPLIT = 1,  // the sixteen types of M-ANT, exact; x is int8
  GRAPHOPT_MANT_BYTES = 2   // table [16, 16] int8, of 128ths; x is int8
};

// y = T(x w^T + bias), w[n, k] = scale[g, n] table[type[g, n], code[n, k]], g = k / group; x times sx where it is int8. G =
// ceil(K / group) groups of a multiple of 32 columns; codes and types packed two to a byte as above.
//   x      [M, K] T or int8     sx     [M, scales] float, scales 1 or G; null for float
//   codes  [N, 16 ceil(K / 32)] int8               types  [G, 16 ceil(N / 32)] int8
//   scale  [G, N] float16, not negative   table  see above; null for split      bias [N] T       y [M, N] T
//   workspace  of graphopt_mant_linear_workspace_bytes bytes, a multiple of 16. Null: many tokens take longer, and weights of
//              split and bytes are not rounded before their product (to float16, to 127ths of their row's largest)
int32_t graphopt_mant_linear(int32_t decode, int32_t dtype, int64_t m, int64_t n, int64_t k, int64_t group,
                             int64_t scales, void const* x, float const* sx, int8_t const* codes, int8_t const* types,
                             void const* scale, void const* table, void const* bias, void* y, void* workspace,
                             void* stream);

int64_t graphopt_mant_linear_workspace_bytes(int32_t decode, int64_t m, int64_t n, int64_t k, int64_t group);

// Appends k' = rotary(k) and v to a cache at rows start[b].. and attends to it: y[b, i] = softmax over j <= start[b] + i of
// scale rotary(q)[b, i] . present_k[b, j], times present_v. Query head h reads head h / (heads / kv_heads).
//   q, y                  [batch, seq, heads, head_size] T
//   k, v                  [batch, seq, kv_heads, head_size] T
//   cos, sin              [tables, seq, head_size] T, tables 1 or batch; not read where rotary is 0
//   past, present         [batch, kv_heads, capacity, head_size] T; where they are the same memory, only new rows are written
//   start                 [batch] int32
//   workspace             graphopt_cached_attention_workspace bytes of these sizes or larger ones, aligned to 16
int32_t graphopt_cached_attention(int32_t dtype, int64_t batch, int64_t seq, int64_t heads, int64_t kv_heads,
                                  int64_t head_size, int64_t capacity, int64_t tables, int32_t rotary, float scale,
                                  void const* q, void const* k, void const* v, void const* cos, void const* sin,
                                  void const* past_k, void const* past_v, int32_t const* start, void* y,
                                  void* present_k, void* present_v, void* workspace, void* stream);

int64_t graphopt_cached_attention_workspace(int32_t dtype, int64_t batch, int64_t seq, int64_t heads, int64_t kv_heads,
                                            int64_t head_size, int64_t capacity);

// For the ops below, whose caches hold codes.
int64_t graphopt_coded_attention_workspace(int32_t dtype, int64_t batch, int64_t seq, int64_t heads, int64_t kv_heads,
                                           int64_t head_size, int64_t capacity);

// The same over a cache of codes: vectors of `vector` (2, 4, 8 or 16) channels of k' and v are replaced by the nearest of 256
// centroids.
//   past, present           [batch, kv_heads, capacity, head_size / vector] bytes
//   codebook_k, codebook_v  [kv_heads, head_size / vector, 256, vector] T
int32_t graphopt_vq_attention(int32_t dtype, int64_t batch, int64_t seq, int64_t heads, int64_t kv_heads,
                              int64_t head_size, int64_t capacity, int64_t vector, int64_t tables, int32_t rotary,
                              float scale, void const* q, void const* k, void const* v, void const* cos,
                              void const* sin, void const* codebook_k, void const* codebook_v, int8_t const* past_k,
                              int8_t const* past_v, int32_t const* start, void* y, int8_t* present_k,
                              int8_t* present_v, void* workspace, void* stream);

// y = T(scale (x c^T) + bias), c[n, v j + e] = sum over i of codebooks[n / tile_rows, v j / tile_columns, i, code(n, j, i), e].
//   x [M, K] T, scale [N] float, bias [N] T, y [M, N] T; vector (v) 2, 4, 8 or 16, bits (b) 1 to 16, residuals (r) 1 to 4
//   codes      [N, B] int8   a little-endian stream of bits per row: code (j, i) takes the b bits from bit b (r j + i) on;
//                            B = 16 ceil(ceil(K / v) r b / 128)
//   codebooks  [ceil(N / tile_rows), ceil(K / tile_columns), r, 2^b, v] float16; tile_columns a multiple of v, or at least K
//   workspace  of graphopt_vq_linear_workspace_bytes bytes for M tokens or more, aligned to 16; null: kernels that need one are
//              not used
// Codes, codebooks, scale and bias must not be written by the kernel before on the stream: reading them may start earlier.
int32_t graphopt_vq_linear(int32_t dtype, int64_t m, int64_t n, int64_t k, int32_t vector, int32_t bits,
                           int32_t residuals, int64_t tile_rows, int64_t tile_columns, void const* x,
                           int8_t const* codes, void const* codebooks, float const* scale, void const* bias, void* y,
                           void* workspace, void* stream);

// For at most m tokens of 16 bits.
int64_t graphopt_vq_linear_workspace_bytes(int64_t m, int64_t n, int64_t k, int32_t vector, int32_t bits,
                                           int32_t residuals, int64_t tile_rows, int64_t tile_columns);

// The same with c[n, 8 j + e] = sum over i of ratios[i] e8(code(n, j, i))[e], codes of 16 bits, residuals 1 or 2: points of the
// lattice E8 (trt_plugins/vq/linear/lattice.cuh). ratios [residuals] float, ratios[0] not 0.
int32_t graphopt_vq_linear_e8(int32_t dtype, int64_t m, int64_t n, int64_t k, int32_t residuals, void const* x,
                              int8_t const* codes, float const* ratios, float const* scale, void const* bias, void* y,
                              void* workspace, void* stream);

// Writes as JSON which kernel graphopt_vq_linear would run for aligned operands, and the estimated times (microseconds) that it
// was chosen by. lattice: 1 for graphopt_vq_linear_e8. compute_capability: 90 or another. Returns the bytes of the text without
// its final zero; not more than `size` bytes are written. Needs no GPU.
int64_t graphopt_vq_plan(int32_t dtype, int64_t m, int64_t n, int64_t k, int32_t vector, int32_t bits,
                         int32_t residuals, int64_t tile_rows, int64_t tile_columns, int32_t lattice,
                         int32_t multiprocessors, int32_t compute_capability, char* text, int64_t size);

// Makes kernels for a linear as above whose format has none compiled ahead of time, by NVRTC or from the files that it left
// ($GRAPHOPT_CACHE), and takes them into use: graphopt_vq_linear then runs them. Needs no GPU. compute_capability: 80 and so on,
// or 0 for those that the library is compiled for. Returns the bytes of the kernels, of which not more than `size` are written;
// `text` gets their registers, spills and plan as JSON. 0: there are none, and `text` says why, or nothing if none are needed.
int64_t graphopt_vq_generate(int32_t dtype, int64_t n, int64_t k, int32_t vector, int32_t bits, int32_t residuals,
                             int64_t tile_rows, int64_t tile_columns, int32_t compute_capability, void* kernels,
                             int64_t size, char* text, int64_t text_size);

// Takes such bytes into use in this process, for all linears of their format.
int32_t graphopt_vq_install(void const* kernels, int64_t size);

// y = T(producer(x, other, gamma, beta)), then z = T((y padded with zeros to `channels` * signs) H / sqrt(block)), H block-diagonal,
// H[i, j] = (-1)^(common bits of i and j).
//   producer: as of graphopt_mixq_quantize, but those of a GLU, and so are x, other [rows, k] T, gamma, beta [k] T and epsilon
//   signs [channels] int8 of 1 and -1, z [rows, channels] T; block a power of two up to 65536
//   sum [rows, k] T: T(x + other) of an add producer, or null; y [rows, k] T or null
int32_t graphopt_vq_hadamard(int32_t producer, int32_t dtype, int64_t rows, int64_t k, int64_t channels, int64_t block,
                             void const* x, void const* other, void const* gamma, void const* beta, int8_t const* signs,
                             float epsilon, void* z, void* sum, void* y, void* stream);

// The same over a M-ANT cache: keys in 4-bit groups of `group` (32 or 64) channels, values in 4-bit groups of as many tokens
// once they are complete, and int8 until then. capacity is a multiple of group, head_size of 32 and of group.
//   selector       how a group gets its type: 0 trial, 1 and 2 by its variance
//   k_center       [kv_heads, head_size] T: subtracted from rotated keys
//   past, present  the addresses of the seven tensors of the state, in this order; each present may be its past:
//     k          [batch, kv_heads, capacity, head_size / 2] bytes
//     k_meta     [batch, kv_heads, capacity, 2 head_size / group] bytes
//     v, v_meta  the same sizes
//     v_window   [batch, kv_heads, group, head_size] int8
//     v_scale    [batch, kv_heads, group] float16
//     sink       [batch, kv_heads, 2, head_size] T
int32_t graphopt_mant_attention(int32_t dtype, int64_t batch, int64_t seq, int64_t heads, int64_t kv_heads,
                                int64_t head_size, int64_t capacity, int64_t group, int64_t tables, int32_t rotary,
                                int32_t selector, float scale, void const* q, void const* k, void const* v,
                                void const* cos, void const* sin, void const* k_center, void const* const* past,
                                int32_t const* start, void* y, void* const* present, void* workspace, void* stream);

// y of a producer alone, in T: any of graphopt_mixq_producer but PLAIN and those of a GLU.
//   x, other, gamma, beta   as above
//   y, sum                  [rows, K] T; sum null: not written
int32_t graphopt_fused(int32_t producer, int32_t dtype, int64_t rows, int64_t cols, void const* x, void const* other,
                       void const* gamma, void const* beta, float epsilon, void* y, void* sum, void* stream);

// One sentence; never null, owned by the library.
char const* graphopt_status_string(int32_t status);

// Version of the library, "major.minor.patch".
char const* graphopt_plugins_version(void);

// "cuda=13.0 archs=80,86 ptx=80 tensorrt_headers=10.14.1": what the library was built with.
char const* graphopt_plugins_build_info(void);

#ifdef __cplusplus
}
#endif

#endif
