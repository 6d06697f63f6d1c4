// Every plugin op of the library: the list of schemes that it is made of, and what stands between them.
#pragma once

#include <utility>
#include <vector>

#include "attention/ops.h"
#include "common/op.h"
#include "fused/ops.h"
#include "mant/ops.h"
#include "mixq/ops.h"
#include "vq/ops.h"

namespace graphopt {

inline std::vector<OpClass> all_ops() {
  std::vector<OpClass> ops = mixq::quantize_ops();
  for (OpClass& op : mixq::linear_ops()) ops.push_back(std::move(op));
  for (OpClass& op : mixq::four_bit_linear_ops()) ops.push_back(std::move(op));
  for (OpClass& op : mixq::online_linear_ops()) ops.push_back(std::move(op));
  for (OpClass& op : mant::linear_ops()) ops.push_back(std::move(op));
  ops.push_back(attention::cached_op());
  ops.push_back(attention::vq_cached_op());
  ops.push_back(attention::mant_cached_op());
  ops.push_back(vq::linear_op());
  ops.push_back(vq::linear_e8_op());
  for (OpClass& op : vq::hadamard_ops()) ops.push_back(std::move(op));
  for (OpClass& op : fused::fused_ops()) ops.push_back(std::move(op));
  return ops;
}

}  // namespace graphopt
