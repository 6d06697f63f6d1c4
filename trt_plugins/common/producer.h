// What a scheme's op takes over from the op before it.
#pragma once

#include <cstdint>

namespace graphopt {

/// What computes the y that is quantized or transformed. The values are those of the C API.
enum class Producer : int32_t {
  kPlain = 0,
  kRmsNorm = 1,
  kAddRmsNorm = 2,
  kLayerNorm = 3,
  kAddLayerNorm = 4,
  kGatedSilu = 5,
  kGatedGelu = 6,
  kGatedGeluTanh = 7,
  kGelu = 8,
  kGeluTanh = 9,
  kSwiGlu = 10,  // the gated ones once more, of gate and up side by side in x [M, 2 K]
  kGeGlu = 11,
  kGeGluTanh = 12,
};

constexpr bool is_known(Producer p) { return p >= Producer::kPlain && p <= Producer::kGeGluTanh; }
constexpr bool is_add(Producer p) { return p == Producer::kAddRmsNorm || p == Producer::kAddLayerNorm; }
constexpr bool is_layer_norm(Producer p) { return p == Producer::kLayerNorm || p == Producer::kAddLayerNorm; }
constexpr bool is_norm(Producer p) { return p >= Producer::kRmsNorm && p <= Producer::kAddLayerNorm; }
constexpr bool is_gated(Producer p) { return p >= Producer::kGatedSilu && p <= Producer::kGatedGeluTanh; }
constexpr bool is_glu(Producer p) { return p >= Producer::kSwiGlu && p <= Producer::kGeGluTanh; }

}  // namespace graphopt
