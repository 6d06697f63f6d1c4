// Run norms and activations by themselves without Python: small sizes for compute-sanitizer, or one launch for ncu.
//
//   fused_small LIBRARY                  every producer, kernel and type, small sizes
//   fused_small LIBRARY PRODUCER M K     one launch in float16
//
// LIBRARY exports graphopt_fused (capi.h). That results are right is checked by fused.py. Build:
//   nvcc -std=c++17 -O2 benchmarks/kernels/fused_small.cpp -o fused_small -ldl
#include <cuda_runtime.h>
#include <dlfcn.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <vector>

namespace {

using Fused = int32_t (*)(int32_t, int32_t, int64_t, int64_t, void const*, void const*, void const*, void const*, float,
                          void*, void*, void*);

constexpr int kFirst = 1, kLast = 9;  // producers
constexpr int kTypes = 3;

struct Shape {
  int64_t rows, k;
};

// Few rows: part of a warp, several warps; many: four to a block and one; no vectors.
constexpr Shape kShapes[] = {{3, 136}, {2, 4096}, {270, 24}, {267, 5128}, {3, 101}};

void require(bool good, char const* what) {
  if (good) return;
  std::fprintf(stderr, "%s: %s\n", what, cudaGetErrorString(cudaGetLastError()));
  std::exit(1);
}

/// Device memory of `bytes`, exactly as large, every value between 1 and 2.
void* ones(int64_t bytes, int dtype) {
  std::vector<uint8_t> values(bytes);
  for (int64_t i = 0; i < bytes; ++i) {
    bool const upper = dtype == 0 ? i % 4 == 3 : i % 2 == 1;
    bool const next = dtype == 0 ? i % 4 == 2 : dtype == 2 && i % 2 == 0;
    uint8_t const noise = static_cast<uint8_t>(i * 37 % 101);
    values[i] = upper ? (dtype == 1 ? 0x3c : 0x3f) : next ? 0x80 | noise : noise;
  }
  void* device = nullptr;
  require(cudaMalloc(&device, bytes) == cudaSuccess, "cudaMalloc");
  require(cudaMemcpy(device, values.data(), bytes, cudaMemcpyHostToDevice) == cudaSuccess, "cudaMemcpy");
  return device;
}

void run(Fused fused, int producer, int dtype, Shape const& s, bool emit) {
  int64_t const row = s.k * (dtype == 0 ? 4 : 2), all = s.rows * row;
  void* const memory[] = {ones(all, dtype), ones(all, dtype), ones(row, dtype),
                          ones(row, dtype), ones(all, dtype), ones(all, dtype)};
  int const status = fused(producer, dtype, s.rows, s.k, memory[0], memory[1], memory[2], memory[3], 1e-5f, memory[4],
                           emit ? memory[5] : nullptr, nullptr);
  require(status == 0, "refused");
  require(cudaDeviceSynchronize() == cudaSuccess, "kernel");
  for (void* part : memory) cudaFree(part);
}

}  // namespace

int main(int argc, char** argv) {
  void* const library = argc > 1 ? dlopen(argv[1], RTLD_NOW) : nullptr;
  if (library == nullptr) {
    std::fprintf(stderr, "usage: fused_small LIBRARY [PRODUCER M K]\n");
    return 2;
  }
  auto const fused = reinterpret_cast<Fused>(dlsym(library, "graphopt_fused"));
  require(fused != nullptr, "graphopt_fused");
  if (argc == 5) {
    run(fused, std::atoi(argv[2]), 1, {std::atoll(argv[3]), std::atoll(argv[4])}, true);
    return 0;
  }
  int cases = 0;
  for (int producer = kFirst; producer <= kLast; ++producer) {
    for (int dtype = 0; dtype < kTypes; ++dtype) {
      for (Shape const& shape : kShapes) run(fused, producer, dtype, shape, cases % 2 == 0), ++cases;
    }
  }
  std::printf("%d cases\n", cases);
  return 0;
}
