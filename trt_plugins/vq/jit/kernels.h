// Generated kernels as bytes, which engines and the cache of files keep.
#pragma once

#include <string>
#include <vector>

#include "common/check.h"
#include "vq/jit/spec.h"

namespace graphopt::vq::jit {

/// Machine code for one compute capability. kFew16 is in it where spec.tokens is 16.
struct Image {
  Spec spec;
  int32_t registers[2];      // of kFew8 and kFew16
  int32_t spilled_bytes[2];  // stores and loads
  std::string cubin;
};

struct Kernels {
  Format format;
  std::vector<Image> images;
};

/// Digest of the sources that this library generates kernels from: what the launching code has to agree with.
uint64_t sources_digest();

uint64_t digest_of(std::string const& bytes, uint64_t seed = 0);

std::string encode(Kernels const& kernels);

/// kDamaged where `bytes` are not what `encode` wrote; kOtherLibrary where another version's did.
Status decode(std::string const& bytes, Kernels* kernels);

/// "VQ<4,8,2>", images and their numbers as JSON.
std::string describe(Kernels const& kernels);

}  // namespace graphopt::vq::jit
