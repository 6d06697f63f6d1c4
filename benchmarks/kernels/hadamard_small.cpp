// Run the Hadamard ops without Python: small sizes for compute-sanitizer, or one launch for ncu.
//
//   hadamard_small LIBRARY                        every producer, small sizes
//   hadamard_small LIBRARY PRODUCER M K BLOCK     one launch in float16
//
// LIBRARY exports graphopt_vq_hadamard (capi.h). That results are right is checked by hadamard.py. Build:
//   nvcc -std=c++17 -O2 benchmarks/kernels/hadamard_small.cpp -o hadamard_small -ldl
#include <cuda_runtime.h>
#include <dlfcn.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <vector>

namespace {

using Hadamard = int32_t (*)(int32_t, int32_t, int64_t, int64_t, int64_t, int64_t, void const*, void const*,
                             void const*, void const*, int8_t const*, float, void*, void*, void*, void*);

constexpr int kProducers = 10;

struct Shape {
  int64_t rows, k, block;
};

// One for each way through the kernels: blocks within a warp, of two, four, eight and sixteen warps; padding; no vectors.
constexpr Shape kShapes[] = {{5, 576, 64},     {2, 2048, 2048},   {2, 8192, 4096}, {1, 8192, 8192},
                             {1, 16384, 16384}, {3, 1000, 64}, {1, 7, 1}};
// Of layer norms whose first row has its mean far above its deviation: rows that a block could share.
constexpr Shape kFarShapes[] = {{5, 576, 64}, {3, 2048, 2048}};

void require(bool good, char const* what) {
  if (good) return;
  std::fprintf(stderr, "%s: %s\n", what, cudaGetErrorString(cudaGetLastError()));
  std::exit(1);
}

/// Device memory of `count` values of 16 or 32 bits between -2 and 2, exactly as large as they are. The first `positive`
/// of them lie between 1 and 2.
void* random_values(int64_t count, int dtype, int64_t positive = 0) {
  std::mt19937 random(static_cast<unsigned>(count));
  std::vector<uint32_t> wide(count);
  std::vector<uint16_t> narrow(count);
  for (int64_t i = 0; i < count; ++i) {
    uint32_t const bits = static_cast<uint32_t>(random()) & (i < positive ? 0x7fff7fffu : 0xffffffffu);
    wide[i] = (bits & 0x807fffffu) | 0x3f800000u;
    narrow[i] = static_cast<uint16_t>((bits & 0x807fu) | (dtype == 1 ? 0x3c00u : 0x3f80u));
  }
  size_t const bytes = count * (dtype == 0 ? 4 : 2);
  void* device = nullptr;
  require(cudaMalloc(&device, bytes) == cudaSuccess, "cudaMalloc");
  void const* const from = dtype == 0 ? static_cast<void const*>(wide.data()) : narrow.data();
  require(cudaMemcpy(device, from, bytes, cudaMemcpyHostToDevice) == cudaSuccess, "cudaMemcpy");
  return device;
}

void run(Hadamard hadamard, int producer, int dtype, Shape const& s, bool emit, bool far = false) {
  int64_t const channels = (s.k + s.block - 1) / s.block * s.block;
  std::vector<int8_t> signs(channels);
  for (int64_t i = 0; i < channels; ++i) signs[i] = i * 7 % 3 == 0 ? -1 : 1;
  void* flips = nullptr;
  require(cudaMalloc(&flips, channels) == cudaSuccess, "cudaMalloc");
  require(cudaMemcpy(flips, signs.data(), channels, cudaMemcpyHostToDevice) == cudaSuccess, "cudaMemcpy");
  std::vector<void*> made = {flips};
  auto const values = [&](int64_t count, int64_t positive = 0) {
    return made.emplace_back(random_values(count, dtype, positive));
  };
  void* const x = values(s.rows * s.k, far ? s.k : 0);
  void* const other = values(s.rows * s.k, far ? s.k : 0);
  void* const gamma = values(s.k);
  void* const beta = values(s.k);
  void* const z = values(s.rows * channels);
  void* const sum = values(s.rows * s.k);
  void* const y = values(s.rows * s.k);
  int const status = hadamard(producer, dtype, s.rows, s.k, channels, s.block, x, other, gamma, beta,
                              static_cast<int8_t const*>(flips), 1e-5f, z, emit ? sum : nullptr, emit ? y : nullptr,
                              nullptr);
  require(status == 0, "refused");
  require(cudaDeviceSynchronize() == cudaSuccess, "kernel");
  for (void* memory : made) cudaFree(memory);
}

}  // namespace

int main(int argc, char** argv) {
  void* const library = argc > 1 ? dlopen(argv[1], RTLD_NOW) : nullptr;
  if (library == nullptr) {
    std::fprintf(stderr, "usage: hadamard_small LIBRARY [PRODUCER M K BLOCK]\n");
    return 2;
  }
  auto const hadamard = reinterpret_cast<Hadamard>(dlsym(library, "graphopt_vq_hadamard"));
  require(hadamard != nullptr, "graphopt_vq_hadamard");
  if (argc == 6) {
    run(hadamard, std::atoi(argv[2]), 1, {std::atoll(argv[3]), std::atoll(argv[4]), std::atoll(argv[5])}, false);
    return 0;
  }
  int cases = 0;
  for (int producer = 0; producer < kProducers; ++producer) {
    for (Shape const& shape : kShapes) {
      run(hadamard, producer, 1, shape, true), ++cases;
      if (producer > 1) continue;  // other types share the code of memory
      run(hadamard, producer, 2, shape, false), ++cases;
      run(hadamard, producer, 0, shape, false), ++cases;
    }
  }
  constexpr int kLayerNorm = 3, kAddLayerNorm = 4;
  for (int producer : {kLayerNorm, kAddLayerNorm}) {
    for (Shape const& shape : kFarShapes) run(hadamard, producer, 1, shape, true, true), ++cases;
  }
  std::printf("%d cases\n", cases);
  return 0;
}
