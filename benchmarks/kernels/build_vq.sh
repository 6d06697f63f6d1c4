#!/bin/sh
# Build carry/libvq.so for vq.py, and carry/vq_small, carry/vq_ablation, carry/hadamard_small and carry/fused_small, which need no
# Python.
#   sh benchmarks/kernels/build_vq.sh [nvcc] [arch] [object folder]
set -eu
cd "$(dirname "$0")/../.."
nvcc=${1:-nvcc}
arch=${2:-90a}
objects=${3:-carry/vq}
hopper=$([ "$arch" = 90a ] && echo -DGRAPHOPT_SM90A || true)
mkdir -p carry "$objects"
sources="benchmarks/kernels/vq.cu trt_plugins/common/check.cpp trt_plugins/vq/linear/plan.cpp trt_plugins/vq/linear/expand.cpp
    trt_plugins/vq/linear/launch.cu trt_plugins/vq/linear/few_bf16.cu trt_plugins/vq/linear/few_f16.cu"
[ -z "$hopper" ] || sources="$sources trt_plugins/common/tensor_map.cpp trt_plugins/vq/linear/sm90_bf16.cu trt_plugins/vq/linear/sm90_f16.cu
    trt_plugins/vq/linear/expand_bf16.cu trt_plugins/vq/linear/expand_f16.cu trt_plugins/common/gemm/gemm.cpp
    trt_plugins/common/gemm/sm90_i8_f16.cu trt_plugins/common/gemm/sm90_i8_bf16.cu trt_plugins/common/gemm/sm90_f16_f16.cu
    trt_plugins/common/gemm/sm90_f16_bf16.cu trt_plugins/common/gemm/sm90_bf16_bf16.cu"
for source in $sources; do
    object="$objects/$(echo "$source" | tr / _).o"
    "$nvcc" -std=c++17 -O3 -DNDEBUG $hopper -lineinfo -I trt_plugins "-gencode=arch=compute_$arch,code=sm_$arch" \
        -Xptxas -v -Xcompiler -fPIC -c "$source" -o "$object" > "$object.log" 2>&1 || { cat "$object.log"; exit 1; }
    grep -E "warning|spill|Used" "$object.log" | sort | uniq -c || true
done
lib=$(dirname "$(command -v "$nvcc")")/../lib  # where the wheels of nvcc keep what a toolkit has in lib64
"$nvcc" -shared -cudart static "-L$lib" "$objects"/*.o -o carry/libvq.so
"$nvcc" -std=c++17 -O2 -cudart static "-L$lib" benchmarks/kernels/vq_small.cu -ldl -o carry/vq_small
"$nvcc" -std=c++17 -O2 -cudart static "-L$lib" benchmarks/kernels/hadamard_small.cpp -ldl -o carry/hadamard_small
"$nvcc" -std=c++17 -O2 -cudart static "-L$lib" benchmarks/kernels/fused_small.cpp -ldl -o carry/fused_small
"$nvcc" -std=c++17 -O3 -DNDEBUG $hopper -cudart static "-L$lib" -I trt_plugins \
    "-gencode=arch=compute_$arch,code=sm_$arch" benchmarks/kernels/vq_ablation.cu trt_plugins/common/check.cpp -o carry/vq_ablation
