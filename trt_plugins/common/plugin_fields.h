// What both plugin interfaces share: the log of the TensorRT that loaded the library, and reading an op's fields. The
// types are those of the TensorRT headers that the including library is compiled against.
#pragma once

#include <NvInferRuntime.h>

#include <atomic>
#include <cstring>
#include <exception>
#include <memory>
#include <string>
#include <utility>

#include "common/op.h"

namespace graphopt {

inline std::atomic<nvinfer1::ILoggerFinder*> g_logger_finder{nullptr};

/// Logger of the TensorRT that loaded the library; messages go nowhere until it is set.
inline void set_logger_finder(nvinfer1::ILoggerFinder* finder) { g_logger_finder.store(finder); }

/// Who takes messages where there is no such logger: TensorRT-RTX 1.7 finds none.
using LogFunction = void (*)(int32_t severity, char const* message);
inline std::atomic<LogFunction> g_log_function{nullptr};

inline void log(nvinfer1::ILogger::Severity severity, std::string const& message) {
  nvinfer1::ILoggerFinder* finder = g_logger_finder.load();
  nvinfer1::ILogger* logger = finder == nullptr ? nullptr : finder->findLogger();
  if (logger != nullptr) {
    logger->log(severity, message.c_str());
  } else if (LogFunction const function = g_log_function.load(); function != nullptr) {
    function(static_cast<int32_t>(severity), message.c_str());
  }
}

inline void log_error(std::string const& message) { log(nvinfer1::ILogger::Severity::kERROR, message); }

/// Run `body` and turn an exception (memory exhausted) into `fallback`: TensorRT calls through noexcept functions.
template <class Result, class Body>
Result guarded(char const* op, Result fallback, Body&& body) noexcept {
  try {
    return body();
  } catch (std::exception const& e) {
    try {
      log_error(std::string("graphopt plugin ") + op + ": " + e.what());
    } catch (...) {
      return fallback;
    }
    return fallback;
  }
}

inline nvinfer1::PluginFieldType plugin_type(FieldType type) {
  return type == FieldType::kInt32 ? nvinfer1::PluginFieldType::kINT32 : nvinfer1::PluginFieldType::kFLOAT32;
}

/// The field `name` of `given` if it holds a value; null otherwise.
inline nvinfer1::PluginField const* find_field(nvinfer1::PluginFieldCollection const& given, char const* name) {
  nvinfer1::PluginField const* found = nullptr;
  for (int32_t i = 0; i < given.nbFields; ++i) {
    if (std::strcmp(given.fields[i].name, name) == 0) found = &given.fields[i];
  }
  return found == nullptr || found->data == nullptr || found->length < 1 ? nullptr : found;
}

/// Read the op's fields from a node's attributes or from a serialized plugin.
inline Status read_fields(OpClass const& op, nvinfer1::PluginFieldCollection const& given, Attributes* attributes) {
  for (size_t i = 0; i < op.fields.size(); ++i) {
    nvinfer1::PluginField const* found = find_field(given, op.fields[i].name);
    if (found == nullptr && op.fields[i].type == FieldType::kInt32) continue;
    if (found == nullptr || found->type != plugin_type(op.fields[i].type)) {
      log_error(std::string("graphopt plugin ") + op.name + ": field " + op.fields[i].name +
                (found == nullptr ? " is missing" : " has the wrong type"));
      return Status::kBadAttribute;
    }
    void* target = op.fields[i].type == FieldType::kInt32 ? static_cast<void*>(&attributes->ints[i])
                                                          : static_cast<void*>(&attributes->floats[i]);
    std::memcpy(target, found->data, sizeof(int32_t));
  }
  return Status::kOk;
}

/// Have kernels generated for these operands, where the op can do that, and keep them in `attributes`.
inline Status generate_kernels(OpClass const& op, TensorView const* inputs, Attributes* attributes) {
  if (op.generate == nullptr) return Status::kOk;
  std::string kernels, problem;
  Status const status = op.generate(op, *attributes, inputs, &kernels, &problem);
  if (!problem.empty()) log(nvinfer1::ILogger::Severity::kWARNING, problem);
  attributes->kernels = kernels.empty() ? nullptr : std::make_shared<std::string const>(std::move(kernels));
  return status;
}

/// Take `bytes`, kernels that an engine has kept, into use and into `attributes`.
inline Status install_kernels(OpClass const& op, char const* bytes, size_t length, Attributes* attributes) {
  auto const kernels = std::make_shared<std::string const>(bytes, length);
  Status const status = op.install == nullptr ? Status::kBadAttribute : op.install(*kernels);
  if (status != Status::kOk) log_error(std::string("graphopt plugin ") + op.name + ": " + status_string(status));
  attributes->kernels = kernels;
  return status;
}

}  // namespace graphopt
