// Run the kernels of vector-quantized linears without Python: small sizes for compute-sanitizer, or one launch for ncu.
//
//   vq_small LIBRARY                       every kernel of every preset, small sizes; bfloat16 for one token only
//   vq_small LIBRARY FORMAT                every kernel of one preset, a number of kFormats, at the smallest sizes that
//                                          have more than one tile and split K: racecheck takes its time
//   vq_small LIBRARY FORMAT KERNEL         the same of one kernel, a number of LinearKernel, in both types
//   vq_small LIBRARY FORMAT KERNEL M N K   one launch
//
// LIBRARY is what build_vq.sh makes. Operands are random; that results are right is checked by vq.py. Build:
//   nvcc -std=c++17 -O2 benchmarks/kernels/vq_small.cu -o vq_small -ldl
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#include <dlfcn.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <vector>

namespace {

struct Format {
  char const* name;
  int64_t v, b, r, tile;
  bool lattice;
};

constexpr Format kFormats[] = {
    {"gptvq2", 4, 8, 1, 256, false}, {"aqlm2", 8, 8, 2, 0, false},        {"aqlm3", 8, 12, 2, 0, false},
    {"quip4", 8, 16, 2, 0, true},    {"4-8-2-t256", 4, 8, 2, 256, false},  // from here on W is expanded
    {"2-6-1", 2, 6, 1, 0, false},    {"16-12-2", 16, 12, 2, 0, false},    {"8-16-1", 8, 16, 1, 0, false},
    {"4-15-1", 4, 15, 1, 0, false},  {"2-16-1", 2, 16, 1, 0, false},      {"e8-1", 8, 16, 1, 0, true},
    {"4-8-1-t8", 4, 8, 1, 8, false}};  // more tiles than blocks
constexpr int kExpanded = 7, kGeneric = 8, kKernels = 9;

using Linear = int (*)(int, int, int64_t const*, void* const*, void*);

void require(bool good, char const* what) {
  if (good) return;
  std::fprintf(stderr, "%s: %s\n", what, cudaGetErrorString(cudaGetLastError()));
  std::exit(1);
}

void* upload(void const* host, size_t bytes) {
  void* device = nullptr;
  require(cudaMalloc(&device, bytes) == cudaSuccess, "cudaMalloc");
  require(cudaMemcpy(device, host, bytes, cudaMemcpyHostToDevice) == cudaSuccess, "cudaMemcpy");
  return device;
}

/// Whether the kernel took the operands.
bool run(Linear linear, Format const& f, int dtype, int kernel, int split, int64_t m, int64_t n, int64_t k) {
  std::mt19937 random(static_cast<unsigned>(m + n + k));
  std::normal_distribution<float> normal;
  auto const halves = [&](int64_t count) {
    std::vector<uint16_t> values(count);
    for (auto& value : values) {
      float const x = normal(random);
      __half const half = __float2half(x);
      uint32_t bits;
      std::memcpy(&bits, &x, 4);
      value = dtype == 1 ? reinterpret_cast<uint16_t const&>(half) : static_cast<uint16_t>(bits >> 16);
    }
    return upload(values.data(), 2 * count);
  };
  int64_t const row = ((k + f.v - 1) / f.v * f.r * f.b + 127) / 128 * 16;
  int64_t const tile_rows = f.tile != 0 ? f.tile : n, tile_columns = f.tile != 0 ? f.tile : k;
  int64_t const tiles = ((n + tile_rows - 1) / tile_rows) * ((k + tile_columns - 1) / tile_columns);
  std::vector<uint32_t> codes(n * row / 4);
  for (auto& word : codes) word = random();
  std::vector<uint16_t> books(f.lattice ? 1 : tiles * f.r * (int64_t{1} << f.b) * f.v);
  for (auto& value : books) value = static_cast<uint16_t>(0x3000 | (random() & 0x8fff));
  std::vector<float> scale(n, 0.01f), workspace((n + 512) * k / 2 + n + 1056);
  float const ratios[2] = {1.0f, 0.26f};
  void* pointers[8] = {halves(m * k),
                       upload(codes.data(), codes.size() * 4),
                       upload(books.data(), books.size() * 2),
                       upload(ratios, sizeof(ratios)),
                       upload(scale.data(), scale.size() * 4),
                       halves(n),
                       halves(m * n),
                       upload(workspace.data(), workspace.size() * 4)};
  void* const all[8] = {pointers[0], pointers[1], f.lattice ? nullptr : pointers[2],
                        pointers[3], pointers[4], pointers[5],
                        pointers[6], pointers[7]};
  int64_t const sizes[9] = {dtype, m, n, k, f.v, f.b, f.r, tile_rows, tile_columns};
  int const status = linear(kernel, split, sizes, all, nullptr);
  require(status <= 0, "launch");
  require(cudaDeviceSynchronize() == cudaSuccess, "kernel");
  for (void* pointer : pointers) cudaFree(pointer);
  return status == 0;
}

/// Whether blocks can share K, or W be in smaller slabs.
bool splits(int kernel) { return kernel < 2 || (kernel >= 4 && kernel <= kExpanded); }

/// The number of launches.
int run_smallest(Linear linear, Format const& f, int first, int last, int most_dtype) {
  constexpr int64_t kTokens[kKernels] = {5, 12, 5, 1, 20, 70, 140, 20, 1};
  int cases = 0;
  for (int kernel = first; kernel <= last; ++kernel) {
    for (int split = 1; split <= (splits(kernel) ? 2 : 1); ++split) {
      int64_t const rows = kernel == kExpanded ? 264 : 256;  // two slabs of these
      for (int dtype = 1; dtype <= most_dtype; ++dtype) {
        if (!run(linear, f, dtype, kernel, split, kTokens[kernel], rows, 512)) continue;
        ++cases;
        std::printf("%s: kernel %d, split %d, type %d\n", f.name, kernel, split, dtype);
        std::fflush(stdout);
      }
    }
  }
  return cases;
}

}  // namespace

