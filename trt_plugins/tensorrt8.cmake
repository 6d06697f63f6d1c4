# libgraphopt_plugins_trt8.so: the same ops for TensorRT 8.6, whose plugins are IPluginV2DynamicExt. Built only where
# -DTENSORRT8_INCLUDE_DIR=<folder of TensorRT 8.6's NvInferRuntime.h> is given (folder `include` of tag v8.6.0 of
# https://github.com/NVIDIA/TensorRT). Everything but the adapter is taken from graphopt_plugins as compiled.
if(NOT EXISTS "${TENSORRT8_INCLUDE_DIR}/NvInferRuntime.h")
  message(FATAL_ERROR "TENSORRT8_INCLUDE_DIR is ${TENSORRT8_INCLUDE_DIR}, which holds no NvInferRuntime.h")
endif()
file(STRINGS "${TENSORRT8_INCLUDE_DIR}/NvInferVersion.h" version_lines REGEX "^#define NV_TENSORRT_(MAJOR|MINOR|PATCH) ")
list(TRANSFORM version_lines REPLACE "^#define NV_TENSORRT_[A-Z]+ ([0-9]+).*" "\\1")
list(JOIN version_lines "." tensorrt8_version)
if(NOT tensorrt8_version MATCHES "^8\\.6\\.")
  message(FATAL_ERROR "TENSORRT8_INCLUDE_DIR holds the headers of TensorRT ${tensorrt8_version}, not 8.6")
endif()
message(STATUS "TensorRT 8 headers ${tensorrt8_version}: ${TENSORRT8_INCLUDE_DIR}")

add_library(graphopt_plugins_trt8 SHARED
  capi.cpp
  registry_v2.cpp
  common/plugin_v2.cpp
  "$<FILTER:$<TARGET_OBJECTS:graphopt_plugins>,EXCLUDE,/(capi|registry|plugin_v3)[.]cpp>"
  "$<$<TARGET_EXISTS:graphopt_sm90>:$<TARGET_OBJECTS:graphopt_sm90>>")
# The objects' CUDA code decides the linker's language, which CMake cannot see in a list of objects.
get_target_property(runtime graphopt_plugins CUDA_RUNTIME_LIBRARY)
set_target_properties(graphopt_plugins_trt8 PROPERTIES
  CXX_STANDARD 17 CXX_STANDARD_REQUIRED ON CXX_EXTENSIONS OFF LINKER_LANGUAGE CXX CUDA_RUNTIME_LIBRARY "${runtime}"
  CXX_VISIBILITY_PRESET hidden VISIBILITY_INLINES_HIDDEN ON
  LIBRARY_OUTPUT_DIRECTORY "${CMAKE_BINARY_DIR}")
get_target_property(definitions graphopt_plugins COMPILE_DEFINITIONS)
list(FILTER definitions EXCLUDE REGEX "^GRAPHOPT_TENSORRT_VERSION=")
target_compile_definitions(graphopt_plugins_trt8 PRIVATE
  ${definitions} GRAPHOPT_TENSORRT_VERSION="${tensorrt8_version}")
get_target_property(libraries graphopt_plugins LINK_LIBRARIES)
list(REMOVE_ITEM libraries tensorrt_headers)
target_link_libraries(graphopt_plugins_trt8 PRIVATE ${libraries})
target_include_directories(graphopt_plugins_trt8 PRIVATE "${CMAKE_CURRENT_SOURCE_DIR}")
target_include_directories(graphopt_plugins_trt8 SYSTEM PRIVATE "${TENSORRT8_INCLUDE_DIR}")
target_compile_options(graphopt_plugins_trt8 PRIVATE -Wall -Wextra -Wno-deprecated-declarations)
target_link_options(graphopt_plugins_trt8 PRIVATE LINKER:-z,defs LINKER:--exclude-libs,ALL)
install(TARGETS graphopt_plugins_trt8 LIBRARY DESTINATION "${CMAKE_INSTALL_LIBDIR}")
