// What the optimizations of VQ-LLM are worth in the kernel for few tokens: it runs with each of them on and off.
//
//   cache     entries in shared memory, with copies; else each look-up reads the codebook through L1
//   dataflow  blocks of a cluster share K; else a block takes all of it
//   fusion    decoded weights go from the look-up into mma; else in and out of shared memory first
//
// Prints a line of JSON for each size and combination, microseconds. Weights are more than L2 holds. Every output is compared
// with sums in double precision for some rows, and with that of the whole kernel. Build and run:
//
//   nvcc -std=c++17 -O3 -DGRAPHOPT_SM90A -I trt_plugins -gencode=arch=compute_90a,code=sm_90a
//     benchmarks/kernels/vq_ablation.cu trt_plugins/common/check.cpp -o vq_ablation && ./vq_ablation
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <vector>

#include "vq/linear/launch_few.cuh"

using namespace graphopt;
using namespace graphopt::vq;

namespace {

template <int v_, int b_, int r_, bool kTiled_, int kCopies_>
struct Format {
  static constexpr int v = v_, b = b_, r = r_, kCopies = kCopies_;
  static constexpr bool kTiled = kTiled_;
};

using Gptvq2 = Format<4, 8, 1, true, 16>;
using Aqlm2 = Format<8, 8, 2, false, 8>;
using Shape = FewShape<8, 2, 1>;

/// BookWeights without a copy of the codebook: tables hold its address.
template <class F>
struct MemoryBooks {
  using T = __half;
  using Codes = LaneCodes<F::v, F::b, F::r>;
  static constexpr bool kTiled = F::kTiled, kLattice = false;
  static constexpr int kCopies = 1, kEntryBytes = 2 * F::v, kEntries = F::r << F::b;
  static constexpr int kTableBytes = 128, kSharedBytes = kTableBytes * (kTiled ? 2 : 1);

  template <int kThreads>
  struct Loader {
    int const thread;
    __half const* books = nullptr;
    __device__ explicit Loader(int thread) : thread(thread) {}
    __device__ void load(__half const* next) { books = next; }
    __device__ void store(uint32_t table) const { copy(books, table); }
    __device__ void copy(__half const* next, uint32_t table) const {
      if (thread == 0) asm volatile("st.shared.u64 [%0], %1;" ::"r"(table), "l"(next) : "memory");
    }
  };

  class Decoder {
   public:
    __device__ Decoder(uint32_t table, int, float const*) {
      asm volatile("ld.shared.u64 %0, [%1];" : "=l"(books_) : "r"(table));
    }
    __device__ __forceinline__ void eight(uint32_t (&out)[4], Codes const& codes, int q) const {
      constexpr int kWords = F::v / 2;
#pragma unroll
      for (int j = 0; j < 8 / F::v; ++j) {
        int const vector = q * (8 / F::v) + j;
#pragma unroll
        for (int i = 0; i < F::r; ++i) {
          uint32_t const at = (static_cast<uint32_t>(i << F::b) + codes.code(vector * F::r + i)) * kEntryBytes;
          uint32_t entry[kWords];
          if constexpr (kWords == 4) {
            uint4 const q4 = __ldg(reinterpret_cast<uint4 const*>(books_ + at));
            entry[0] = q4.x, entry[1] = q4.y, entry[2] = q4.z, entry[3] = q4.w;
          } else {
            uint2 const q2 = __ldg(reinterpret_cast<uint2 const*>(books_ + at));
            entry[0] = q2.x, entry[1] = q2.y;
          }
#pragma unroll
          for (int w = 0; w < kWords; ++w) {
            uint32_t& sum = out[j * kWords + w];
            sum = i == 0 ? entry[w] : add_pair<T>(sum, entry[w]);
          }
        }
      }
    }

   private:
    char const* books_;
  };
};

/// Weights whose decoded columns go through shared memory.
template <class Base>
struct Staged : Base {
  class Decoder {
   public:
    __device__ Decoder(uint32_t table, int lane, float const* ratios) : base_(table, lane, ratios) {
      __shared__ __align__(16) uint4 staging[Shape::kThreads];
      place_ = shared_address(&staging[threadIdx.x]);
    }
    __device__ __forceinline__ void eight(uint32_t (&out)[4], typename Base::Codes const& codes, int q) const {
      base_.eight(out, codes, q);
      __syncwarp();
      store_shared(place_, out[0], out[1], out[2], out[3]);
      __syncwarp();
      load_shared(out, place_);
    }

