#include "vq/jit/spec.h"

#include <algorithm>
#include <sstream>

#include "vq/linear/lane_columns.h"

namespace graphopt::vq::jit {
namespace {

constexpr int kWarpChunks = 4;               // lanes that take columns of a row
constexpr int kMostPitch = 128;              // bytes of all copies of an entry: one access of a warp
constexpr int kLeastPitch = 16;              // of an entry that is copied by vectors
constexpr int kMostTableBytes = 128 * 1024;  // more copies would only cost time to fill
constexpr int kMostPanelBytes = 32 * 1024;
constexpr int kPointerBytes = 16;  // beside entries that are partly cached
constexpr int kEntryStep = 8;      // entries of a partly cached codebook are a multiple of it

int entry_bytes(Format const& f) { return 2 * f.vector; }

int codes_of(Format const& f) { return 1 << f.bits; }

int columns_of_chunk(Format const& f) { return kWarpChunks * lane_columns(f.vector, f.bits, f.residuals); }

/// X in shared memory: a step of so many tokens, and the next one.
int64_t least_panels(Format const& f, int groups, int tokens) {
  return int64_t{2} * tokens * columns_of_chunk(f) * groups * 2;
}

bool fill_whole(Format const& f, int64_t room, Spec* spec) {
  for (int copies = kMostPitch / entry_bytes(f); copies * entry_bytes(f) >= kLeastPitch; copies /= 2) {
    int64_t const bytes =
        int64_t{spec->tables(f)} * f.residuals * codes_of(f) * entry_bytes(f) * static_cast<int64_t>(copies);
    if (bytes > std::min<int64_t>(room, copies == 1 ? room : kMostTableBytes)) continue;
    spec->copies = copies;
    spec->cached = codes_of(f);
    return true;
  }
  return false;
}

bool fill_partly(Format const& f, int64_t room, Spec* spec) {
  int64_t const entries = (room - kPointerBytes) / (f.residuals * entry_bytes(f)) / kEntryStep * kEntryStep;
  if (f.tiled || entries < kEntryStep) return false;
  spec->copies = 1;
  spec->cached = static_cast<int32_t>(std::min<int64_t>(entries, codes_of(f)));
  return true;
}

/// Whether PartlyCachedWeights decode: an entry has no room as a whole, or is too small to be copied by vectors.
bool is_partly(Format const& f, Spec const& spec) {
  return spec.cached < codes_of(f) || spec.copies * entry_bytes(f) < kLeastPitch;
}

}  // namespace

int Spec::chunk(Format const& format) const { return columns_of_chunk(format); }

int Spec::tables(Format const& format) const {
  // Where they change along K each group of warps has its own, and its next.
  return format.tiled ? 2 * groups : 1;
}

int Spec::table_bytes(Format const& format) const {
  int const bytes = format.residuals * cached * entry_bytes(format) * copies;
  return is_partly(format, *this) ? kPointerBytes + bytes : tables(format) * bytes;
}

int Spec::panel_bytes(Format const& format) const {
  return std::clamp((shared_bytes(arch) - table_bytes(format)) / 2, 0, kMostPanelBytes);
}

int shared_bytes(int arch) {
  constexpr int kKilobyte = 1024;
  switch (arch) {
    case 80:
    case 87:
      return 163 * kKilobyte;
    case 86:
    case 89:
    case 120:
    case 121:
      return 99 * kKilobyte;
    case 90:
    case 100:
    case 103:
    case 110:
      return 227 * kKilobyte;
    default:
      return 0;
  }
}

bool format_of(LinearParams const& p, Format* format) {
  bool const vector = p.vector == 2 || p.vector == 4 || p.vector == 8 || p.vector == 16;
  bool const codes = p.bits >= 1 && p.bits <= kMostBits && p.residuals >= 1 && p.residuals <= kMostResiduals;
  if (!vector || !codes || p.lattice() || p.n < 1 || p.k < 1 || p.tile_rows < 1 || p.tile_columns < 1) return false;
  if ((p.dtype != DType::kFloat16 && p.dtype != DType::kBFloat16) || p.k % 8 != 0) return false;
  *format = {p.dtype, p.vector, p.bits, p.residuals, p.tile_rows < p.n || p.tile_columns < p.k};
  return (p.tile_rows >= p.n || p.tile_rows % kRows == 0) &&
         (p.tile_columns >= p.k || p.tile_columns % columns_of_chunk(*format) == 0);
}

bool make_spec(Format const& f, int arch, int most_groups, Spec* spec) {
  for (int tokens : {16, 8}) {
    for (int groups = most_groups; groups >= 1; groups /= 2) {
      *spec = {arch, groups, 0, 0, tokens};
      int64_t const room = shared_bytes(arch) - least_panels(f, groups, tokens);
      if (fill_whole(f, room, spec)) return true;
    }
  }
  *spec = {arch, most_groups, 0, 0, 16};
  return fill_partly(f, shared_bytes(arch) - least_panels(f, most_groups, spec->tokens), spec);
}

std::string name_of(Format const& f) {
  return "VQ<" + std::to_string(f.vector) + "," + std::to_string(f.bits) + "," + std::to_string(f.residuals) + ">" +
         (f.tiled ? " by tiles" : "");
}

std::string source_of(Format const& f, Spec const& spec) {
  std::ostringstream text;
  char const* const type = f.dtype == DType::kFloat16 ? "__half" : "__nv_bfloat16";
  text << "#include \"vq/jit/partly_cached.cuh\"\n#include \"vq/linear/kernel_few.cuh\"\n"
       << "namespace graphopt::vq {\n"
       << "using Weights = " << (is_partly(f, spec) ? "PartlyCachedWeights<" : "BookWeights<") << type << ", "
       << f.vector << ", " << f.bits << ", " << f.residuals << ", ";
  if (is_partly(f, spec)) {
    text << spec.cached;
  } else {
    text << (f.tiled ? "true" : "false") << ", " << spec.copies;
  }
  text << ">;\n";
  for (int tiles = 1; 8 * tiles <= spec.tokens; ++tiles) {
    text << "using Shape" << tiles << " = FewShape<" << kRowWarps << ", " << spec.groups << ", " << tiles << ">;\n"
         << "extern \"C\" __global__ void __launch_bounds__(Shape" << tiles << "::kThreads, 1) "
         << (tiles == 1 ? kFew8 : kFew16) << "(FewArgs<" << type << "> const args) {\n"
         << "  extern __shared__ __align__(128) char shared[];\n"
         << "  FewTokens<Weights, Shape" << tiles << ">(args, shared_address(shared)).run();\n}\n";
  }
  // What the host believes.
  text << "static_assert(FewTokens<Weights, Shape1>::kChunk == " << spec.chunk(f)
       << " && FewTokens<Weights, Shape1>::kTableBytes == " << spec.table_bytes(f) << " && Shape1::kRows == " << kRows
       << ");\n}\n";
  return text.str();
}

}  // namespace graphopt::vq::jit
