// PTX instructions as functions: what assembly in device code becomes (tests/support/emulation.py), outputs first, then
// inputs. https://docs.nvidia.com/cuda/parallel-thread-execution
#pragma once

#include <array>
#include <deque>
#include <map>

#include "device.h"

namespace graphopt::emulate {

/// Shared memory of the running block; addresses count from here.
inline char* shared = nullptr;

/// Copies of one thread that are on their way. They land when they are waited for; until then, targets hold rubbish.
struct Copies {
  struct Copy {
    uint32_t to;
    char const* from;
    uint32_t bytes;
  };
  std::deque<std::vector<Copy>> groups;
  std::vector<Copy> open;
};
inline std::map<unsigned, Copies> copies;

[[noreturn]] inline void missing(char const* name) { throw std::runtime_error(name); }

template <class To, class From>
To bits_of(From const& from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof(to));
  return to;
}

template <class T>
T element(uint32_t word, int half) {
  return bits_of<T>(static_cast<uint16_t>(word >> 16 * half));
}

template <class T>
uint32_t joined(T low, T high) {
  return bits_of<uint16_t>(low) | uint32_t{bits_of<uint16_t>(high)} << 16;
}

inline void prmt_b32(uint32_t& bytes, uint32_t low, uint32_t high, uint32_t select) {
  uint64_t const all = uint64_t{high} << 32 | low;
  bytes = 0;
  for (int i = 0; i < 4; ++i) {
    uint32_t const nibble = select >> 4 * i & 15u;
    uint32_t byte = static_cast<uint32_t>(all >> 8 * (nibble & 7u)) & 255u;
    if (nibble >= 8) byte = byte >= 128 ? 255u : 0u;
    bytes |= byte << 8 * i;
  }
}

inline void mul_wide_u32(uint64_t& product, uint32_t a, uint32_t b) { product = uint64_t{a} * b; }
inline void ex2_approx_ftz_f32(float& y, float x) { y = std::exp2(x); }
inline void cvt_rn_f16x2_f32(uint32_t& word, float high, float low) {
  word = joined(__float2half_rn(low), __float2half_rn(high));
}
inline void cvt_rn_bf16x2_f32(uint32_t& word, float high, float low) {
  word = joined(__float2bfloat16_rn(low), __float2bfloat16_rn(high));
}
inline void rcp_approx_ftz_f32(float& y, float x) { y = 1.0f / x; }
inline void add_rn_f16x2(uint32_t& sum, uint32_t a, uint32_t b) {
  auto const of = [&](int half) {
    return __float2half_rn(__half2float(element<__half>(a, half)) + __half2float(element<__half>(b, half)));
  };
  sum = joined(of(0), of(1));
}
inline void fma_rn_bf16x2(uint32_t& sum, uint32_t a, uint32_t b, uint32_t c) {
  auto const value = [](uint32_t word, int half) { return __bfloat162float(element<__nv_bfloat16>(word, half)); };
  auto const of = [&](int half) {
    return __float2bfloat16_rn(std::fma(value(a, half), value(b, half), value(c, half)));
  };
  sum = joined(of(0), of(1));
}
inline void sub_f16x2(uint32_t& difference, uint32_t a, uint32_t b) {
  auto const of = [&](int half) {
    return __float2half_rn(__half2float(element<__half>(a, half)) - __half2float(element<__half>(b, half)));
  };
  difference = joined(of(0), of(1));
}

inline void atom_add_acq_rel_gpu_global_s32(int32_t& before, int32_t* pointer, int32_t value) {
  before = *pointer;
  *pointer += value;
}
inline void ld_global_nc_v4_u32(uint32_t& a, uint32_t& b, uint32_t& c, uint32_t& d, void const* from) {
  if (reinterpret_cast<uintptr_t>(from) % 16 != 0) throw std::runtime_error("a vector is not aligned");
  uint32_t* const words[] = {&a, &b, &c, &d};
  for (int i = 0; i < 4; ++i) std::memcpy(words[i], static_cast<char const*>(from) + 4 * i, 4);
}
inline void ld_global_nc_L1_no_allocate_v4_u32(uint32_t& a, uint32_t& b, uint32_t& c, uint32_t& d, void const* from) {
  ld_global_nc_v4_u32(a, b, c, d, from);
}
inline void ld_shared_u32(uint32_t& word, uint32_t address) { std::memcpy(&word, shared + address, 4); }
inline void ld_shared_v4_u32(uint32_t& a, uint32_t& b, uint32_t& c, uint32_t& d, uint32_t address) {
  uint32_t* const words[] = {&a, &b, &c, &d};
  for (int i = 0; i < 4; ++i) std::memcpy(words[i], shared + address + 4 * i, 4);
}

