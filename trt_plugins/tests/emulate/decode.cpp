// Decode over a cache, block by block, on the host: decode FOLDER KIND TYPE B S HKV GROUP D C VECTOR BLOCKS SEED TABLES
//
// KIND: cached, vq or mant; TYPE: f16 or bf16; VECTOR: channels of a code; TABLES: of cos and sin, 0 where queries are
// rotated. The folder has a file for each operand, as AttentionArgs, VqArgs and MantArgs name them; `y` is added.
#include <fstream>
#include <iostream>
#include <iterator>
#include <new>
#include <string>

#include "instructions.h"
// What follows is device code.
#include "attention/decode.cuh"
#include "attention/mant/decode.cuh"
#include "attention/vq/decode.cuh"
#include "attention/vq/grouped.cuh"

namespace {

using namespace graphopt;
using namespace graphopt::attention;

constexpr size_t kAlignment = 128, kGuardBytes = 64;
constexpr int kGuard = 0x55, kRubbish = 0xff;  // NaN in every type

/// Bytes as CUDA's allocations are aligned, full of rubbish.
class Bytes {
 public:
  explicit Bytes(size_t count)
      : data_(static_cast<char*>(::operator new(count + kGuardBytes, std::align_val_t{kAlignment}))), count_(count) {
    std::memset(data_, kRubbish, count_);
    std::memset(data_ + count_, kGuard, kGuardBytes);
  }
  Bytes(Bytes const&) = delete;
  Bytes& operator=(Bytes const&) = delete;
  ~Bytes() { ::operator delete(data_, std::align_val_t{kAlignment}); }

  char* data() const { return data_; }
  size_t size() const { return count_; }
  template <class T>
  T* as() const {
    return reinterpret_cast<T*>(data_);
  }

  /// Throws std::runtime_error where something was written behind the end.
  void check(char const* name) const {
    for (size_t i = 0; i < kGuardBytes; ++i) {
      if (data_[count_ + i] != kGuard) throw std::runtime_error(std::string(name) + " was written behind its end");
    }
  }

 private:
  char* data_;
  size_t count_;
};

class Folder {
 public:
  explicit Folder(std::string path) : path_(std::move(path)) {}

  /// An operand; it stays where it is.
  template <class T>
  T const* read(char const* name) {
    std::ifstream file(path_ + "/" + name, std::ios::binary);
    if (!file) throw std::runtime_error(std::string("there is no operand ") + name);
    std::vector<char> const content{std::istreambuf_iterator<char>(file), {}};
    Bytes const& kept = operands_.emplace_back(content.size());
    std::memcpy(kept.data(), content.data(), content.size());
    return kept.as<T>();
  }

  void write(char const* name, Bytes const& bytes) const {
    std::ofstream(path_ + "/" + name, std::ios::binary).write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  }

