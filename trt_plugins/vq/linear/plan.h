// Which kernel runs for a linear, and its numbers: the one whose estimated time is least. Host code only.
#pragma once

#include <cstdint>

#include "vq/linear/params.h"

namespace graphopt::vq {

/// Formats that are compiled ahead of time.
enum class Preset : int32_t { kGptvq2, kAqlm2, kAqlm3, kQuip4, kNone };
constexpr int kPresets = 4;

enum class LinearKernel : int32_t {
  kFew8,    // codebooks in shared memory, decoded into operands of mma.sync; K split over a cluster; blocks of 8 tokens
  kFew16,   // of 16 tokens
  kRows8,   // the same in one block for each multiprocessor, with all of X in shared memory
  kTable,   // one token: products with entries are looked up instead of entries
  kTile64,  // decoded into operands of wgmma; blocks of 64 tokens
  kTile128,   // of 128 tokens
  kTile256,   // of 256 tokens
  kExpanded,  // W in the workspace in T, a slab of its rows at a time; any format and number of tokens
  kGeneric,   // any format, codebooks in memory
};
constexpr int kDecodingKernels = 7;  // decode as they multiply
constexpr int kFastKernels = 8;

// X in shared memory, of the kernels of few tokens: at most so many bytes at a time, at least so many of each token.
constexpr int kMostPanelBytes = 32 * 1024;
constexpr int kStepBytes[kPresets] = {1024, 1024, 2048, 512};

constexpr char const* kPresetNames[] = {"vq-gptvq2", "vq-aqlm2", "vq-aqlm3", "vq-quip4", "none"};
constexpr char const* kKernelNames[] = {"few8",    "few16",   "rows8",    "table",  "tile64",
                                        "tile128", "tile256", "expanded", "generic"};

/// Whether a kernel is of Hopper's own instructions. The table kernel of vq-aqlm3 is.
constexpr bool is_sm90_kernel(Preset preset, LinearKernel kernel) {
  if (kernel == LinearKernel::kTable) return preset == Preset::kAqlm3;
  return kernel >= LinearKernel::kTile64 && kernel != LinearKernel::kGeneric;
}

struct Device {
  int multiprocessors;
  bool sm90;             // clusters, wgmma
  int64_t shared_bytes;  // that a block can have
};

/// What was chosen, and the numbers that it was chosen from.
struct Plan {
  LinearKernel kernel;
  Preset preset;
  int split;                        // blocks of a cluster that share K
  int panel_bytes;                  // of X in shared memory, twice, for the kernels of few tokens
  int64_t slab_rows;                // of W that are in the workspace at a time, where it is expanded
  double us;                        // estimated time of the kernel
  double candidates[kFastKernels];  // estimated times; negative where a kernel cannot be used
};

/// Whether the kernels that load vectors of 16 bytes take these operands.
bool takes_vectors(LinearParams const& params);

/// Which preset has this format; kNone if no kernel but the generic one takes these operands.
Preset preset_of(LinearParams const& params);

Plan make_plan(LinearParams const& params, Device const& device);

/// More tokens than these take W expanded rather than a generated kernel, whose blocks of 16 tokens take turns.
int64_t most_generated(LinearParams const& params, Device const& device);

/// Bytes of X that a kernel has in shared memory, twice: what codebooks leave; 0 of kernels that are not of few tokens.
int panel_bytes(Device const& device, Preset preset, LinearKernel kernel);

/// Write the plan as JSON, at most `size` bytes; return the bytes of the whole text without its final zero.
int64_t describe_plan(LinearParams const& params, Device const& device, char* text, int64_t size);

}  // namespace graphopt::vq
