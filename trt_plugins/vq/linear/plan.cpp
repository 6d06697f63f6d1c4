#include "vq/linear/plan.h"

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <string>

#include "vq/linear/expand.h"

namespace graphopt::vq {
namespace {

/// One format: VQ<v, b, r>, and whether codebooks belong to tiles of the weight.
struct Format {
  int32_t vector, bits, residuals;
  bool tiled, lattice;
};

constexpr Format kFormats[kPresets] = {{4, 8, 1, true, false},    // gptvq2
                                       {8, 8, 2, false, false},   // aqlm2
                                       {8, 12, 2, false, false},  // aqlm3
                                       {8, 16, 2, false, true}};  // quip4

/// A kernel's block: tokens and rows of W.
struct Block {
  int64_t tokens, rows;
};

constexpr Block kBlocks[kDecodingKernels] = {{8, 128}, {16, 128}, {8, 16}, {1, 128}, {64, 128}, {128, 128}, {256, 128}};

/// Microseconds on an H100: a launch, and 1024 columns of 128 rows. Fitted to benchmarks/results/h100/vq.json.
struct Cost {
  double start, columns;
};

constexpr Cost kCosts[kPresets][kDecodingKernels] = {
    // few8, few16, rows8, table, tile64, tile128, tile256; 0: there is no such kernel
    {{6.0, 3.75}, {9.3, 5.3}, {}, {4.5, 2.0}, {4.5, 6.8}, {4.5, 11.8}, {4.5, 13.2}},
    {{}, {9.0, 4.75}, {5.3, 3.8}, {4.0, 1.6}, {4.5, 5.3}, {4.5, 8.5}, {4.5, 14.3}},
    {{10.7, 5.8}, {15.3, 8.5}, {10.9, 7.3}, {8.0, 5.0}, {4.5, 11.3}, {4.5, 15.8}, {4.5, 19.3}},
    {{}, {10.8, 7.1}, {6.6, 5.6}, {4.0, 3.5}, {4.5, 7.0}, {4.5, 11.4}, {4.5, 17.0}}};

constexpr double kBytesPerMicrosecond = 3.0e6;  // of codes from memory
constexpr double kPower = 1.15;                 // times slower than one round alone

/// Of the table kernel.
struct Table {
  int64_t columns;       // of a slice
  int64_t shared_bytes;  // with what comes before a multiple of 64 KB
  int product_bytes;
  int64_t entries;  // products of a group of columns with them
  int groups;
};

constexpr int64_t kKilobyte = 1024;
constexpr Table kTables[kPresets] = {{256, 192 * kKilobyte, 4, 256, 64},
                                     {256, 128 * kKilobyte, 4, 512, 32},
                                     {64, 128 * kKilobyte + 4 * (24 * kKilobyte + 16), 2, 8192, 8},
                                     {128, 216 * kKilobyte, 4, 1216, 16}};

/// What is in shared memory to be looked up.
struct Cache {
  int64_t entries;  // of all residuals: the bound of the codebook cache
  int entry_bytes;
  int copies;  // of an entry, against bank conflicts
  int tables;  // at a time: of the tile that is worked on and of the next, for each group of warps
};

Cache cache_of(Plan const& plan) {
  constexpr int kCopies[kPresets] = {16, 8, 1, 8};
  Format const& f = kFormats[static_cast<int>(plan.preset)];
  if (plan.kernel == LinearKernel::kTable) {
    Table const& table = kTables[static_cast<int>(plan.preset)];
    return {table.entries, table.product_bytes, table.groups, f.tiled ? 2 : 1};
  }
  int const groups = plan.kernel == LinearKernel::kFew8 || plan.kernel == LinearKernel::kFew16 ? 2 : 1;
  // Of the lattice, rows of a table and as many bytes of signs.
  return {f.lattice ? 256 : int64_t{f.residuals} << f.bits, (f.lattice ? 4 : 2) * f.vector,
          kCopies[static_cast<int>(plan.preset)], f.tiled ? 2 * groups : 1};
}

/// The same where W is expanded.
Cache cache_of_expansion(LinearParams const& p, Device const& device) {
  ExpandShape const shape = expand_shape(p, device.shared_bytes);
  int64_t const entries = p.lattice() ? 256 : int64_t{p.residuals} << p.bits;
  return {shape.shared ? entries : 0, (p.lattice() ? 4 : 2) * p.vector, shape.copies, 1};
}

/// The table kernel's numbers for this format; null if it has none.
Table const* table_of(LinearParams const& p) {
  for (int i = 0; i < kPresets; ++i) {
    Format const& f = kFormats[i];
    if (f.vector == p.vector && f.bits == p.bits && f.residuals == p.residuals) return &kTables[i];
  }
  return nullptr;
}

/// From how many tokens on W may be expanded. It depends on what is known when memory is allocated: the format of a
/// preset has kernels of its own, unless its tiles are odd.
int64_t least_expanded(LinearParams const& p) {
  constexpr int64_t kOfPresets = 257, kOfOthers = 17;
  return table_of(p) != nullptr ? kOfPresets : kOfOthers;
}

bool is_few(int kernel) { return kernel <= static_cast<int>(LinearKernel::kFew16); }

bool is_tile(int kernel) {
  return kernel >= static_cast<int>(LinearKernel::kTile64) && kernel <= static_cast<int>(LinearKernel::kTile256);
}

/// Shared memory of the rows8 kernel: codebooks, X and sums.
int64_t rows_shared_bytes(LinearParams const& p, int preset) {
  constexpr int64_t kColumns = 512,
                    kSums = 2 * 16 * 8 * 16 * 4;  // columns are rounded up to chunks of at most kColumns
  int64_t const columns = (p.k + kColumns - 1) / kColumns * kColumns, tokens = std::min<int64_t>(p.m, 8);
  Cache const cache = cache_of({LinearKernel::kRows8, static_cast<Preset>(preset), 1, 0, 0, 0.0, {}});
  constexpr int64_t kQueueBytes[kPresets] = {0, 3 * 32 * 256, 0, 3 * 32 * 512};  // of codes on their way
  int64_t const tables = cache.entries * cache.entry_bytes * cache.copies + kQueueBytes[preset];
  return tables + 2 * tokens * columns + kSums + (kFormats[preset].lattice && tokens == 1 ? columns / 2 : 0);
}

/// Whether `kernel` takes these operands on this device.
bool fits(LinearParams const& p, Device const& device, int preset, int kernel) {
  constexpr size_t kAlignment = 16;
  if (kCosts[preset][kernel].columns == 0.0) return false;
  if (is_sm90_kernel(static_cast<Preset>(preset), static_cast<LinearKernel>(kernel)) && !device.sm90) return false;
  if (kernel == static_cast<int>(LinearKernel::kTable)) {
    constexpr int64_t kRows = 256;  // that share a table where codebooks are those of tiles
    return p.m == 1 && p.workspace != nullptr && is_aligned(p.workspace, kAlignment) &&
           kTables[preset].shared_bytes <= device.shared_bytes && (p.tile_rows >= p.n || p.tile_rows % kRows == 0);
  }
  if (kernel == static_cast<int>(LinearKernel::kRows8)) {
    // More tokens would make a second round of blocks.
    return p.m <= kBlocks[kernel].tokens && rows_shared_bytes(p, preset) <= device.shared_bytes;
  }
  if (is_few(kernel)) {
    int64_t const tokens = std::min(p.m, kBlocks[kernel].tokens);
    int const bytes = panel_bytes(device, static_cast<Preset>(preset), static_cast<LinearKernel>(kernel));
    return bytes >= tokens * kStepBytes[preset];
  }
  if (is_tile(kernel)) {
    return p.n % 8 == 0 && is_aligned(p.y, kAlignment);
  }
  return true;
}

/// Estimated time, and the split of K that it is for.
double estimate(LinearParams const& p, Device const& device, int preset, int kernel, int split) {
  Block const block = kBlocks[kernel];
  Cost const cost = kCosts[preset][kernel];
  int64_t const blocks = (p.n + block.rows - 1) / block.rows * ((p.m + block.tokens - 1) / block.tokens);
  double const bytes = static_cast<double>(p.n) * static_cast<double>(row_bytes(p.k, p.vector, p.bits, p.residuals));
  double const passes = is_tile(kernel) ? 1.0 : static_cast<double>((p.m + block.tokens - 1) / block.tokens);
  double const memory = passes * bytes / kBytesPerMicrosecond;
  double const columns = static_cast<double>(p.k) / 1024.0;
  double rounds = static_cast<double>((blocks * split + device.multiprocessors - 1) / device.multiprocessors);
  // Of more than one round, power is the limit where all multiprocessors are busy.
  double const share = static_cast<double>(blocks) / device.multiprocessors;
  if (is_tile(kernel) && rounds > 1.0) rounds = std::max(rounds, kPower * share * split);
  // Blocks of the table kernel share its work evenly, those of the rows kernel by 16 rows.
  if (kernel == static_cast<int>(LinearKernel::kTable)) rounds = share;
  if (kernel == static_cast<int>(LinearKernel::kRows8)) rounds /= 8.0;
  return cost.start + std::max(memory, rounds * columns / split * cost.columns);
}

}  // namespace

bool takes_vectors(LinearParams const& p) {
  constexpr size_t kAlignment = 16;
  if (element_size(p.dtype) != 2 || p.k % 8 != 0) return false;
  return is_aligned(p.x, kAlignment) && is_aligned(p.codes, kAlignment) && is_aligned(p.codebooks, kAlignment);
}

Preset preset_of(LinearParams const& p) {
  constexpr int64_t kTileColumns = 256, kTileRows = 128;  // what blocks take at a time
  if (!takes_vectors(p)) return Preset::kNone;
  bool const whole = p.tile_rows >= p.n && p.tile_columns >= p.k;
  bool const tiles = (p.tile_rows >= p.n || p.tile_rows % kTileRows == 0) &&
                     (p.tile_columns >= p.k || p.tile_columns % kTileColumns == 0);
  for (int i = 0; i < kPresets; ++i) {
    Format const& f = kFormats[i];
    bool const same =
        f.vector == p.vector && f.bits == p.bits && f.residuals == p.residuals && f.lattice == p.lattice();
    if (same && (f.tiled ? tiles : whole)) return static_cast<Preset>(i);
  }
  return Preset::kNone;
}

int panel_bytes(Device const& device, Preset preset, LinearKernel kernel) {
  if (!is_few(static_cast<int>(kernel))) return 0;
  Cache const cache = cache_of({kernel, preset, 1, 0, 0, 0.0, {}});
  int64_t const tables = cache.entries * cache.entry_bytes * cache.copies * cache.tables;
  return static_cast<int>(std::clamp<int64_t>((device.shared_bytes - tables) / 2, 0, kMostPanelBytes));
}

Plan make_plan(LinearParams const& p, Device const& device) {
  Plan plan{LinearKernel::kGeneric, preset_of(p), 1, 0, 0, 0.0, {}};
  std::fill_n(plan.candidates, kFastKernels, -1.0);
  int const preset = static_cast<int>(plan.preset);
  for (int kernel = 0; plan.preset != Preset::kNone && kernel < kDecodingKernels; ++kernel) {
    if (!fits(p, device, preset, kernel)) continue;
    // Of clusters of more than two blocks, some find no place beside the others.
    bool const splits = device.sm90 && (is_few(kernel) || is_tile(kernel));
    for (int split = 1; split <= (splits ? 2 : 1); split *= 2) {
      double const us = estimate(p, device, preset, kernel, split);
      double& best = plan.candidates[kernel];
      if (best < 0.0 || us < best) best = us;
      if (plan.kernel != LinearKernel::kGeneric && us >= plan.us) continue;
      plan.kernel = static_cast<LinearKernel>(kernel);
      plan.split = split;
      plan.panel_bytes = panel_bytes(device, plan.preset, plan.kernel);
      plan.us = us;
    }
  }
  if (!device.sm90 || p.m < least_expanded(p) || !can_expand(p)) return plan;
  int64_t const slab_rows = best_slab_rows(p, device);
  double const us = expanded_time(p, device, slab_rows);
  plan.candidates[static_cast<int>(LinearKernel::kExpanded)] = us;
  if (plan.kernel != LinearKernel::kGeneric && us >= plan.us) return plan;
  plan.kernel = LinearKernel::kExpanded;
  plan.split = 1;
  plan.panel_bytes = 0;
  plan.slab_rows = slab_rows;
  plan.us = us;
  return plan;
}

int64_t most_generated(LinearParams const& p, Device const& device) {
  constexpr int64_t kOfCached = 64, kOfOthers = 32;  // measured at 8192 x 8192
  bool const whole = p.tile_rows >= p.n && p.tile_columns >= p.k;
  return whole && expand_shape(p, device.shared_bytes).shared ? kOfCached : kOfOthers;
}

int64_t describe_plan(LinearParams const& p, Device const& device, char* text, int64_t size) {
  Plan const plan = make_plan(p, device);
  char line[256];
  std::snprintf(line, sizeof(line), "{\"kernel\": \"%s\", \"preset\": \"%s\", \"split\": %d, \"us\": %.2f",
                kKernelNames[static_cast<int>(plan.kernel)], kPresetNames[static_cast<int>(plan.preset)], plan.split,
                plan.us);
  std::string json = line;
  bool const expanded = plan.kernel == LinearKernel::kExpanded;
  if (expanded || plan.preset != Preset::kNone) {
    Cache const cache = expanded ? cache_of_expansion(p, device) : cache_of(plan);
    std::snprintf(line, sizeof(line),
                  ", \"entries\": %lld, \"entry_bytes\": %d, \"copies\": %d, \"tables\": %d, \"shared_bytes\": %lld",
                  static_cast<long long>(cache.entries), cache.entry_bytes, cache.copies, cache.tables,
                  static_cast<long long>(cache.entries * cache.entry_bytes * cache.copies * cache.tables));
    json += line;
    std::snprintf(line, sizeof(line), ", \"panel_bytes\": %d", plan.panel_bytes);
    json += line;
    if (expanded) {
      std::snprintf(line, sizeof(line), ", \"slab_rows\": %lld, \"most_generated\": %lld",
                    static_cast<long long>(plan.slab_rows), static_cast<long long>(most_generated(p, device)));
      json += line;
    }
  }
  json += ", \"candidates\": {";
  bool first = true;
  for (int kernel = 0; kernel < kFastKernels; ++kernel) {
    if (plan.candidates[kernel] < 0.0) continue;
    std::snprintf(line, sizeof(line), "%s\"%s\": %.2f", first ? "" : ", ", kKernelNames[kernel],
                  plan.candidates[kernel]);
    json += line;
    first = false;
  }
  json += "}}";
  auto const length = static_cast<int64_t>(json.size());
  if (text != nullptr && size > 0) {
    int64_t const written = std::min(size - 1, length);
    std::memcpy(text, json.data(), static_cast<size_t>(written));
    text[written] = '\0';
  }
  return length;
}

size_t linear_workspace_bytes(LinearParams const& p) {
  Table const* const table = table_of(p);
  int64_t const slices = table == nullptr ? 0 : (p.k + table->columns - 1) / table->columns;
  int64_t const sums = slices * p.n * static_cast<int64_t>(sizeof(float));
  bool const expands = p.m >= least_expanded(p) && has_slabs(p);
  return static_cast<size_t>(expands ? std::max(sums, expanded_workspace_bytes(p, most_slab_rows(p))) : sums);
}

}  // namespace graphopt::vq
