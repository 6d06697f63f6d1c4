#include "vq/jit/generate.h"

#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <map>
#include <mutex>
#include <sstream>

#include "common/nvrtc.h"
#include "vq/jit/launch.h"
#include "vq/jit/sources.h"
#include "vq/linear/plan.h"

namespace graphopt::vq::jit {
namespace {

namespace fs = std::filesystem;

constexpr int kMostGroups = 2;

/// Empty where no folder can be named.
fs::path cache_folder() {
  for (auto const& [variable, below] :
       {std::pair{"GRAPHOPT_CACHE", ""}, {"XDG_CACHE_HOME", "graphopt"}, {"HOME", ".cache/graphopt"}}) {
    char const* const value = std::getenv(variable);
    if (value != nullptr && *value != '\0') return fs::path(value) / below / "kernels";
  }
  return {};
}

/// "vq-4-8-2-f16-sm90-<digest of all sources>.bin"
fs::path cache_file(Format const& f, int arch, std::string const& source) {
  fs::path const folder = cache_folder();
  if (folder.empty()) return {};
  std::ostringstream name;
  name << "vq-" << f.vector << '-' << f.bits << '-' << f.residuals << (f.tiled ? "-tiles" : "")
       << (f.dtype == DType::kFloat16 ? "-f16" : "-bf16") << "-sm" << arch << '-' << std::hex
       << digest_of(source, sources_digest()) << ".bin";
  return folder / name.str();
}

/// False where there is no such file, or it is damaged: then it will be written again.
bool read_cached(fs::path const& path, Format const& format, Image* image) {
  std::ifstream file(path, std::ios::binary);
  std::ostringstream bytes;
  if (!file.good() || !(bytes << file.rdbuf())) return false;
  Kernels found;
  if (decode(bytes.str(), &found) != Status::kOk || !(found.format == format)) return false;
  *image = found.images.front();
  return true;
}

/// A folder that cannot be written costs time, nothing else.
void write_cached(fs::path const& path, Format const& format, Image const& image) {
  if (path.empty()) return;
  std::error_code error;
  fs::create_directories(path.parent_path(), error);
  fs::path partial = path;
  partial += "." + std::to_string(getpid());
  std::ofstream file(partial, std::ios::binary);
  file << encode({format, {image}});
  file.close();
  if (file.good()) {
    fs::rename(partial, path, error);
  } else {
    fs::remove(partial, error);
  }
}

bool compile(Format const& format, Spec const& spec, Image* image, std::string* problem) {
  NvrtcResult compiled;
  if (!nvrtc_compile(source_of(format, spec), sources(), spec.arch, &compiled, problem)) return false;
  *image = {spec, {}, {}, std::move(compiled.cubin)};
  for (NvrtcKernel const& kernel : compiled.kernels) {
    int const which = kernel.name == kFew16 ? 1 : 0;
    image->registers[which] = kernel.registers;
    image->spilled_bytes[which] = kernel.spilled_bytes;
  }
  return true;
}

int spilled(Image const& image) { return image.spilled_bytes[0] + image.spilled_bytes[1]; }

bool make_image(Format const& format, int arch, Image* image, std::string* problem) {
  Spec spec;
  if (!make_spec(format, arch, kMostGroups, &spec)) {
    *problem = "codebooks and X find no place in the shared memory of compute capability " + std::to_string(arch / 10) +
               "." + std::to_string(arch % 10);
    return false;
  }
  fs::path const file = cache_file(format, arch, source_of(format, spec));
  if (!file.empty() && read_cached(file, format, image)) return true;
  if (!compile(format, spec, image, problem)) return false;
  // Half as many threads have twice the registers.
  Image other;
  if (spilled(*image) > 0 && spec.groups > 1 && make_spec(format, arch, spec.groups / 2, &spec) &&
      compile(format, spec, &other, problem) && spilled(other) < spilled(*image)) {
    *image = std::move(other);
  }
  write_cached(file, format, *image);
  return true;
}

}  // namespace

std::vector<int> library_archs() {
  std::vector<int> archs;
  std::istringstream list(GRAPHOPT_ARCHS);  // "80,90a"
  for (std::string arch; std::getline(list, arch, ',');) archs.push_back(std::atoi(arch.c_str()));
  return archs;
}

bool generate(Format const& format, std::vector<int> const& archs, Kernels* kernels, std::string* problem) {
  static std::mutex mutex;
  static std::map<std::string, Image> made;  // of this process: a model has many layers of few formats
  std::lock_guard<std::mutex> const lock(mutex);
  *kernels = {format, {}};
  std::string first;
  for (int const arch : archs) {
    std::string const key =
        name_of(format) + std::to_string(static_cast<int>(format.dtype)) + "-" + std::to_string(arch);
    auto found = made.find(key);
    if (found == made.end()) {
      Image image;
      if (make_image(format, arch, &image, problem)) {
        found = made.emplace(key, std::move(image)).first;
      } else if (first.empty()) {
        first = *problem;
      }
    }
    if (found != made.end()) kernels->images.push_back(found->second);
  }
  *problem = kernels->images.empty() ? first : std::string();
  return !kernels->images.empty();
}

Status generate_for(LinearParams params, std::vector<int> const& archs, std::string* kernels, std::string* problem) {
  params.codebooks = reinterpret_cast<void*>(uintptr_t{256});  // only asked for its alignment
  Format format;
  if (!format_of(params, &format) || preset_of(params) != Preset::kNone) return Status::kOk;
  Kernels made;
  if (generate(format, archs, &made, problem)) {
    *kernels = encode(made);
    return install(*kernels);
  }
  *problem =
      name_of(format) +
      " has no kernel compiled ahead of time and none could be generated, so its linears run a slow one: " + *problem;
  return Status::kOk;
}

}  // namespace graphopt::vq::jit
