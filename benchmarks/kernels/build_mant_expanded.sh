#!/bin/sh
# Build carry/libmant_expanded.so, and carry/libmant_expanded_bounded.so, whose waits trap after two seconds instead of
# hanging.
# Usage: sh benchmarks/kernels/build_mant_expanded.sh [nvcc]
set -eu
cd "$(dirname "$0")/../.."
nvcc=${1:-nvcc}
out=${OUT_DIR:-carry}
mkdir -p "$out"
sources="benchmarks/kernels/mant_expanded.cu trt_plugins/common/check.cpp trt_plugins/common/tensor_map.cpp
  trt_plugins/common/gemm/gemm.cpp trt_plugins/common/gemm/sm90_*.cu trt_plugins/mant/linear/sm90_f16.cu
  trt_plugins/mant/linear/sm90_bf16.cu trt_plugins/mant/linear/sm90_bytes.cu trt_plugins/mant/linear/sm90_expand.cu"
build() { # output, more flags
  output=$1
  shift
  # shellcheck disable=SC2086 # a list of files
  "$nvcc" -std=c++17 -O3 -DNDEBUG -DGRAPHOPT_SM90A -lineinfo -I trt_plugins -gencode=arch=compute_90a,code=sm_90a \
    -Xcompiler -fPIC,-fvisibility=hidden -shared -cudart static "$@" $sources -o "$out/$output"
}
build libmant_expanded.so
build libmant_expanded_bounded.so -DGRAPHOPT_WAIT_LIMIT_NS=2000000000ull
