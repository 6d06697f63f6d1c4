// Attention over a cache of 4-bit M-ANT groups that is quantized in real time: rotary, append and attention in one op
// (M-ANT, HPCA'25, section 5.2).
//
//   k', v' = rotary(k) - k_center, v
//   keys     become 4-bit as they come, in groups of g channels
//   values   wait as int8 in a window of g tokens; a page of g complete tokens becomes 4-bit, in groups of its tokens
//   token 0  is kept exact beside them, and read from there
//   y[b, i] = softmax over j <= start[b] + i of scale * q'[b, i] . K[b, j], times V, of what the state stands for
//
// Layout and rounding are those of passes/mant/cache_numerics.py and cache_codes.py, to the last bit of the codes.
#pragma once

#include "attention/cached/params.h"

namespace graphopt::attention {

constexpr int kStateTensors = 7;

/// The state of a layer. g = `group` tokens or channels.
template <class Pointer>
struct MantState {
  Pointer k;         // [B, Hkv, C, D / 2] bytes: codes of a token along D, packed as in common/packing.h
  Pointer k_meta;    // [B, Hkv, C, 2 D / g] bytes: a word of each group
  Pointer v;         // [B, Hkv, C / g, D, g / 2] bytes: codes of a channel along the page's tokens
  Pointer v_meta;    // [B, Hkv, C / g, D, 2] bytes: a word of each channel
  Pointer v_window;  // [B, Hkv, g, D] int8: token t in row t mod g
  Pointer v_scale;   // [B, Hkv, g] half
  Pointer sink;      // [B, Hkv, 2, D] T: key, not centered, and value of token 0
};

enum class MantSelector : int32_t { kTrial = 0, kVariance3 = 1, kVariance8 = 2 };

/// `cache` is as in CachedParams, but for past and present, which are not used; C is a multiple of the group, D of 32 and
/// of the group. Each tensor of the present state is that of the past one, or overlaps nothing.
struct MantParams {
  CachedParams cache;
  int64_t group;         // g: 32 or 64
  MantSelector selector;  // how a group gets its type
  void const* k_center;  // [Hkv, D] T
  MantState<void const*> past;
  MantState<void*> present;
};

Status launch_mant(MantParams const& params, cudaStream_t stream);

}  // namespace graphopt::attention
