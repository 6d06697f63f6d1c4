// Small prompts through the attention kernels, for compute-sanitizer: no framework's own kernels are in the way. Rows
// that nobody wrote are NaN, so that any use of them shows.   attention_small [first case] [behind the last]
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <vector>

extern "C" {
int64_t attention_workspace(int64_t const* sizes, int codes);
int attention_cached(int64_t const* sizes, float scale, void* const* pointers, void* stream);
int attention_vq(int64_t const* sizes, int64_t vector, float scale, void* const* pointers, void* const* books,
                 void* stream);
int attention_mant(int64_t const* sizes, int64_t group, int selector, float scale, void* const* pointers,
                   void const* center, void* const* past, void* const* present, void* stream);
}

namespace {

/// vector: channels of a code, or 0. mant: 4-bit groups. Else the cache holds float16.
struct Case {
  int64_t batch, seq, kv_heads, group, head_size, capacity;
  int32_t start[2];
  int vector;
  bool mant;
};

constexpr Case kCases[] = {
    {2, 200, 1, 2, 128, 400, {100, 3}, 0, false}, {1, 70, 1, 2, 64, 150, {60, 0}, 0, false},
    {2, 300, 1, 1, 64, 300, {0, 17}, 0, false},   {1, 129, 3, 1, 128, 257, {128, 0}, 0, false},
    {1, 1500, 2, 8, 128, 1500, {0, 0}, 0, false}, {1, 2000, 2, 8, 64, 2000, {0, 0}, 0, false},
    {2, 200, 2, 2, 128, 400, {100, 3}, 2, false}, {2, 200, 2, 2, 128, 400, {100, 350}, 4, false},
    {1, 150, 2, 2, 64, 200, {30, 0}, 2, false},   {2, 30, 1, 4, 96, 100, {50, 0}, 8, false},
    {2, 130, 1, 2, 128, 256, {0, 70}, 0, true},   {1, 70, 2, 2, 64, 192, {60, 0}, 0, true},
    {2, 1, 1, 4, 128, 600, {550, 3}, 2, false},   {1, 1, 2, 1, 128, 1100, {1050, 0}, 4, false},
    {2, 1, 2, 4, 128, 320, {260, 63}, 0, true},   {2, 1, 2, 4, 128, 200, {150, 3}, 0, false},
    {2, 1, 2, 4, 128, 700, {600, 600}, 2, false}, {2, 1, 1, 1, 128, 700, {640, 0}, 2, false},
    {1, 1, 1, 2, 128, 300, {299, 0}, 4, false},   {1, 1, 2, 4, 64, 600, {513, 0}, 2, false},
    {1, 1, 1, 1, 64, 600, {512, 0}, 2, false},    {2, 1, 1, 8, 128, 600, {550, 3}, 2, false},
    {1, 1, 1, 8, 128, 600, {300, 0}, 4, false},   {1, 1, 1, 4, 128, 640, {600, 0}, 0, true},
    {1, 1, 2, 1, 64, 640, {300, 0}, 0, true},     {2, 1, 2, 4, 128, 500, {499, 499}, 0, false},
    {1, 1, 1, 4, 128, 2200, {2100, 0}, 0, false}, {1, 1, 1, 4, 128, 3648, {3500, 0}, 0, true},
    {1, 1, 1, 4, 128, 9000, {8900, 0}, 2, false}, {1, 3, 1, 2, 20, 40, {5, 0}, 0, false},
    {1, 2, 1, 1, 512, 20, {4, 0}, 2, false},          {2, 1, 70, 4, 128, 300, {290, 200}, 2, false},
    {2, 1, 70, 3, 128, 600, {590, 300}, 4, false}, {2, 1, 140, 4, 128, 320, {300, 0}, 0, true},
    {2, 3, 2, 4, 128, 320, {190, 0}, 0, true},
};
constexpr int64_t kMantGroup = 64;

/// Device memory of one case.
class Memory {
 public:
  ~Memory() {
    for (void* pointer : pointers_) cudaFree(pointer);
  }

  void* bytes(size_t size) {
    void* pointer = nullptr;
    cudaMalloc(&pointer, size);
    cudaMemset(pointer, 255, size);
    pointers_.push_back(pointer);
    return pointer;
  }

  template <class T>
  void* upload(std::vector<T> const& values) {
    void* const pointer = bytes(values.size() * sizeof(T));
    cudaMemcpy(pointer, values.data(), values.size() * sizeof(T), cudaMemcpyHostToDevice);
    return pointer;
  }

  void* numbers(size_t count) {
    std::vector<__half> values(count);
    for (auto& value : values) value = __float2half(static_cast<float>(std::rand() % 2001 - 1000) / 500.0f);
    return upload(values);
  }

  void* codes(size_t count) {
    std::vector<uint8_t> values(count);
    for (auto& value : values) value = static_cast<uint8_t>(std::rand());
    return upload(values);
  }

