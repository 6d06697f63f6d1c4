// A stage of the Hopper kernel for weights of whole vectors, on the host: vectors FOLDER TYPE ROWS COLUMNS SEED
//
// TYPE: f16 or bf16. The folder has `x` [ROWS, COLUMNS] T, `codes` [64, 32] bytes and `ratios` [2] float32. X, with
// zero columns up to 64, is put into the order of vectors, and W decoded, as the kernel does both; `y` [ROWS, 64]
// float32 is what wgmma makes of them, by its definition.
#include <fstream>
#include <iostream>
#include <iterator>
#include <string>

#include "instructions.h"
// What follows is device code.
#include "vq/linear/sm90_vectors.cuh"

namespace {

using namespace graphopt;
using namespace graphopt::vq;

constexpr int kRows = 64, kColumns = 64, kMostTokens = 128, kRowBytes = 128, kCodeBytes = 32;
constexpr uint32_t kTable = 64 * 1024, kStage = 2 * kTable, kEnd = kStage + kMostTokens * kRowBytes;

std::vector<char> read(std::string const& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw std::runtime_error("cannot read " + path);
  return {std::istreambuf_iterator<char>(file), {}};
}

/// Where 16 bytes of a row lie in a tile that the copy engine has swizzled.
uint32_t place(int row, int chunk) { return kStage + row * kRowBytes + (chunk ^ row % 8) * 16; }

/// A warp orders a stage as the kernel does for so many rows.
template <int kParts>
void order(uint32_t seed) {
  emulate::block_size.x = 32;
  emulate::Block(32, seed, [] { VectorRows<kParts>(static_cast<int>(threadIdx.x)).order(kStage); }).run();
}

template <class T>
void run(std::string const& folder, int rows, int columns, uint32_t seed) {
  std::vector<char> const x = read(folder + "/x"), codes = read(folder + "/codes"), bytes = read(folder + "/ratios");
  std::vector<char> memory(kEnd + 4096, '\x55');
  emulate::shared = memory.data();
  if (x.size() != static_cast<size_t>(rows * columns) * sizeof(T)) throw std::runtime_error("x has another size");
  for (int row = 0; row < rows; ++row) {
    for (int chunk = 0; chunk < 8; ++chunk) {  // what lies outside reads as zero
      std::memset(&memory[place(row, chunk)], 0, 16);
      if (chunk * 8 < columns) std::memcpy(&memory[place(row, chunk)], &x[(row * columns + chunk * 8) * 2], 16);
    }
  }
  (rows <= 16 ? order<1> : rows <= 32 ? order<2> : rows <= 64 ? order<4> : order<8>)(seed);
  constexpr int kLoaders = 512;
  emulate::block_size.x = kLoaders;
  using Weights = LatticeVectors<T>;
  emulate::Block(kLoaders, seed, [&] {
    typename Weights::template Loader<kLoaders>(static_cast<int>(threadIdx.x)).copy(nullptr, kTable);
  }).run();

  // As wgmma takes a[i]: with lane l of warp w, row 16 w + l / 4 + 8 (i % 2), bytes 16 (i / 2) + 4 (l % 4) and on.
  std::vector<float> w(kRows * kColumns), y(rows * kRows);
  auto const* const ratios = reinterpret_cast<float const*>(bytes.data());
  for (int thread = 0; thread < 128; ++thread) {
    int const lane = thread % 32, row = thread / 32 * 16 + lane / 4;
    typename Weights::VectorDecoder const decoder(kTable, lane, Weights::ratio_of(ratios));
    for (int half = 0; half < 2; ++half) {
      uint32_t word[2], a[8];
      for (int h = 0; h < 2; ++h) {
        std::memcpy(&word[h], &codes[(row + 8 * h) * kCodeBytes + lane % 4 * 8 + 4 * half], 4);
      }
      decoder.half(a, word[0], word[1]);
      for (int i = 0; i < 16; ++i) {
        int const column = (2 * half + i / 8) * 16 + i / 4 % 2 * 8 + lane % 4 * 2 + i % 2;
        w[(row + i / 2 % 2 * 8) * kColumns + column] = static_cast<float>(emulate::element<T>(a[i / 2], i % 2));
      }
    }
  }
  for (int m = 0; m < rows; ++m) {
    for (int n = 0; n < kRows; ++n) {
      double sum = 0.0;
      for (int k = 0; k < kColumns; ++k) {
        T element;
        std::memcpy(&element, &memory[place(m, k / 8) + k % 8 * 2], 2);
        sum += static_cast<double>(static_cast<float>(element)) * w[n * kColumns + k];
      }
      y[m * kRows + n] = static_cast<float>(sum);
    }
  }
  for (size_t i = kEnd; i < memory.size(); ++i) {
    if (memory[i] != '\x55') throw std::runtime_error("something was written behind the stage");
  }
  std::ofstream(folder + "/y", std::ios::binary).write(reinterpret_cast<char const*>(y.data()), y.size() * 4);
}

}  // namespace

int main(int count, char** argument) {
  try {
    if (count != 6) throw std::runtime_error("vectors FOLDER TYPE ROWS COLUMNS SEED");
    auto const run_type = std::string(argument[2]) == "f16" ? run<__half> : run<__nv_bfloat16>;
    run_type(argument[1], std::stoi(argument[3]), std::stoi(argument[4]),
             static_cast<uint32_t>(std::stoul(argument[5])));
  } catch (std::exception const& error) {
    std::cerr << error.what() << "\n";
    return 1;
  }
}