   private:
    typename Base::Decoder base_;
    uint32_t place_;
  };
};

template <class F, bool kCache, bool kFusion>
struct Choose {
  using Books = std::conditional_t<kCache, BookWeights<__half, F::v, F::b, F::r, F::kTiled, F::kCopies>, MemoryBooks<F>>;
  using Type = std::conditional_t<kFusion, Books, Staged<Books>>;
};

void require(bool good, char const* what) {
  if (good) return;
  std::fprintf(stderr, "%s: %s\n", what, cudaGetErrorString(cudaGetLastError()));
  std::exit(1);
}

template <class E>
E* upload(std::vector<E> const& host) {
  void* device = nullptr;
  require(cudaMalloc(&device, host.size() * sizeof(E)) == cudaSuccess, "cudaMalloc");
  require(cudaMemcpy(device, host.data(), host.size() * sizeof(E), cudaMemcpyHostToDevice) == cudaSuccess, "cudaMemcpy");
  return static_cast<E*>(device);
}

/// A linear [n, k] of F with random codes, in several places that L2 does not hold together.
template <class F>
struct Problem {
  static constexpr int kPlaces = 6;
  int n, k, m;
  int64_t bytes;
  std::vector<int8_t> codes;
  std::vector<__half> books, x, bias;
  std::vector<float> scale;
  int8_t* places[kPlaces];
  LinearParams params{};

  Problem(int n, int k, int m) : n(n), k(k), m(m), bytes(row_bytes(k, F::v, F::b, F::r)) {
    std::mt19937 random(n + 31 * k + m);
    std::normal_distribution<float> normal;
    int64_t const tiles = F::kTiled ? int64_t{n / 256} * (k / 256) : 1;
    codes.resize(n * bytes);
    for (size_t i = 0; i < codes.size(); i += 4) {
      uint32_t const word = random();
      std::memcpy(&codes[i], &word, 4);
    }
    books.resize(tiles * (F::r << F::b) * F::v);
    for (__half& e : books) e = __float2half(normal(random));
    for (size_t i = 0; i < books.size(); i += 97) books[i] = __float2half(8.0f * normal(random));
    x.resize(m * k);
    for (__half& e : x) e = __float2half(normal(random));
    for (int i = 3; i < m * k; i += 1021) x[i] = __float2half(30.0f * normal(random));
    bias.resize(n);
    for (__half& e : bias) e = __float2half(normal(random));
    scale.resize(n);
    for (float& e : scale) e = 0.002f * (1.0f + 0.2f * std::fabs(normal(random)));
    for (int8_t*& place : places) place = upload(codes);
    void* y = nullptr;
    require(cudaMalloc(&y, sizeof(__half) * m * n) == cudaSuccess, "cudaMalloc");
    params.dtype = DType::kFloat16;
    params.m = m, params.n = n, params.k = k;
    params.vector = F::v, params.bits = F::b, params.residuals = F::r;
    params.tile_rows = F::kTiled ? 256 : n, params.tile_columns = F::kTiled ? 256 : k;
    params.x = upload(x), params.codes = places[0], params.codebooks = upload(books);
    params.scale = upload(scale), params.bias = upload(bias), params.y = y;
  }

  ~Problem() {
    for (int8_t* place : places) cudaFree(place);
    for (void const* p : {params.x, params.codebooks, static_cast<void const*>(params.scale), params.bias}) {
      cudaFree(const_cast<void*>(p));
    }
    cudaFree(params.y);
  }

