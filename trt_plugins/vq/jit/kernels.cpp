#include "vq/jit/kernels.h"

#include <cstring>
#include <sstream>
#include <type_traits>

#include "vq/jit/sources.h"

namespace graphopt::vq::jit {
namespace {

constexpr char kMagic[8] = {'V', 'Q', 'K', 'E', 'R', 'N', '0', '1'};
constexpr int32_t kMostImages = 32;

struct Header {
  char magic[8];
  uint64_t digest;   // of everything behind it
  uint64_t sources;  // sources_digest()
  Format format;
  int32_t images;
};

struct ImageHeader {
  Spec spec;
  int32_t registers[2];
  int32_t spilled_bytes[2];
  int64_t bytes;
};

constexpr size_t kDigested = offsetof(Header, sources);

template <class T>
void append(std::string* bytes, T const& value) {
  static_assert(std::is_trivially_copyable_v<T>);
  bytes->append(reinterpret_cast<char const*>(&value), sizeof(value));
}

/// The next value of `bytes`, which `at` then is behind; false where they end before.
template <class T>
bool take(std::string const& bytes, size_t* at, T* value) {
  if (bytes.size() - *at < sizeof(T)) return false;
  std::memcpy(static_cast<void*>(value), bytes.data() + *at, sizeof(T));
  *at += sizeof(T);
  return true;
}

Status decode_images(std::string const& bytes, size_t at, int32_t count, Kernels* kernels) {
  for (int32_t i = 0; i < count; ++i) {
    ImageHeader header;
    if (!take(bytes, &at, &header)) return Status::kDamaged;
    if (header.bytes < 0 || static_cast<uint64_t>(header.bytes) > bytes.size() - at) return Status::kDamaged;
    kernels->images.push_back({header.spec,
                               {header.registers[0], header.registers[1]},
                               {header.spilled_bytes[0], header.spilled_bytes[1]},
                               bytes.substr(at, static_cast<size_t>(header.bytes))});
    at += static_cast<size_t>(header.bytes);
  }
  return at == bytes.size() ? Status::kOk : Status::kDamaged;
}

}  // namespace

uint64_t digest_of(std::string const& bytes, uint64_t seed) {
  constexpr uint64_t kBasis = 0xcbf29ce484222325u, kPrime = 0x100000001b3u;  // FNV-1a
  uint64_t hash = kBasis ^ seed;
  for (char const byte : bytes) hash = (hash ^ static_cast<unsigned char>(byte)) * kPrime;
  return hash;
}

uint64_t sources_digest() {
  static uint64_t const digest = [] {
    uint64_t hash = 0;
    for (NvrtcHeader const& header : sources()) hash = digest_of(header.text, digest_of(header.name, hash));
    return hash;
  }();
  return digest;
}

std::string encode(Kernels const& kernels) {
  std::string body;
  for (Image const& image : kernels.images) {
    append(&body, ImageHeader{image.spec,
                              {image.registers[0], image.registers[1]},
                              {image.spilled_bytes[0], image.spilled_bytes[1]},
                              static_cast<int64_t>(image.cubin.size())});
    body += image.cubin;
  }
  Header header;
  std::memset(static_cast<void*>(&header), 0, sizeof(header));  // padding is digested too
  std::memcpy(header.magic, kMagic, sizeof(kMagic));
  header.sources = sources_digest();
  header.format = kernels.format;
  header.images = static_cast<int32_t>(kernels.images.size());
  std::string bytes;
  append(&bytes, header);
  bytes += body;
  header.digest = digest_of(bytes.substr(kDigested));
  std::memcpy(bytes.data() + offsetof(Header, digest), &header.digest, sizeof(header.digest));
  return bytes;
}

Status decode(std::string const& bytes, Kernels* kernels) {
  Header header;
  size_t at = 0;
  if (!take(bytes, &at, &header)) return Status::kDamaged;
  if (std::memcmp(header.magic, kMagic, sizeof(kMagic)) != 0) return Status::kDamaged;
  if (digest_of(bytes.substr(kDigested)) != header.digest) return Status::kDamaged;
  if (header.sources != sources_digest()) return Status::kOtherLibrary;
  if (header.images < 1 || header.images > kMostImages) return Status::kDamaged;
  *kernels = {header.format, {}};
  return decode_images(bytes, at, header.images, kernels);
}

std::string describe(Kernels const& kernels) {
  std::ostringstream json;
  Format const& f = kernels.format;
  json << "{\"format\": \"" << name_of(f) << "\", \"dtype\": \""
       << (f.dtype == DType::kFloat16 ? "float16" : "bfloat16") << "\", \"images\": [";
  char const* comma = "";
  for (Image const& image : kernels.images) {
    Spec const& s = image.spec;
    json << comma << "{\"compute_capability\": " << s.arch << ", \"groups\": " << s.groups
         << ", \"copies\": " << s.copies << ", \"n_shared\": " << s.cached << ", \"tables\": " << s.tables(f)
         << ", \"shared_bytes\": " << s.table_bytes(f) << ", \"panel_bytes\": " << s.panel_bytes(f)
         << ", \"tokens\": " << s.tokens << ", \"registers\": [" << image.registers[0] << ", " << image.registers[1]
         << "], \"spilled_bytes\": [" << image.spilled_bytes[0] << ", " << image.spilled_bytes[1]
         << "], \"bytes\": " << image.cubin.size() << "}";
    comma = ", ";
  }
  json << "]}";
  return json.str();
}

}  // namespace graphopt::vq::jit
