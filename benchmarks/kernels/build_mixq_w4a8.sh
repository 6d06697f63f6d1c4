#!/bin/sh
# Build carry/libmixq_w4a8.so for mixq_w4a8.py.   sh benchmarks/kernels/build_mixq_w4a8.sh [nvcc] [arch]
set -eu
cd "$(dirname "$0")/../.."
nvcc=${1:-nvcc}
arch=${2:-90a}
lib=$(dirname "$(command -v "$nvcc")")/../lib  # where the wheels of nvcc keep what a toolkit has in lib64
source=trt_plugins/mixq/linear_w4a8
mkdir -p carry
"$nvcc" -std=c++17 -O3 -DNDEBUG -lineinfo -I trt_plugins "-gencode=arch=compute_$arch,code=sm_$arch" -Xptxas -v \
  -Xcompiler -fPIC,-fvisibility=default -shared -cudart static "-L$lib" benchmarks/kernels/mixq_w4a8.cu \
  $source/launch.cu $source/launch_f16.cu $source/launch_bf16.cu $source/launch_f32.cu trt_plugins/common/check.cpp \
  -o carry/libmixq_w4a8.so 2>&1 | grep -E "warning|error|undefined|multiple|spill|Used" | sort | uniq -c
