// Many tokens on Hopper: rows of W are expanded to T in the workspace, a slab of them at a time, and multiplied by a
// plain GEMM. Where two have room, they take turns, so that multiprocessors that have no tile of the GEMM, or no more,
// expand the next one. Host code only.
#pragma once

#include <cstdint>

#include "vq/linear/plan.h"

namespace graphopt::vq {

constexpr int64_t kSlabsBytes = int64_t{128} << 20;  // of W in the workspace at most, in one slab or two
constexpr int64_t kSlabStep = 256;                 // rows of W: of the GEMM's largest tile

/// How many rows of W a slab may have: a multiple of kSlabStep, or all; 0 if so many are too large.
int64_t most_slab_rows(LinearParams const& params);

/// Whether sizes and T are such that W can be expanded.
bool has_slabs(LinearParams const& params);

/// Slabs of so many rows that take turns: 2 where they are not all of W and have room, else 1.
int slab_turns(LinearParams const& params, int64_t rows);

/// Bytes of a slab of so many rows, also with the factors behind it, and of as many as take turns.
int64_t slab_bytes(LinearParams const& params, int64_t rows);
int64_t slab_pitch(LinearParams const& params, int64_t rows);
int64_t expanded_workspace_bytes(LinearParams const& params, int64_t rows);

/// The same of addresses and tiles, too. Looks at neither the device nor the number of tokens.
bool can_expand(LinearParams const& params);

/// Rows of W that are expanded, and where to.
struct Slab {
  int64_t first_row, rows;
  void* w;         // [rows, K] T
  float* factors;  // [rows], of the lattice: scale * ratios[0]
  bool beside;     // the kernel before, which has waited for all that use this slab, may run until this one ends
};

constexpr int kExpandColumns = 8;      // of a thread at a time: a store
constexpr int kExpandRows = 4;         // the same of rows, at most, of which all others are a part
constexpr int kExpandThreads = 1024;   // of a multiprocessor, in one or more blocks
constexpr int kUncachedThreads = 256;  // of a block where codebooks are not in shared memory
constexpr int kUncachedBlocks = 3;     // of a multiprocessor there, for which there are more registers

constexpr int64_t kLatticeTableBytes = 64 * 1024;

/// How the kernel that expands is launched.
struct ExpandShape {
  bool shared;  // codebooks are in shared memory
  int copies;   // of an entry there
  int threads;
  int per_multiprocessor;  // blocks
  int64_t shared_bytes;
};

ExpandShape expand_shape(LinearParams const& params, int64_t shared_bytes);

/// Estimated microseconds to expand so many rows of W, of slabs of `slab_rows`.
double expand_time(LinearParams const& params, Device const& device, int64_t rows, int64_t slab_rows);

/// Estimated microseconds of the whole linear, in slabs of so many rows.
double expanded_time(LinearParams const& params, Device const& device, int64_t slab_rows);

/// The size of slabs that is estimated to take the least time, of the fewest slabs and a few more.
int64_t best_slab_rows(LinearParams const& params, Device const& device);

}  // namespace graphopt::vq
