// What the ops of attention over a cache share: the order of their operands, and sizes from shapes.
#pragma once

#include "attention/cached/params.h"
#include "common/op.h"

namespace graphopt::attention {

enum Input : int32_t { kQ, kK, kV, kCos, kSin, kPastK, kPastV, kStart };
enum Output : int32_t { kY, kPresentK, kPresentV };

constexpr char const* kScale = "scale";
constexpr char const* kRotary = "rotary";

/// Operands of an op whose past and present hold elements of `cache`; more inputs may follow.
inline Signature cache_signature(Element cache) {
  return {{{"q", Element::kActivation},
           {"k", Element::kActivation},
           {"v", Element::kActivation},
           {"cos", Element::kActivation},
           {"sin", Element::kActivation},
           {"past_k", cache},
           {"past_v", cache},
           {"start", Element::kInt32}},
          {{"y", Element::kActivation, kQ, DimRef::last_of(kQ)},
           {"present_k", cache, kPastK, DimRef::last_of(kPastK)},
           {"present_v", cache, kPastV, DimRef::last_of(kPastV)}}};
}

inline bool has_shape(TensorView const& tensor, int64_t a, int64_t b, int64_t c, int64_t d) {
  return tensor.rank == 4 && tensor.dims[0] == a && tensor.dims[1] == b && tensor.dims[2] == c && tensor.dims[3] == d;
}

/// Sizes from the operands' shapes, without pointers.
inline Status cache_sizes(TensorView const* inputs, CachedParams* p) {
  TensorView const &q = inputs[kQ], &past = inputs[kPastK], &cos = inputs[kCos];
  if (q.rank != 4 || past.rank != 4 || cos.rank != 3 || inputs[kStart].rank != 1) return Status::kBadShape;
  p->dtype = q.type;
  p->batch = q.dims[0];
  p->seq = q.dims[1];
  p->heads = q.dims[2];
  p->head_size = q.dims[3];
  p->kv_heads = past.dims[1];
  p->capacity = past.dims[2];
  p->tables = cos.dims[0];
  return Status::kOk;
}

/// kBadShape unless cos and sin, where they are read, have the shape that the sizes say.
inline Status check_tables(TensorView const* inputs, CachedParams const& p) {
  if (!p.rotary) return Status::kOk;
  for (Input i : {kCos, kSin}) {
    TensorView const& table = inputs[i];
    bool const fits = table.rank == 3 && table.dims[0] == p.tables && table.dims[1] == p.seq &&
                      table.dims[2] == p.head_size && (p.tables == 1 || p.tables == p.batch);
    if (!fits) return Status::kBadShape;
  }
  return Status::kOk;
}

/// kBadShape unless every operand has the shape that the sizes say; rows of past have `row` elements.
inline Status check_cache_shapes(TensorView const* inputs, CachedParams const& p, int64_t row) {
  for (Input i : {kK, kV}) {
    if (!has_shape(inputs[i], p.batch, p.seq, p.kv_heads, p.head_size)) return Status::kBadShape;
  }
  for (Input i : {kPastK, kPastV}) {
    if (!has_shape(inputs[i], p.batch, p.kv_heads, p.capacity, row)) return Status::kBadShape;
  }
  return inputs[kStart].dims[0] == p.batch ? check_tables(inputs, p) : Status::kBadShape;
}

/// Scratch bytes for operands of at most these shapes; of codes the same, whatever the format is.
template <CacheKind kKind>
size_t cache_workspace(OpClass const&, TensorView const* inputs) {
  CachedParams p{};
  return cache_sizes(inputs, &p) == Status::kOk ? cached_workspace_bytes(p, kKind) : 0;
}

/// An op whose attributes are `scale` and `rotary`; more may follow.
template <class SignatureFunction, class Launch>
OpClass cache_op(char const* name, SignatureFunction signature, size_t (*workspace)(OpClass const&, TensorView const*),
                 Launch launch) {
  OpClass op;
  op.name = name;
  op.fields = {{kScale, FieldType::kFloat32}, {kRotary, FieldType::kInt32}};
  op.signature = signature;
  op.workspace_bytes = workspace;
  op.launch = launch;
  return op;
}

/// Everything but sizes.
inline void set_cache_operands(OpClass const& op, Attributes const& attributes, TensorView const* inputs,
                               TensorView const* outputs, void* workspace, CachedParams* p) {
  p->rotary = op.flag(attributes, kRotary) != 0;
  p->scale = op.number(attributes, kScale);
  p->q = inputs[kQ].data;
  p->k = inputs[kK].data;
  p->v = inputs[kV].data;
  p->cos = inputs[kCos].data;
  p->sin = inputs[kSin].data;
  p->past_k = inputs[kPastK].data;
  p->past_v = inputs[kPastV].data;
  p->start = static_cast<int32_t const*>(inputs[kStart].data);
  p->y = outputs[kY].data;
  p->present_k = outputs[kPresentK].data;
  p->present_v = outputs[kPresentV].data;
  p->workspace = workspace;
}

}  // namespace graphopt::attention
