#!/bin/sh
# Build carry/libmixq_sm90.so and carry/libmixq_sm90_bounded.so, whose waits trap after two seconds instead of hanging.
# Usage: sh benchmarks/kernels/build_mixq_sm90.sh [nvcc]
set -eu
cd "$(dirname "$0")/../.."
nvcc=${1:-nvcc}
mkdir -p carry
build() { # output, more flags
  output=$1
  shift
  "$nvcc" -std=c++17 -O3 -DNDEBUG -lineinfo -I trt_plugins -gencode=arch=compute_90a,code=sm_90a -Xptxas -v \
    -Xcompiler -fPIC,-fvisibility=hidden -shared -cudart static "$@" benchmarks/kernels/mixq_sm90.cu \
    trt_plugins/mixq/linear/sm90_f16.cu trt_plugins/mixq/linear/sm90_bf16.cu trt_plugins/common/check.cpp \
    trt_plugins/common/tensor_map.cpp -o "carry/$output"
}
build libmixq_sm90.so 2>&1 | tee carry/mixq_sm90_ptxas.log | grep -E "warning|error|C75|spill|Used" | sort | uniq -c
build libmixq_sm90_bounded.so -DGRAPHOPT_WAIT_LIMIT_NS=2000000000ull 2>&1 | { grep -E "warning|error|C75" || true; }
