// Every way through M-ANT's linears for many tokens at small sizes, without Python: for compute-sanitizer.
//
//   mant_expanded_small LIBRARY [WORK]
//
// LIBRARY is what build_mant_expanded.sh makes; WORK a number of Work there, else all. Results must agree with those of
// the kernels that decode where they multiply, which are checked elsewhere, as must the product in both tiles with a sum on
// the host. Exit code 1 if one does not. Build:
//   nvcc -std=c++17 -O2 benchmarks/kernels/mant_expanded_small.cu -o mant_expanded_small -ldl
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#include <dlfcn.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <vector>

namespace {

using Linear = int (*)(int, int64_t, int, int, int64_t, int64_t, int64_t, int64_t, void*, float*, void*, void*, void*,
                       void*, void*, void*, void*, void*);
using Gemm = int (*)(int, int, int, int64_t, int64_t, int64_t, void*, void*, float*, float*, void*, void*, int64_t,
                     void*);

enum Type { kFloat16 = 1, kBFloat16 = 2, kInt8 = 3 };

std::mt19937 generator(7);
int checks = 0, failures = 0;

void require(bool good, char const* what) {
  if (good) return;
  std::fprintf(stderr, "%s: %s\n", what, cudaGetErrorString(cudaGetLastError()));
  std::exit(2);
}

/// Device memory; `values` go there.
class Buffer {
 public:
  explicit Buffer(size_t bytes) : bytes_(bytes) {
    require(cudaMalloc(&data_, bytes) == cudaSuccess, "cudaMalloc");
    require(cudaMemset(data_, 0xff, bytes) == cudaSuccess, "cudaMemset");
  }
  template <class T>
  explicit Buffer(std::vector<T> const& values) : Buffer(values.size() * sizeof(T)) {
    require(cudaMemcpy(data_, values.data(), bytes_, cudaMemcpyHostToDevice) == cudaSuccess, "cudaMemcpy");
  }
  Buffer(Buffer const&) = delete;
  ~Buffer() { cudaFree(data_); }

  void* get() const { return data_; }
  float* floats() const { return static_cast<float*>(data_); }

  /// As floats of `type`.
  std::vector<float> read(int type) const {
    std::vector<uint16_t> bits(bytes_ / 2);
    require(cudaMemcpy(bits.data(), data_, bytes_, cudaMemcpyDeviceToHost) == cudaSuccess, "read");
    std::vector<float> values;
    for (uint16_t b : bits) {
      values.push_back(type == kFloat16 ? __half2float(reinterpret_cast<__half const&>(b))
                                        : __bfloat162float(reinterpret_cast<__nv_bfloat16 const&>(b)));
    }
    return values;
  }