inline void cp_async_cg_shared_global(uint32_t to, void const* from, int bytes) {
  if (to % 16 != 0 || reinterpret_cast<uintptr_t>(from) % 16 != 0) throw std::runtime_error("a copy is not aligned");
  std::memset(shared + to, 0xee, 16);
  copies[thread_index.x].open.push_back({to, static_cast<char const*>(from), static_cast<uint32_t>(bytes)});
}
inline void cp_async_commit_group() {
  Copies& own = copies[thread_index.x];
  own.groups.push_back(std::move(own.open));
  own.open.clear();
}
inline void cp_async_wait_group(size_t pending) {
  for (Copies& own = copies[thread_index.x]; own.groups.size() > pending; own.groups.pop_front()) {
    for (auto const& copy : own.groups.front()) {
      std::memset(shared + copy.to, 0, 16);
      if (copy.bytes > 0) std::memcpy(shared + copy.to, copy.from, copy.bytes);
    }
  }
}

/// Matrices of 8 rows of 16 bytes: lane l has words l % 4 of rows l / 4, or, transposed, of columns.
template <bool kTransposed>
void load_matrices(std::array<uint32_t*, 4> words, uint32_t address) {
  show(address, [&](auto const& shown) {
    for (int matrix = 0; matrix < 4; ++matrix) {
      auto const at = [&](int row, int column) {
        uint16_t value;
        std::memcpy(&value, shared + shown(matrix * 8 + row) + column * 2, 2);
        return value;
      };
      int const row = lane() / 4, column = lane() % 4 * 2;
      *words[matrix] = kTransposed ? at(column, row) | uint32_t{at(column + 1, row)} << 16
                                   : at(row, column) | uint32_t{at(row, column + 1)} << 16;
    }
  });
}
inline void ldmatrix_sync_aligned_m8n8_x4_shared_b16(uint32_t& a, uint32_t& b, uint32_t& c, uint32_t& d, uint32_t at) {
  load_matrices<false>({&a, &b, &c, &d}, at);
}
inline void ldmatrix_sync_aligned_m8n8_x4_trans_shared_b16(uint32_t& a, uint32_t& b, uint32_t& c, uint32_t& d,
                                                           uint32_t at) {
  load_matrices<true>({&a, &b, &c, &d}, at);
}
inline void movmatrix_sync_aligned_m8n8_trans_b16(uint32_t& column, uint32_t row) {
  show(row, [&](auto const& shown) {
    auto const at = [&](int r, int c) { return element<uint16_t>(shown(r * 4 + c / 2), c % 2); };
    int const r = lane() % 4 * 2, c = lane() / 4;
    column = at(r, c) | uint32_t{at(r + 1, c)} << 16;
  });
}

/// c += a b over 16 elements of T.
template <class T>
void multiply(std::array<float*, 4> c, std::array<uint32_t, 6> const& ab) {
  show(ab, [&](auto const& shown) {
    int const g = lane() / 4, t = lane() % 4;
    for (int i = 0; i < 4; ++i) {
      int const row = g + i / 2 * 8, column = 2 * t + i % 2;
      float sum = 0.0f;
      for (int k = 0; k < 16; ++k) {
        uint32_t const a = shown(row % 8 * 4 + k % 8 / 2)[static_cast<size_t>(row / 8 + k / 8 * 2)];
        uint32_t const b = shown(column * 4 + k % 8 / 2)[static_cast<size_t>(4 + k / 8)];
        sum += static_cast<float>(element<T>(a, k % 2)) * static_cast<float>(element<T>(b, k % 2));
      }
      *c[static_cast<size_t>(i)] += sum;
    }
  });
}
inline void mma_sync_aligned_m16n8k16_row_col_f32_f16_f16_f32(float& c0, float& c1, float& c2, float& c3, uint32_t a0,
                                                              uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0,
                                                              uint32_t b1) {
  multiply<__half>({&c0, &c1, &c2, &c3}, {a0, a1, a2, a3, b0, b1});
}
inline void mma_sync_aligned_m16n8k16_row_col_f32_bf16_bf16_f32(float& c0, float& c1, float& c2, float& c3, uint32_t a0,
                                                                uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0,
                                                                uint32_t b1) {
  multiply<__nv_bfloat16>({&c0, &c1, &c2, &c3}, {a0, a1, a2, a3, b0, b1});
}
inline void mma_sync_aligned_m16n8k8_row_col_f32_f16_f16_f32(float& c0, float& c1, float& c2, float& c3, uint32_t a0,
                                                             uint32_t a1, uint32_t b) {
  multiply<__half>({&c0, &c1, &c2, &c3}, {a0, a1, 0, 0, b, 0});
}
inline void mma_sync_aligned_m16n8k8_row_col_f32_bf16_bf16_f32(float& c0, float& c1, float& c2, float& c3, uint32_t a0,
                                                               uint32_t a1, uint32_t b) {
  multiply<__nv_bfloat16>({&c0, &c1, &c2, &c3}, {a0, a1, 0, 0, b, 0});
}

}  // namespace graphopt::emulate

inline size_t __cvta_generic_to_shared(void const* pointer) {
  return static_cast<size_t>(static_cast<char const*>(pointer) - graphopt::emulate::shared);
}
