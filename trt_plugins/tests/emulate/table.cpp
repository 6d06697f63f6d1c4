// Look-ups of products for one token, block by block, on the host:
// table FOLDER FORMAT TYPE N K TILE_ROWS TILE_COLUMNS BLOCKS SEED
//
// FORMAT: gptvq2 or aqlm2; TYPE: f16 or bf16. The folder has x, codes and codebooks (`books`), as TableArgs says; `y`,
// sums over all slices in float32, is added.
#include <fstream>
#include <iostream>
#include <iterator>
#include <memory>
#include <new>
#include <string>

#include "instructions.h"
// What follows is device code.
#include "vq/linear/kernel_table.cuh"

namespace {

using namespace graphopt;
using namespace graphopt::vq;

constexpr size_t kAlignment = 128;

std::vector<char> content(std::string const& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw std::runtime_error("there is no operand " + path);
  return {std::istreambuf_iterator<char>(file), {}};
}

/// An operand as CUDA's allocations are aligned.
template <class T>
std::shared_ptr<T> read(std::string const& path) {
  std::vector<char> const bytes = content(path);
  auto* const data = ::operator new(bytes.size(), std::align_val_t{kAlignment});
  std::memcpy(data, bytes.data(), bytes.size());
  return {static_cast<T*>(data), [](T* pointer) { ::operator delete(pointer, std::align_val_t{kAlignment}); }};
}

int ceil_div(int a, int b) { return (a + b - 1) / b; }

/// As linear_add_parts adds.
template <bool kTiled, class T>
std::vector<float> add_parts(TableArgs<T> const& args) {
  std::vector<float> y(static_cast<size_t>(args.n));
  for (int n = 0; n < args.n; ++n) {
    int const tile = n / (2 * kTableRows) * args.slices;
    int const parts = kTiled ? owner(args, tile + args.slices - 1) - owner(args, tile) + 1 : args.slices;
    for (int part = 0; part < parts; ++part) {
      y[static_cast<size_t>(n)] += args.sums[static_cast<size_t>(part) * static_cast<size_t>(args.n) + n];
    }
  }
  return y;
}

template <class Weights>
void run(std::string const& folder, int const (&sizes)[6]) {
  using T = typename Weights::T;
  using Shape = TableShape<Weights>;
  TableArgs<T> args{};
  auto const x = read<T>(folder + "/x");
  auto const codes = read<int8_t>(folder + "/codes");
  auto const books = read<__half>(folder + "/books");
  args.x = x.get(), args.codes = codes.get(), args.codebooks = books.get();
  args.n = sizes[0], args.k = sizes[1];
  args.row_bytes = ceil_div(args.k / 4, 16) * 16;
  args.slices = ceil_div(args.k, Shape::kColumns);
  args.units = ceil_div(args.n, Shape::kRows);
  if (Shape::kTiled) args.units += args.units % 2;
  args.blocks = sizes[4];
  args.tile_pairs = ceil_div(std::min(sizes[2], args.n), 2 * Shape::kRows);
  args.tile_slices = ceil_div(std::min(sizes[3], args.k), Shape::kColumns);
  args.tiles_across = ceil_div(args.k, sizes[3]);
  std::vector<float> sums(static_cast<size_t>(args.slices) * static_cast<size_t>(args.n), NAN);
  args.sums = sums.data();
  emulate::block_size = {kTableThreads, 1, 1};
  emulate::grid_size = {static_cast<unsigned>(args.blocks), 1, 1};
  for (int b = 0; b < args.blocks; ++b) {
    std::vector<char> shared(Shape::kSharedBytes, '\xff');
    emulate::shared = shared.data();
    emulate::copies.clear();
    emulate::block_index = {static_cast<unsigned>(b), 0, 0};
    auto const product = [&] { TableProduct<Shape>(args, 0).run(); };
    emulate::Block(kTableThreads, static_cast<uint32_t>(sizes[5] + b), product).run();
  }
  std::vector<float> const y = add_parts<Shape::kTiled>(args);
  std::ofstream(folder + "/y", std::ios::binary)
      .write(reinterpret_cast<char const*>(y.data()), static_cast<std::streamsize>(y.size() * sizeof(float)));
}

template <class T>
void run_typed(std::string const& format, std::string const& folder, int const (&sizes)[6]) {
  if (format == "gptvq2") return run<BookWeights<T, 4, 8, 1, true, 16>>(folder, sizes);
  run<BookWeights<T, 8, 8, 2, false, 8>>(folder, sizes);
}

}  // namespace

int main(int count, char** arguments) {
  if (count != 10) {
    std::cerr << "see table.cpp\n";
    return 2;
  }
  try {
    int sizes[6];
    for (int i = 0; i < 6; ++i) sizes[i] = std::stoi(arguments[4 + i]);
    if (std::string(arguments[3]) == "f16") {
      run_typed<__half>(arguments[2], arguments[1], sizes);
    } else {
      run_typed<__nv_bfloat16>(arguments[2], arguments[1], sizes);
    }
  } catch (std::exception const& e) {
    std::cerr << e.what() << '\n';
    return 1;
  }
}