 private:
  std::string path_;
  std::deque<Bytes> operands_;
};

struct Launch {
  unsigned blocks;
  uint32_t seed;
};

/// Run all blocks of a kernel, one after the other.
template <class Kernel, class Shape, class Args>
void launch(Args const& args, Launch const& launch) {
  emulate::block_size = {Shape::kThreads, 1, 1};
  emulate::grid_size = {launch.blocks, 1, 1};
  for (unsigned b = 0; b < launch.blocks; ++b) {
    Bytes const shared(Shape::kSharedBytes);
    emulate::shared = shared.data();
    emulate::copies.clear();
    emulate::block_index = {b, 0, 0};
    emulate::Block(Shape::kThreads, launch.seed + b, [&] { Kernel(args, shared.data()).run(); }).run();
    shared.check("shared memory");
  }
}

template <class T_, class Shape_>
struct CodeTraits {
  using T = T_;
  using Shape = Shape_;
};

template <class T, int kD>
void decode_cached(AttentionArgs<T> const& args, Launch const& how) {
  constexpr int kStages = kD <= 64 ? 6 : 3;
  using Few = DecodeTraits<T, kD, true, kStages>;
  using Many = DecodeTraits<T, kD, false, kStages>;
  if (args.seq * args.group <= 8) return launch<DecodeKernel<Few>, typename Few::Shape>(args, how);
  launch<DecodeKernel<Many>, typename Many::Shape>(args, how);
}

template <class T, int kD, int kVector>
void decode_codes(AttentionArgs<T> const& cache, Folder& folder, Launch const& how) {
  using One = VqDecodeShape<kD, kVector>;
  using More = GroupedVqShape<kD, kVector>;
  VqArgs<T> const args{cache, kVector, folder.read<T>("codebook_k"), folder.read<T>("codebook_v")};
  if (cache.seq * cache.group == 1) return launch<VqDecodeKernel<CodeTraits<T, One>>, One>(args, how);
  launch<GroupedVqKernel<CodeTraits<T, More>>, More>(args, how);
}

template <class T, int kD>
void decode_mant(AttentionArgs<T> const& cache, Folder& folder, Launch const& how) {
  using Traits = MantDecodeTraits<T, kD, kD == 64 ? 4 : 2>;
  MantArgs<T> const all{cache,
                        folder.read<uint16_t>("k_meta"),
                        folder.read<uint16_t>("v_meta"),
                        folder.read<int8_t>("v_window"),
                        folder.read<__half>("v_scale"),
                        folder.read<T>("sink"),
                        folder.read<T>("center")};
  MantDecodeArgs<T> const args{all, cache.cos != nullptr};
  launch<MantDecodeKernel<Traits>, typename Traits::Shape>(args, how);
}

template <class T>
void run(std::string const& kind, Folder& folder, int32_t const (&sizes)[10]) {
  AttentionArgs<T> args{};
  args.batch = sizes[0], args.seq = sizes[1], args.kv_heads = sizes[2], args.group = sizes[3];
  args.head_size = sizes[4], args.capacity = sizes[5], args.heads = args.kv_heads * args.group;
  Launch const how{static_cast<unsigned>(sizes[7]), static_cast<uint32_t>(sizes[8])};
  int64_t const rows = args.seq * args.group, d = args.head_size;
  args.scale_log2 = static_cast<float>(1.4426950408889634 / std::sqrt(static_cast<double>(d)));
  args.q = folder.read<T>("q");
  args.k = folder.read<char>("k");
  args.v = folder.read<char>("v");
  args.start = folder.read<int32_t>("start");
  args.tables = sizes[9];
  if (args.tables > 0) args.cos = folder.read<T>("cos"), args.sin = folder.read<T>("sin");
  Bytes const y(static_cast<size_t>(args.batch * args.heads * args.seq * d) * sizeof(T));
  int64_t const part = PartialMemory::floats(std::min<int64_t>(rows, kDecodeRows), d);
  Bytes const partial(static_cast<size_t>(2 * how.blocks * part) * sizeof(float));
  Bytes const counters(static_cast<size_t>(rows * args.kv_heads * args.batch) * sizeof(int32_t));
  std::memset(counters.data(), 0, counters.size());
  args.y = y.as<T>();
  args.partial = partial.as<float>();
  args.counters = counters.as<int32_t>();
  int const vector = sizes[6];
  if (kind == "cached" && d == 64) {
    decode_cached<T, 64>(args, how);
  } else if (kind == "cached" && d == 128) {
    decode_cached<T, 128>(args, how);
  } else if (kind == "vq" && d == 128 && vector == 2) {
    decode_codes<T, 128, 2>(args, folder, how);
  } else if (kind == "vq" && d == 128 && vector == 4) {
    decode_codes<T, 128, 4>(args, folder, how);
  } else if (kind == "vq" && d == 64 && vector == 2) {
    decode_codes<T, 64, 2>(args, folder, how);
  } else if (kind == "mant" && d == 64) {
    decode_mant<T, 64>(args, folder, how);
  } else if (kind == "mant" && d == 128) {
    decode_mant<T, 128>(args, folder, how);
  } else {
    throw std::runtime_error("there is no such kernel");
  }
  y.check("y");
  partial.check("memory of parts");
  counters.check("counters");
  folder.write("y", y);
}

}  // namespace

int main(int count, char** arguments) {
  if (count != 14) {
    std::cerr << "see decode.cpp\n";
    return 2;
  }
  try {
    Folder folder(arguments[1]);
    int32_t sizes[10];
    for (int i = 0; i < 10; ++i) sizes[i] = std::stoi(arguments[4 + i]);
    if (std::string(arguments[3]) == "f16") {
      run<__half>(arguments[2], folder, sizes);
    } else {
      run<__nv_bfloat16>(arguments[2], folder, sizes);
    }
  } catch (std::exception const& e) {
    std::cerr << e.what() << '\n';
    return 1;
  }
}