  /// Words of M-ANT groups: scales of 1/16 to 1/8 and a type.
  void* words(size_t count) {
    std::vector<uint16_t> values(count);
    for (auto& value : values) value = static_cast<uint16_t>(0x2c00 + (std::rand() & 0x3f0) + std::rand() % 16);
    return upload(values);
  }

  /// A cache [heads, C, D] whose rows from start on are NaN.
  void* cache(Case const& c) {
    size_t const row = static_cast<size_t>(c.head_size), rows = static_cast<size_t>(c.capacity);
    void* const all = numbers(static_cast<size_t>(c.batch * c.kv_heads) * rows * row);
    for (int64_t head = 0; head < c.batch * c.kv_heads; ++head) {
      size_t const first = static_cast<size_t>(c.start[head / c.kv_heads]);
      __half* const begin = static_cast<__half*>(all) + (static_cast<size_t>(head) * rows + first) * row;
      cudaMemset(begin, 255, (rows - first) * row * sizeof(__half));
    }
    return all;
  }

 private:
  std::vector<void*> pointers_;
};

/// Returns how many outputs are no number of a plausible size, or -1.
int64_t run(Case const& c, bool rotary) {
  Memory memory;
  int64_t const heads = c.batch * c.kv_heads, rows = heads * c.capacity, q_heads = c.kv_heads * c.group;
  int64_t const sizes[] = {1, c.batch, c.seq, q_heads, c.kv_heads, c.head_size, c.capacity, 1, rotary};
  size_t const count = static_cast<size_t>(c.batch * c.seq * q_heads * c.head_size);
  size_t const row = static_cast<size_t>(c.head_size), kv = static_cast<size_t>(c.batch * c.seq * c.kv_heads) * row;
  size_t const all = static_cast<size_t>(rows) * row, table = static_cast<size_t>(c.seq) * row;
  void *past[2] = {}, *state[7] = {}, *books[2] = {};
  for (int i = 0; i < 2; ++i) {
    if (c.mant) {
      state[2 * i] = memory.codes(all / 2);
      state[2 * i + 1] = memory.words(all / kMantGroup);
    } else {
      past[i] = c.vector != 0 ? memory.codes(all / static_cast<size_t>(c.vector)) : memory.cache(c);
      books[i] = memory.numbers(static_cast<size_t>(c.kv_heads) * row * 256);
    }
  }
  if (c.mant) {
    state[4] = memory.codes(static_cast<size_t>(heads * kMantGroup) * row);
    state[5] = memory.numbers(static_cast<size_t>(heads * kMantGroup));
    state[6] = memory.numbers(static_cast<size_t>(heads) * 2 * row);
  }
  void* const y = memory.bytes(count * sizeof(__half));
  void* const start = memory.upload(std::vector<int32_t>(c.start, c.start + 2));
  void* const workspace = memory.bytes(static_cast<size_t>(attention_workspace(sizes, c.mant || c.vector != 0)));
  void* const pointers[12] = {memory.numbers(count),
                              memory.numbers(kv),
                              memory.numbers(kv),
                              memory.numbers(table),
                              memory.numbers(table),
                              past[0],
                              past[1],
                              start,
                              y,
                              past[0],
                              past[1],
                              workspace};
  constexpr float kScale = 0.125f;
  void* const center = memory.numbers(static_cast<size_t>(c.kv_heads) * row);
  int const status = c.mant ? attention_mant(sizes, kMantGroup, 0, kScale, pointers, center, state, state, nullptr)
                     : c.vector != 0 ? attention_vq(sizes, c.vector, kScale, pointers, books, nullptr)
                                     : attention_cached(sizes, kScale, pointers, nullptr);
  if (status != 0 || cudaDeviceSynchronize() != cudaSuccess) return -1;
  std::vector<__half> out(count);
  cudaMemcpy(out.data(), y, count * sizeof(__half), cudaMemcpyDeviceToHost);
  int64_t bad = 0;
  for (__half const value : out) bad += std::fabs(__half2float(value)) < 1000.0f ? 0 : 1;  // NaN is not less
  return bad;
}

}  // namespace

int main(int count, char** arguments) {
  int const all = static_cast<int>(sizeof(kCases) / sizeof(kCases[0]));
  int const first = count > 1 ? std::atoi(arguments[1]) : 0, end = count > 2 ? std::atoi(arguments[2]) : all;
  int wrong = 0, cases = 0;
  for (int i = first; i < end; ++i) {
    for (bool const rotary : {false, true}) {
      int64_t const bad = run(kCases[i], rotary);
      ++cases;
      if (bad == 0) continue;
      ++wrong;
      std::printf("case %d, rotary %d: %lld outputs are wrong (-1: an error)\n", i, rotary,
                  static_cast<long long>(bad));
    }
  }
  std::printf("%d cases, %d wrong\n", cases, wrong);
  return wrong == 0 ? 0 : 1;
}
