// What CUDA gives to a kernel, on the host: every thread of a block is a fiber that runs until it waits for its warp or
// its block. Device code compiled with this, and with assembly replaced by instructions.h, runs as it is, in an order
// of threads that a seed decides. It sees wrong indices, layouts, masks and barriers; what blocks or memory do at the
// same time it does not.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <exception>
#include <functional>
#include <numeric>
#include <random>
#include <stdexcept>
#include <utility>
#include <vector>

#undef __launch_bounds__
#define __launch_bounds__(...)
#undef __shared__
#define __shared__
#undef __align__
#define __align__(bytes)

namespace graphopt::emulate {

struct Index {
  unsigned x = 0, y = 0, z = 0;
};

/// Of the thread that runs.
inline Index thread_index, block_index, block_size, grid_size;

constexpr int kLanes = 32, kMostWarps = 32, kLaneBytes = 64;

/// A block whose threads take turns.
class Block {
 public:
  Block(int threads, uint32_t seed, std::function<void()> body)
      : body_(std::move(body)), fibers_(static_cast<size_t>(threads)), order_(fibers_.size()), random_(seed) {
    std::iota(order_.begin(), order_.end(), size_t{0});
  }

  /// Throws std::runtime_error where threads wait for others that never come.
  void run() {
    running_ = this;
    for (Fiber& fiber : fibers_) {
      fiber.stack.resize(kStackBytes);
      getcontext(&fiber.context);
      fiber.context.uc_stack.ss_sp = fiber.stack.data();
      fiber.context.uc_stack.ss_size = fiber.stack.size();
      fiber.context.uc_link = &scheduler_;
      makecontext(&fiber.context, [] { running_->enter(); }, 0);
    }
    while (round()) {
    }
  }

  static Block& running() { return *running_; }

  void wait_for_warp() { wait(Wait::kWarp, warps_[warp()], kLanes); }
  void wait_for_block() { wait(Wait::kBlock, block_, static_cast<int>(fibers_.size())); }

  /// Bytes that lanes of the running warp show each other.
  char* shown(int lane) { return shown_[warp()][lane]; }

 private:
  static constexpr size_t kStackBytes = 64 << 10;
  enum class Wait { kNothing, kWarp, kBlock };

  struct Barrier {
    int arrived = 0;
    int64_t passed = 0;  // how often
  };

  struct Fiber {
    ucontext_t context{};
    std::vector<char> stack;
    Wait wait = Wait::kNothing;
    int64_t passed = 0;
    bool done = false;
  };

  size_t warp() const { return current_ / kLanes; }

  void enter() {
    try {
      body_();
    } catch (...) {
      error_ = std::current_exception();
    }
    fibers_[current_].done = true;
  }

  void wait(Wait what, Barrier& barrier, int all) {
    if (++barrier.arrived == all) {
      barrier.arrived = 0;
      ++barrier.passed;
      return;
    }
    Fiber& fiber = fibers_[current_];
    fiber.wait = what;
    fiber.passed = barrier.passed;
    swapcontext(&fiber.context, &scheduler_);
  }

  bool waits(size_t index) const {
    Fiber const& fiber = fibers_[index];
    if (fiber.wait == Wait::kNothing) return false;
    return (fiber.wait == Wait::kWarp ? warps_[index / kLanes] : block_).passed == fiber.passed;
  }

  /// Let every thread that can run do so once. Returns whether any is left.
  bool round() {
    bool left = false, ran = false;
    std::shuffle(order_.begin(), order_.end(), random_);
    for (size_t const index : order_) {
      Fiber& fiber = fibers_[index];
      if (fiber.done) continue;
      left = true;
      if (waits(index)) continue;
      ran = true;
      fiber.wait = Wait::kNothing;
      current_ = index;
      unsigned const width = std::max(block_size.x, 1u);
      thread_index = {static_cast<unsigned>(index) % width, static_cast<unsigned>(index) / width, 0};
      swapcontext(&scheduler_, &fiber.context);
      if (error_) std::rethrow_exception(error_);
    }
    if (left && !ran) throw std::runtime_error("threads wait at a barrier that others never reach");
    return left;
  }

