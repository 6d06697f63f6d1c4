// What a generated kernel is: one format of VQ<v, b, r>, compiled for one GPU with the numbers that suit both.
#pragma once

#include <cstdint>
#include <string>

#include "common/tensor.h"
#include "vq/linear/params.h"

namespace graphopt::vq::jit {

/// What kernels are generated for.
struct Format {
  DType dtype;  // kFloat16 or kBFloat16
  int32_t vector, bits, residuals;
  bool tiled;  // codebooks change along K or N

  bool operator==(Format const& o) const {
    return dtype == o.dtype && vector == o.vector && bits == o.bits && residuals == o.residuals && tiled == o.tiled;
  }
};

constexpr int kRows = 128, kRowWarps = 8;  // of a block

/// A kernel's numbers: what the shared memory of a block and the registers of a multiprocessor leave room for.
struct Spec {
  int32_t arch;    // compute capability times ten
  int32_t groups;  // of warps that share K: two, or one where two have too few registers or no room for X
  int32_t copies;  // of an entry in shared memory, against bank conflicts
  int32_t cached;  // entries of each codebook in shared memory; the bound of the codebook cache
  int32_t tokens;  // of the largest block that has room for X: 8 or 16

  int chunk(Format const& format) const;        // columns that a warp takes at a time
  int tables(Format const& format) const;       // codebooks in shared memory at a time: of tiles and groups of warps
  int table_bytes(Format const& format) const;  // of all these
  int panel_bytes(Format const& format) const;  // that X may have there, twice
};

/// Bytes of shared memory that a block can have; 0 for an unknown compute capability.
int shared_bytes(int arch);

/// The format of a linear, if a kernel can be generated for it: T of 16 bits, K % 8 == 0, codebooks of all of the
/// weight or of tiles that blocks do not straddle. Pointers are not looked at.
bool format_of(LinearParams const& params, Format* format);

/// Numbers with at most so many groups. False if nothing fits.
bool make_spec(Format const& format, int arch, int most_groups, Spec* spec);

/// "VQ<4,8,2>", followed by " by tiles" where that is so.
std::string name_of(Format const& format);

constexpr char const* kFew8 = "graphopt_vq_few8";
constexpr char const* kFew16 = "graphopt_vq_few16";

/// Source of kernels kFew8 and kFew16.
std::string source_of(Format const& format, Spec const& spec);

}  // namespace graphopt::vq::jit