 private:
  void* data_ = nullptr;
  size_t bytes_;
};

std::vector<int8_t> bytes(int64_t count, int least, int most) {
  std::uniform_int_distribution<int> of(least, most);
  std::vector<int8_t> values(count);
  for (auto& value : values) value = static_cast<int8_t>(of(generator));
  return values;
}

std::vector<float> normal(int64_t count, float scale) {
  std::normal_distribution<float> of;
  std::vector<float> values(count);
  for (auto& value : values) value = of(generator) * scale;
  return values;
}

std::vector<uint16_t> rounded(std::vector<float> const& values, int type) {
  std::vector<uint16_t> bits;
  for (float value : values) {
    __half const half = __float2half_rn(value);
    __nv_bfloat16 const brain = __float2bfloat16_rn(value);
    bits.push_back(type == kFloat16 ? reinterpret_cast<uint16_t const&>(half) : reinterpret_cast<uint16_t const&>(brain));
  }
  return bits;
}

/// Count a check: the norm of the difference against that of `want`.
void compare(std::vector<float> const& got, std::vector<float> const& want, int type, char const* what) {
  double difference = 0, norm = 0;
  for (size_t i = 0; i < want.size(); ++i) {
    difference += (double{got[i]} - want[i]) * (double{got[i]} - want[i]);
    norm += double{want[i]} * want[i];
  }
  double const error = std::sqrt(difference / norm);
  ++checks;
  if (error < (type == kFloat16 ? 1e-3 : 8e-3)) return;
  ++failures;
  std::printf("FAILED %s: %g\n", what, error);
}

void check_linear(Linear linear, int only, int decode, int type, int64_t m, int64_t n, int64_t k) {
  int64_t const group = 64, groups = (k + group - 1) / group, row = (k + 31) / 32 * 16, slab = 256;
  int const x_type = decode == 0 ? type : kInt8;
  Buffer x = x_type == kInt8 ? Buffer(bytes(m * k, -127, 127)) : Buffer(rounded(normal(m * k, 1), type));
  Buffer sx(std::vector<float>(m, 0.01f)), codes(bytes(n * row, -128, 127));
  Buffer types(bytes(groups * ((n + 31) / 32 * 16), -128, 127));
  std::vector<float> scales = normal(groups * n, 0.02f);
  for (float& scale : scales) scale = std::fabs(scale);
  Buffer scale(rounded(scales, kFloat16)), bias(rounded(normal(n, 1), type));
  std::vector<int8_t> halves = bytes(256, 0, 127);
  for (int i = 0; i < 256; ++i) halves[i] = static_cast<int8_t>(i % 16 < 8 ? halves[i] : -halves[i - 8]);
  std::vector<float> fractions;
  for (int8_t value : halves) fractions.push_back(value / 128.0f);
  Buffer table = decode == 2 ? Buffer(halves) : Buffer(rounded(fractions, kFloat16));
  Buffer workspace(2 * slab * k * 2 + m * k * 2 + groups * n * 16 + n * 4 + 4096);
  std::vector<float> want;
  for (int work = 0; work < 2; ++work) {
    if (only >= 0 && work != only && work != 0) continue;
    Buffer y(m * n * 2);
    int const status = linear(work, slab, decode, type, m, n, k, group, x.get(), sx.floats(), codes.get(), types.get(),
                              scale.get(), table.get(), bias.get(), y.get(), workspace.get(), nullptr);
    require(status == 0 && cudaDeviceSynchronize() == cudaSuccess, "linear");
    char what[128];
    std::snprintf(what, sizeof(what), "work %d decode %d type %d M=%d N=%d K=%d", work, decode, type,
                  static_cast<int>(m), static_cast<int>(n), static_cast<int>(k));
    if (work == 0) want = y.read(type);
    compare(y.read(type), want, type, what);
  }
}

void check_gemm(Gemm gemm, int tile, int operands, int type, int64_t m, int64_t n, int64_t k, bool scaled) {
  int64_t const stride = n + 16;
  std::vector<float> xs, ws, want(m * n);
  std::vector<int8_t> const x8 = bytes(m * k, -127, 127), w8 = bytes(n * k, -127, 127);
  for (int8_t value : x8) xs.push_back(value / 64.0f);  // exact in both types
  for (int8_t value : w8) ws.push_back(value / 64.0f);
  float const factor = operands == kInt8 ? 1 / 4096.0f : 1.0f;
  Buffer x = operands == kInt8 ? Buffer(x8) : Buffer(rounded(xs, operands));
  Buffer w = operands == kInt8 ? Buffer(w8) : Buffer(rounded(ws, operands));
  Buffer sx(std::vector<float>(m, 0.25f)), sw(std::vector<float>(n, factor * 2)), bias(rounded(normal(n, 1), type));
  std::vector<float> const b = bias.read(type);
  for (int64_t i = 0; i < m; ++i) {
    for (int64_t j = 0; j < n; ++j) {
      double sum = 0;
      for (int64_t c = 0; c < k; ++c) sum += double{xs[i * k + c]} * ws[j * k + c];
      if (scaled) sum *= 0.5;
      if (!scaled && operands == kInt8) sum *= 4096;
      want[i * n + j] = static_cast<float>(sum + b[j]);
    }
  }
  Buffer y(m * stride * 2);
  int const status = gemm(tile, operands, type, m, n, k, x.get(), w.get(), scaled ? sx.floats() : nullptr,
                          scaled ? sw.floats() : nullptr, bias.get(), y.get(), stride, nullptr);
  require(status == 0 && cudaDeviceSynchronize() == cudaSuccess, "gemm");
  std::vector<float> const all = y.read(type);
  std::vector<float> got;
  bool untouched = true;
  for (int64_t i = 0; i < m; ++i) {
    for (int64_t j = 0; j < n; ++j) got.push_back(all[i * stride + j]);
    for (int64_t j = n; j < stride; ++j) untouched = untouched && std::isnan(all[i * stride + j]);
  }
  char what[128];
  std::snprintf(what, sizeof(what), "gemm tile %d operands %d type %d M=%d N=%d K=%d scaled %d", tile, operands, type,
                static_cast<int>(m), static_cast<int>(n), static_cast<int>(k), scaled);
  if (type == kFloat16 && !scaled && operands == kInt8) return;  // beyond its range: only that it runs
  compare(got, want, type, what);
  ++checks;
  if (!untouched) ++failures, std::printf("FAILED %s: wrote beyond its columns\n", what);
}

}  // namespace

int main(int argc, char** argv) {
  require(argc > 1, "mant_expanded_small LIBRARY [WORK]");
  void* const library = dlopen(argv[1], RTLD_NOW);
  if (library == nullptr) return std::fprintf(stderr, "%s\n", dlerror()), 2;
  auto const linear = reinterpret_cast<Linear>(dlsym(library, "mx_linear"));
  auto const gemm = reinterpret_cast<Gemm>(dlsym(library, "mx_gemm"));
  require(linear != nullptr && gemm != nullptr, "symbols");
  int const only = argc > 2 ? std::atoi(argv[2]) : -1;
  // Two tiles of tokens; three slabs, of which the last is short; a ragged end of K.
  for (int decode = 0; decode < 3; ++decode) {
    for (int type : {kFloat16, kBFloat16}) check_linear(linear, only, decode, type, 150, 584, 336);
  }
  check_linear(linear, only, 0, kFloat16, 300, 264, 1040);  // stages more than the ring's
  if (only < 0) {
    int const pairs[][2] = {{kInt8, kFloat16}, {kInt8, kBFloat16}, {kFloat16, kFloat16}, {kFloat16, kBFloat16},
                            {kBFloat16, kBFloat16}};
    for (int tile : {128, 256}) {
      for (auto const& pair : pairs) {
        for (bool scaled : {false, true}) check_gemm(gemm, tile, pair[0], pair[1], 140, 264, 336, scaled);
      }
    }
  }
  std::printf("%d checks, %d failed\n", checks, failures);
  return failures > 0;
}
