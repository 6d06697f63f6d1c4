// How 4-bit codes are packed, two to a byte: 16 bytes hold 32 codes, byte i code i in its low half and code 16 + i in its
// high one. Rows are padded with codes of 0.
#pragma once

#include <cstdint>

namespace graphopt {

constexpr int32_t kPackedCodes = 32;
constexpr int32_t kPackedBytes = 16;

/// Bytes of a row of `codes` codes.
constexpr int64_t packed_bytes(int64_t codes) { return (codes + kPackedCodes - 1) / kPackedCodes * kPackedBytes; }

}  // namespace graphopt