  double exact(int token, int row) const {
    double sum = 0.0;
    for (int j = 0; j < k / F::v; ++j) {
      for (int i = 0; i < F::r; ++i) {
        int const code = static_cast<uint8_t>(codes[row * bytes + j * F::r + i]);
        int64_t const tile = F::kTiled ? int64_t{row / 256} * (k / 256) + j * F::v / 256 : 0;
        __half const* const entry = &books[((tile * F::r + i) * 256 + code) * F::v];
        for (int e = 0; e < F::v; ++e) {
          sum += static_cast<double>(__half2float(entry[e])) * __half2float(x[token * k + j * F::v + e]);
        }
      }
    }
    return sum * scale[row] + __half2float(bias[row]);
  }
};

/// The largest difference from exact sums in some rows, as a share of what rounding entries and y to float16 may cause.
template <class F>
double worst(Problem<F> const& problem, std::vector<__half> const& y) {
  double found = 0.0;
  for (int row = 5; row < problem.n; row += problem.n / 24) {
    for (int token = 0; token < problem.m; token += 3) {
      double const want = problem.exact(token, row), got = __half2float(y[token * problem.n + row]);
      double const size = std::sqrt(static_cast<double>(problem.k)) * problem.scale[row] * 2.0;
      found = std::max(found, std::fabs(got - want) / (std::fabs(want) / 1024.0 + size / 256.0));
    }
  }
  return found;
}

template <class F, bool kCache, bool kFusion>
double time(Problem<F>& problem, int split, std::vector<__half>* y) {
  using Weights = typename Choose<F, kCache, kFusion>::Type;
  auto const run = [&](cudaStream_t stream) {
    return launch_few<Weights, Shape>(problem.params, split, 32 * 1024, stream) == Status::kOk;
  };
  constexpr int kLaunches = 18, kReplays = 15;
  cudaStream_t stream;
  cudaGraph_t graph;
  cudaGraphExec_t executable;
  require(cudaStreamCreate(&stream) == cudaSuccess, "cudaStreamCreate");
  require(run(stream), "launch");
  require(cudaStreamSynchronize(stream) == cudaSuccess, "kernel");
  y->resize(static_cast<size_t>(problem.m) * problem.n);
  cudaMemcpy(y->data(), problem.params.y, y->size() * sizeof(__half), cudaMemcpyDeviceToHost);
  require(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal) == cudaSuccess, "capture");
  for (int i = 0; i < kLaunches; ++i) {
    problem.params.codes = problem.places[i % problem.kPlaces];
    require(run(stream), "captured launch");
  }
  require(cudaStreamEndCapture(stream, &graph) == cudaSuccess, "end of capture");
  require(cudaGraphInstantiate(&executable, graph, 0) == cudaSuccess, "graph");
  cudaEvent_t start, end;
  cudaEventCreate(&start), cudaEventCreate(&end);
  std::vector<float> times;
  for (int i = 0; i < kReplays; ++i) {
    cudaEventRecord(start, stream);
    cudaGraphLaunch(executable, stream);
    cudaEventRecord(end, stream);
    require(cudaEventSynchronize(end) == cudaSuccess, "replay");
    float ms = 0.0f;
    cudaEventElapsedTime(&ms, start, end);
    if (i >= 3) times.push_back(ms * 1000.0f / kLaunches);
  }
  cudaGraphExecDestroy(executable), cudaGraphDestroy(graph), cudaStreamDestroy(stream);
  cudaEventDestroy(start), cudaEventDestroy(end);
  std::sort(times.begin(), times.end());
  return times[times.size() / 2];
}

template <class F, bool kCache, bool kFusion>
int row(char const* format, Problem<F>& problem, std::vector<__half>* whole) {
  int failures = 0;
  for (int split = 2; split >= 1; --split) {
    std::vector<__half> y;
    double const us = time<F, kCache, kFusion>(problem, split, &y);
    double const error = worst(problem, y);
    if (whole[split].empty()) whole[split] = y;
    bool const same = std::memcmp(y.data(), whole[split].data(), y.size() * sizeof(__half)) == 0;
    failures += !(error <= 1.0) || !same;
    std::printf("{\"format\": \"%s\", \"M\": %d, \"N\": %d, \"K\": %d, \"cache\": %s, \"dataflow\": %s, \"fusion\": %s, "
                "\"us\": %.2f, \"worst\": %.3f, \"same\": %s}\n",
                format, problem.m, problem.n, problem.k, kCache ? "true" : "false", split > 1 ? "true" : "false",
                kFusion ? "true" : "false", us, error, same ? "true" : "false");
    std::fflush(stdout);
  }
  return failures;
}

template <class F>
int ablate(char const* format, int n, int k, int m) {
  Problem<F> problem(n, k, m);
  std::vector<__half> whole[3];
  return row<F, true, true>(format, problem, whole) + row<F, false, true>(format, problem, whole) +
         row<F, true, false>(format, problem, whole) + row<F, false, false>(format, problem, whole);
}

}  // namespace

int main(int count, char** arguments) {
  bool const small = count > 1 && std::strcmp(arguments[1], "small") == 0;  // for compute-sanitizer
  int failures = 0;
  for (int m : {1, 8}) {
    for (int size : small ? std::vector<int>{512} : std::vector<int>{4096, 8192}) {
      failures += ablate<Gptvq2>("gptvq2", size, size, m);
      failures += ablate<Aqlm2>("aqlm2", size, size, m);
    }
  }
  std::printf("{\"failures\": %d}\n", failures);
  return failures == 0 ? 0 : 1;
}
