# Defines the interface target tensorrt_headers and GRAPHOPT_TENSORRT_VERSION.
#
# In this order: -DTENSORRT_INCLUDE_DIR, TensorRT_ROOT (CMake or environment), a system install, and last the TensorRT
# 10.14.1 headers (Apache-2.0) inside the wheel kernel-lens 2.0.1, fetched by pip and checked against its hash. The
# plugins need headers only, and one binary loads into TensorRT 10, 11 and RTX.
set(TENSORRT_WHEEL "kernel-lens==2.0.1")
set(TENSORRT_WHEEL_SHA256 07cc714e8b5e7f34b672f7c7fad93febe7c747be5837ba276b1527370134ffe0)

if(NOT TENSORRT_INCLUDE_DIR)
  find_path(TENSORRT_INCLUDE_DIR NvInferRuntime.h
            HINTS "${TensorRT_ROOT}" "$ENV{TensorRT_ROOT}" "${CMAKE_BINARY_DIR}/tensorrt_headers"
            PATH_SUFFIXES include kernel_lens/include/tensorrt
            DOC "folder of NvInferRuntime.h")
endif()

if(NOT TENSORRT_INCLUDE_DIR)
  set(folder "${CMAKE_BINARY_DIR}/tensorrt_headers")
  find_program(GRAPHOPT_PYTHON NAMES python3 python)
  message(STATUS "Fetching TensorRT's headers from the wheel ${TENSORRT_WHEEL}")
  file(MAKE_DIRECTORY "${folder}")
  execute_process(COMMAND "${GRAPHOPT_PYTHON}" -m pip download --quiet --no-deps --dest "${folder}" "${TENSORRT_WHEEL}"
                  RESULT_VARIABLE status ERROR_VARIABLE reason OUTPUT_QUIET)
  file(GLOB wheel "${folder}/kernel_lens-*.whl")
  if(NOT status EQUAL 0 OR NOT wheel)
    message(FATAL_ERROR "TensorRT's headers were not found and ${TENSORRT_WHEEL} could not be downloaded; "
                        "pass -DTENSORRT_INCLUDE_DIR=<folder of NvInferRuntime.h>")
  endif()
  file(SHA256 "${wheel}" digest)
  if(NOT digest STREQUAL TENSORRT_WHEEL_SHA256)
    file(REMOVE "${wheel}")
    message(FATAL_ERROR "the wheel ${TENSORRT_WHEEL} has the SHA-256 ${digest}, not the pinned one; "
                        "pass -DTENSORRT_INCLUDE_DIR=<folder of NvInferRuntime.h>")
  endif()
  file(ARCHIVE_EXTRACT INPUT "${wheel}" DESTINATION "${folder}" PATTERNS "kernel_lens/include/tensorrt/*")
  set(TENSORRT_INCLUDE_DIR "${folder}/kernel_lens/include/tensorrt" CACHE PATH "folder of NvInferRuntime.h" FORCE)
endif()

if(NOT EXISTS "${TENSORRT_INCLUDE_DIR}/NvInferRuntime.h")
  message(FATAL_ERROR "TENSORRT_INCLUDE_DIR is ${TENSORRT_INCLUDE_DIR}, which holds no NvInferRuntime.h")
endif()

set(GRAPHOPT_TENSORRT_VERSION "")
foreach(part MAJOR MINOR PATCH)
  # From 10.14 the number hides behind TRT_<part>_ENTERPRISE.
  file(STRINGS "${TENSORRT_INCLUDE_DIR}/NvInferVersion.h" line REGEX "^#define (TRT_${part}_ENTERPRISE|NV_TENSORRT_${part}) [0-9]+")
  string(REGEX MATCH " ([0-9]+)" ignored "${line}")
  list(APPEND GRAPHOPT_TENSORRT_VERSION "${CMAKE_MATCH_1}")
endforeach()
list(JOIN GRAPHOPT_TENSORRT_VERSION "." GRAPHOPT_TENSORRT_VERSION)
message(STATUS "TensorRT headers ${GRAPHOPT_TENSORRT_VERSION}: ${TENSORRT_INCLUDE_DIR}")

add_library(tensorrt_headers INTERFACE)
target_include_directories(tensorrt_headers SYSTEM INTERFACE "${TENSORRT_INCLUDE_DIR}")
