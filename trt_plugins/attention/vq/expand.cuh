// Keys and values of a cache of 8-bit codes, written out as T.
#pragma once

#include <cstdint>
#include <cstring>

#include "attention/expanded.cuh"
#include "attention/vq/args.cuh"

namespace graphopt::attention {

constexpr int kVqExpandThreads = 512;
constexpr int kVqExpandTokens = 512;  // of a block

/// Tokens of one head's keys or values, a block's share.
template <class T, int kVector>
struct VqPiece {
  int32_t groups;
  int32_t tokens;        // maybe none
  T const* book;         // [groups, 256, kVector]
  uint8_t const* codes;  // [tokens, groups]
  T* target;             // [tokens, groups, kVector]

  /// Grid: (pieces of kVqExpandTokens tokens of the slice's sequences and heads; keys, values). `all`: those of new
  /// tokens, too.
  __device__ __forceinline__ VqPiece(VqArgs<T> const& args, Slice const& slice, bool all, T* k, T* v) {
    AttentionArgs<T> const& cache = args.cache;
    uint32_t const pieces = static_cast<uint32_t>((cache.capacity + kVqExpandTokens - 1) / kVqExpandTokens);
    int32_t const first = static_cast<int32_t>(blockIdx.x % pieces) * kVqExpandTokens;
    int32_t const pair = static_cast<int32_t>(blockIdx.x / pieces);
    int32_t const b = slice.b + pair / slice.kv_heads, h = slice.h + pair % slice.kv_heads;
    int32_t const past = past_rows(cache.start, b, cache.capacity);
    int32_t const length = all ? visible_rows(past, cache.seq - 1, cache.capacity) : past;
    bool const value = blockIdx.y == 1;
    int64_t const row = (int64_t{b} * cache.kv_heads + h) * cache.capacity + first;
    groups = cache.head_size / kVector;
    tokens = min(kVqExpandTokens, length - first);
    book = (value ? args.codebook_v : args.codebook_k) + int64_t{h} * groups * kEntries * kVector;
    codes = static_cast<uint8_t const*>(value ? cache.v : cache.k) + row * groups;
    target = (value ? v : k) + (int64_t{pair} * cache.capacity + first) * cache.head_size;
  }
};

/// One element at a time; k and v are [slice.batch, slice.kv_heads, C, D]. See VqPiece for the grid.
template <class T, int kVector>
__global__ void __launch_bounds__(kVqExpandThreads)
    attention_vq_expand(VqArgs<T> const args, Slice const slice, bool all, T* __restrict__ k, T* __restrict__ v) {
  VqPiece<T, kVector> const piece(args, slice, all, k, v);
  for (int32_t item = static_cast<int32_t>(threadIdx.x); item < piece.tokens * piece.groups; item += kVqExpandThreads) {
    int32_t const entry = item % piece.groups * kEntries + __ldg(piece.codes + item);
#pragma unroll
    for (int e = 0; e < kVector; ++e) piece.target[item * kVector + e] = piece.book[int64_t{entry} * kVector + e];
  }
}

/// Shared memory of attention_vq_expand_staged.
constexpr size_t staged_book_bytes(int64_t head_size, size_t element) {
  return static_cast<size_t>(kEntries * head_size) * element;
}

/// The same where codebooks are aligned to 16 bytes, and those of a head, staged_book_bytes, fit into shared memory:
/// there groups of channels are neighbours, so that lanes, which have a group each, look up in different banks. At most
/// kVqExpandThreads groups.
template <class T, int kVector>
__global__ void __launch_bounds__(kVqExpandThreads)
    attention_vq_expand_staged(VqArgs<T> const args, Slice const slice, bool all, T* __restrict__ k,
                               T* __restrict__ v) {
  constexpr int kWords = kVector * static_cast<int>(sizeof(T)) / 4, kFlight = 8;
  extern __shared__ __align__(16) uint32_t words[];  // [256, kWords, groups]
  VqPiece<T, kVector> const piece(args, slice, all, k, v);
  if (piece.tokens <= 0) return;
  int32_t const rows = kVqExpandThreads / piece.groups;  // tokens at a time
  int32_t const row = static_cast<int32_t>(threadIdx.x) / piece.groups;
  int32_t const group = static_cast<int32_t>(threadIdx.x) % piece.groups;
  if (row < rows) {
    uint4 const* const book = reinterpret_cast<uint4 const*>(piece.book) + group * (kEntries * kWords / 4);
    for (int at = row; at < kEntries * kWords / 4; at += rows) {
      uint4 const four = __ldg(book + at);
      uint32_t* const place = words + at * 4 * piece.groups + group;
      place[0] = four.x, place[piece.groups] = four.y;
      place[2 * piece.groups] = four.z, place[3 * piece.groups] = four.w;
    }
  }
  __syncthreads();
  if (row >= rows) return;
  for (int32_t first = row; first < piece.tokens; first += kFlight * rows) {
    uint32_t code[kFlight];
#pragma unroll
    for (int i = 0; i < kFlight; ++i) {
      int32_t const token = min(first + i * rows, piece.tokens - 1);
      code[i] = __ldg(piece.codes + token * piece.groups + group);
    }
#pragma unroll
    for (int i = 0; i < kFlight; ++i) {
      int32_t const token = first + i * rows;
      if (token >= piece.tokens) break;
      uint32_t found[kWords];
#pragma unroll
      for (int w = 0; w < kWords; ++w) found[w] = words[(code[i] * kWords + w) * piece.groups + group];
      uint32_t* const place = reinterpret_cast<uint32_t*>(piece.target) + (token * piece.groups + group) * kWords;
      if constexpr (kWords == 1) {
        *place = found[0];
      } else if constexpr (kWords == 2) {
        *reinterpret_cast<uint2*>(place) = make_uint2(found[0], found[1]);
      } else {
#pragma unroll
        for (int w = 0; w < kWords; w += 4) {
          *reinterpret_cast<uint4*>(place + w) = make_uint4(found[w], found[w + 1], found[w + 2], found[w + 3]);
        }
      }
    }
  }
}

}  // namespace graphopt::attention