int main(int count, char** arguments) {
  require(count == 2 || count == 3 || count == 4 || count == 7, "arguments");
  void* const library = dlopen(arguments[1], RTLD_NOW);
  require(library != nullptr, "dlopen");
  auto const linear = reinterpret_cast<Linear>(dlsym(library, "vq_linear"));
  require(linear != nullptr, "vq_linear");
  if (count <= 4 && count > 2) {
    int const only = count == 4 ? std::atoi(arguments[3]) : -1;
    Format const& f = kFormats[std::atoi(arguments[2])];
    std::printf("%d cases\n",
                only < 0 ? run_smallest(linear, f, 0, kKernels - 1, 1) : run_smallest(linear, f, only, only, 2));
    return 0;
  }
  if (count == 7) {
    bool const taken = run(linear, kFormats[std::atoi(arguments[2])], 1, std::atoi(arguments[3]), 1,
                           std::atol(arguments[4]), std::atol(arguments[5]), std::atol(arguments[6]));
    return taken ? 0 : 1;
  }
  constexpr int64_t kSizes[][3] = {{1, 520, 1032}, {5, 136, 1032}, {16, 264, 520}, {70, 136, 264}};
  int cases = 0;
  for (Format const& f : kFormats) {
    for (int kernel = 0; kernel < kKernels; ++kernel) {
      for (int split = 1; split <= (splits(kernel) ? 2 : 1); ++split) {
        for (auto const& [m, n, k] : kSizes) {
          if (kernel == kGeneric && m > 1) continue;  // takes long
          if (kernel == kExpanded && m == 5) continue;
          for (int dtype = 1; dtype <= (m == 1 || kernel == kExpanded ? 2 : 1); ++dtype)
            cases += run(linear, f, dtype, kernel, split, m, n, k);
        }
      }
    }
  }
  std::printf("%d cases\n", cases);
  return 0;
}
