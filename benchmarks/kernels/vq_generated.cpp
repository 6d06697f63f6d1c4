// Runs generated kernels of vector-quantized linears on small operands, for compute-sanitizer.
//
//   g++ -std=c++17 -I CUDA/include vq_generated.cpp -L CUDA/lib64 -lcudart_static -ldl -lpthread -lrt -o vq_generated
//   compute-sanitizer --tool racecheck ./vq_generated libgraphopt_plugins.so
//
// needs NVRTC or the files that it left in $GRAPHOPT_CACHE, as vq_generated.py.
#include <cuda_runtime.h>
#include <dlfcn.h>

#include <cstdint>
#include <cstdio>
#include <random>
#include <vector>

namespace {

using Generate = int64_t (*)(int32_t dtype, int64_t n, int64_t k, int32_t vector, int32_t bits, int32_t residuals,
                             int64_t tile_rows, int64_t tile_columns, int32_t arch, void* kernels, int64_t size,
                             char* text, int64_t text_size);
using Linear = int32_t (*)(int32_t dtype, int64_t m, int64_t n, int64_t k, int32_t vector, int32_t bits,
                           int32_t residuals, int64_t tile_rows, int64_t tile_columns, void const* x,
                           int8_t const* codes, void const* codebooks, float const* scale, void const* bias, void* y,
                           void* workspace, void* stream);

struct Format {
  int32_t vector, bits, residuals;
  int64_t tile;  // 0: the whole weight
};

struct Shape {
  int64_t m, n, k;
};

constexpr Format kFormats[] = {{4, 8, 2, 0},   {2, 6, 1, 0},  {8, 10, 1, 0},
                               {16, 12, 2, 0}, {8, 16, 1, 0}, {4, 8, 2, 256}};
constexpr Shape kShapes[] = {{3, 136, 1032}, {16, 261, 1544}, {1, 300, 2056}};
constexpr int64_t kWhole = int64_t{1} << 30;

enum class Fill { kBits, kHalves, kOnes };

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

/// Device memory of random bits, of 16-bit numbers of small magnitude in either type, or of float ones.
void* operand(int64_t bytes, Fill fill) {
  static std::mt19937 random(0);
  std::vector<uint8_t> host(static_cast<size_t>(bytes));
  for (uint8_t& byte : host) byte = static_cast<uint8_t>(random());
  for (size_t i = 1; fill == Fill::kHalves && i < host.size(); i += 2) host[i] = 0x30 | (host[i] & 0x8f);
  for (size_t i = 0; fill == Fill::kOnes && i + 3 < host.size(); i += 4) {
    host[i] = host[i + 1] = 0, host[i + 2] = 0x80, host[i + 3] = 0x3f;
  }
  void* device = nullptr;
  cudaMalloc(&device, host.size());
  cudaMemcpy(device, host.data(), host.size(), cudaMemcpyHostToDevice);
  return device;
}

bool run(Linear linear, int32_t dtype, Format const& f, Shape const& s) {
  int64_t const rows = f.tile > 0 ? f.tile : s.n, columns = f.tile > 0 ? f.tile : s.k;
  int64_t const row_bytes = ceil_div(ceil_div(s.k, f.vector) * f.residuals * f.bits, 128) * 16;
  int64_t const entries = ceil_div(s.n, rows) * ceil_div(s.k, columns) * (int64_t{f.residuals} << f.bits);
  void* const x = operand(2 * s.m * s.k, Fill::kHalves);
  void* const codes = operand(s.n * row_bytes, Fill::kBits);
  void* const books = operand(2 * entries * f.vector, Fill::kHalves);
  void* const scale = operand(4 * s.n, Fill::kOnes);
  void* const bias = operand(2 * s.n, Fill::kHalves);
  void* const y = operand(2 * s.m * s.n, Fill::kBits);
  int32_t const status =
      linear(dtype, s.m, s.n, s.k, f.vector, f.bits, f.residuals, rows, columns, x, static_cast<int8_t*>(codes), books,
             static_cast<float*>(scale), bias, y, nullptr, nullptr);
  cudaError_t const error = cudaDeviceSynchronize();
  for (void* pointer : {x, codes, books, scale, bias, y}) cudaFree(pointer);
  if (status == 0 && error == cudaSuccess) return true;
  std::printf("VQ<%d,%d,%d>: status %d, %s\n", f.vector, f.bits, f.residuals, status, cudaGetErrorString(error));
  return false;
}

}  // namespace

int main(int argc, char** argv) {
  void* const library = argc < 2 ? nullptr : dlopen(argv[1], RTLD_NOW);
  if (library == nullptr) return std::puts("usage: vq_generated LIBRARY"), 2;
  auto const generate = reinterpret_cast<Generate>(dlsym(library, "graphopt_vq_generate"));
  auto const linear = reinterpret_cast<Linear>(dlsym(library, "graphopt_vq_linear"));
  int launches = 0, failed = 0, major = 0, minor = 0;
  cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, 0);
  cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, 0);
  for (Format const& f : kFormats) {
    for (int32_t dtype : {1, 2}) {  // float16, bfloat16
      int64_t const tile = f.tile > 0 ? f.tile : kWhole;
      char text[4096];
      if (generate(dtype, 512, 1024, f.vector, f.bits, f.residuals, tile, tile, 10 * major + minor, nullptr, 0, text,
                   sizeof(text)) == 0) {
        return std::puts(text), 1;
      }
      for (Shape const& s : kShapes) ++launches, failed += run(linear, dtype, f, s) ? 0 : 1;
    }
  }
  std::printf("%d launches, %d failed\n", launches, failed);
  return failed == 0 ? 0 : 1;
}
