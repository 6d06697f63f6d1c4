// VQLinear and VQLinearE8 as OpClasses. Inputs: x, codes, codebooks or ratios, scale, bias. Output: y.
#include "vq/jit/generate.h"
#include "vq/jit/launch.h"
#include "vq/linear/params.h"
#include "vq/linear/plan.h"
#include "vq/ops.h"

namespace graphopt::vq {
namespace {

enum Input : int32_t { kX, kCodes, kBooks, kScale, kBias };
constexpr int32_t kRatios = kBooks;

constexpr char const* kBits = "bits";
constexpr char const* kTileRows = "tile_rows";
constexpr char const* kTileColumns = "tile_columns";

constexpr int32_t kLatticeVector = 8, kLatticeBits = 16;

/// Variants.
enum Codebook : int32_t { kTrained, kLattice };

Signature signature(OpClass const& op, Attributes const&) {
  InputSpec const books =
      op.variant == kLattice ? InputSpec{"ratios", Element::kFloat32} : InputSpec{"codebooks", Element::kFloat16};
  return {{{"x", Element::kActivation},
           {"codes", Element::kInt8},
           books,
           {"scale", Element::kFloat32},
           {"bias", Element::kActivation}},
          {{"y", Element::kActivation, kX, DimRef::first_of(kCodes)}}};
}

/// v, b and r from the shape [Gn, Gk, r, 2^b, v] of codebooks.
Status trained_sizes(TensorView const& books, LinearParams* p) {
  if (books.rank != 5 || books.dims[2] > kMostResiduals) return Status::kBadShape;
  p->vector = static_cast<int32_t>(books.cols());
  p->residuals = static_cast<int32_t>(books.dims[2]);
  while (p->bits < kMostBits && int64_t{1} << p->bits < books.dims[3]) ++p->bits;
  p->tile_rows = books.dims[0] == 1 ? p->n : 1;
  p->tile_columns = books.dims[1] == 1 ? p->k : p->vector;
  return books.dims[3] == int64_t{1} << p->bits ? Status::kOk : Status::kBadShape;
}

/// What shapes say; of tiles only whether there are any.
Status sizes(OpClass const& op, TensorView const* inputs, LinearParams* p) {
  p->dtype = inputs[kX].type;
  p->m = inputs[kX].rows();
  p->n = inputs[kCodes].rows();
  p->k = inputs[kX].cols();
  if (op.variant == kLattice) {
    p->vector = kLatticeVector;
    p->bits = kLatticeBits;
    p->residuals = static_cast<int32_t>(inputs[kRatios].cols());
    p->tile_rows = p->n;
    p->tile_columns = p->k;
  } else {
    GRAPHOPT_TRY(trained_sizes(inputs[kBooks], p));
  }
  bool const fits = inputs[kCodes].rank == 2 && inputs[kScale].cols() == p->n && inputs[kBias].cols() == p->n &&
                    p->vector > 0 && p->residuals > 0 && p->k > 0 &&
                    inputs[kCodes].cols() == row_bytes(p->k, p->vector, p->bits, p->residuals);
  return fits ? Status::kOk : Status::kBadShape;
}

/// The tiles that fields name, held against the shape of codebooks.
Status tiles(OpClass const& op, Attributes const& attributes, TensorView const& books, LinearParams* p) {
  p->tile_rows = op.flag(attributes, kTileRows);
  p->tile_columns = op.flag(attributes, kTileColumns);
  if (op.flag(attributes, kBits) != p->bits || p->tile_rows < 1 || p->tile_columns < 1) return Status::kBadAttribute;
  bool const fits = books.dims[0] == (p->n + p->tile_rows - 1) / p->tile_rows &&
                    books.dims[1] == (p->k + p->tile_columns - 1) / p->tile_columns;
  return fits ? Status::kOk : Status::kBadShape;
}

size_t workspace_bytes(OpClass const& op, TensorView const* inputs) {
  LinearParams p{};
  return sizes(op, inputs, &p) == Status::kOk ? linear_workspace_bytes(p) : 0;
}

Status launch(OpClass const& op, Attributes const& attributes, TensorView const* inputs, TensorView const* outputs,
              void* workspace, cudaStream_t stream) {
  LinearParams p{};
  GRAPHOPT_TRY(sizes(op, inputs, &p));
  if (op.variant == kLattice) {
    p.ratios = static_cast<float const*>(inputs[kRatios].data);
  } else {
    GRAPHOPT_TRY(tiles(op, attributes, inputs[kBooks], &p));
    p.codebooks = inputs[kBooks].data;
  }
  p.x = inputs[kX].data;
  p.codes = static_cast<int8_t const*>(inputs[kCodes].data);
  p.scale = static_cast<float const*>(inputs[kScale].data);
  p.bias = inputs[kBias].data;
  p.y = outputs[0].data;
  p.workspace = workspace;
  return launch_linear(p, stream);
}

/// Kernels for a format that has none compiled ahead of time. Where x is float32 or tiles are odd, none can be made.
Status generate(OpClass const& op, Attributes const& attributes, TensorView const* inputs, std::string* kernels,
                std::string* problem) {
  LinearParams p{};
  GRAPHOPT_TRY(sizes(op, inputs, &p));
  GRAPHOPT_TRY(tiles(op, attributes, inputs[kBooks], &p));
  return jit::generate_for(p, jit::library_archs(), kernels, problem);
}

OpClass make_op(char const* name, Codebook codebook) {
  OpClass op;
  op.name = name;
  if (codebook == kTrained) {
    op.fields = {{kBits, FieldType::kInt32}, {kTileRows, FieldType::kInt32}, {kTileColumns, FieldType::kInt32}};
    op.generate = generate;
    op.install = jit::install;
  }
  op.signature = signature;
  op.workspace_bytes = workspace_bytes;
  op.launch = launch;
  op.variant = codebook;
  return op;
}

}  // namespace

OpClass linear_op() { return make_op("VQLinear", kTrained); }
OpClass linear_e8_op() { return make_op("VQLinearE8", kLattice); }

}  // namespace graphopt::vq