  inline static Block* running_ = nullptr;
  std::function<void()> body_;
  std::vector<Fiber> fibers_;
  std::vector<size_t> order_;
  std::mt19937 random_;
  ucontext_t scheduler_{};
  std::exception_ptr error_;
  size_t current_ = 0;
  Barrier block_, warps_[kMostWarps];
  alignas(16) char shown_[kMostWarps][kLanes][kLaneBytes] = {};
};

inline int lane() { return static_cast<int>(thread_index.x) % kLanes; }

/// What lane l shows, for each l in `from`; all lanes of the warp call it.
template <class T, class Visit>
void show(T const& own, Visit const& visit) {
  static_assert(sizeof(T) <= kLaneBytes);
  Block& block = Block::running();
  std::memcpy(block.shown(lane()), &own, sizeof(T));
  block.wait_for_warp();
  visit([&](int l) {
    T value;
    std::memcpy(&value, block.shown(l % kLanes), sizeof(T));
    return value;
  });
  block.wait_for_warp();
}

template <class T>
T shuffled(T own, int from) {
  T found{};
  show(own, [&](auto const& shown) { found = shown(from); });
  return found;
}

template <class T, class Fold>
T folded(T own, Fold const& fold) {
  T all{};
  show(own, [&](auto const& shown) {
    all = shown(0);
    for (int l = 1; l < kLanes; ++l) all = fold(all, shown(l));
  });
  return all;
}

}  // namespace graphopt::emulate

#define threadIdx graphopt::emulate::thread_index
#define blockIdx graphopt::emulate::block_index
#define blockDim graphopt::emulate::block_size
#define gridDim graphopt::emulate::grid_size

using std::isnan;
using std::max;
using std::min;

inline void __syncthreads() { graphopt::emulate::Block::running().wait_for_block(); }
inline void __syncwarp() { graphopt::emulate::Block::running().wait_for_warp(); }

template <class T>
T __shfl_sync(unsigned, T value, int lane) {
  return graphopt::emulate::shuffled(value, lane);
}
template <class T>
T __shfl_xor_sync(unsigned, T value, int mask) {
  return graphopt::emulate::shuffled(value, graphopt::emulate::lane() ^ mask);
}
template <class T>
T __shfl_up_sync(unsigned, T value, int distance) {
  int const lane = graphopt::emulate::lane();
  return graphopt::emulate::shuffled(value, lane >= distance ? lane - distance : lane);
}
inline int __reduce_add_sync(unsigned, int value) {
  return graphopt::emulate::folded(value, [](int a, int b) { return a + b; });
}
inline int __reduce_max_sync(unsigned, int value) {
  return graphopt::emulate::folded(value, [](int a, int b) { return std::max(a, b); });
}
inline int __any_sync(unsigned, int value) {
  return graphopt::emulate::folded(value, [](int a, int b) { return a != 0 || b != 0 ? 1 : 0; });
}
inline unsigned __ballot_sync(unsigned, int value) {
  unsigned const own = value != 0 ? 1u << graphopt::emulate::lane() : 0u;
  return graphopt::emulate::folded(own, [](unsigned a, unsigned b) { return a | b; });
}

template <class T>
T __ldg(T const* pointer) {
  return *pointer;
}
template <class T>
T __ldcg(T const* pointer) {
  return *pointer;
}

// As they stand: programs are compiled without contraction of products and sums.
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fdividef(float a, float b) { return a / b; }
inline uint32_t __float_as_uint(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof(bits));
  return bits;
}
inline float __uint_as_float(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, sizeof(x));
  return x;
}
inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }
inline int __ffs(int bits) { return __builtin_ffs(bits); }
inline uint32_t __dp4a(uint32_t a, uint32_t b, uint32_t sum) {
  for (int byte = 0; byte < 32; byte += 8) sum += (a >> byte & 255u) * (b >> byte & 255u);
  return sum;
}
