#!/bin/sh
# Build carry/libattention.so for attention.py, and carry/attention_small, which needs no Python.
#   sh benchmarks/kernels/build_attention.sh [nvcc] [arch] [object folder]
set -eu
cd "$(dirname "$0")/../.."
nvcc=${1:-nvcc}
arch=${2:-90a}
objects=${3:-carry/attention}
# Kernels may start early where all code is for Hopper.
hopper=$([ "$arch" = 90a ] && echo -DGRAPHOPT_SM90A || true)
lib=$(dirname "$(command -v "$nvcc")")/../lib  # where the wheels of nvcc keep what a toolkit has in lib64
mkdir -p carry "$objects"
for source in benchmarks/kernels/attention.cu trt_plugins/common/check.cpp trt_plugins/common/tensor_map.cpp \
    trt_plugins/attention/*/*.cu; do
    case $source in */sm90_*) [ "$arch" = 90a ] || continue ;; esac
    object="$objects/$(echo "$source" | tr / _).o"
    if [ -z "$(find "$object" -newer "$source" 2>/dev/null)" ] ||
        [ -n "$(find trt_plugins/attention trt_plugins/common -name '*.*h' -newer "$object")" ]; then
        "$nvcc" -std=c++17 -O3 -DNDEBUG $hopper -lineinfo -I trt_plugins "-gencode=arch=compute_$arch,code=sm_$arch" \
            -Xptxas -v -Xcompiler -fPIC,-fvisibility=default -c "$source" -o "$object" > "$object.log" 2>&1 || {
            cat "$object.log"
            exit 1
        }
        grep -E "warning|spill|Used" "$object.log" | sort | uniq -c || true
    fi
done
"$nvcc" -shared -cudart static "-L$lib" "$objects"/*.o -o carry/libattention.so
"$nvcc" -std=c++17 -O2 -cudart static "-L$lib" benchmarks/kernels/attention_small.cu -Lcarry -lattention \
    -Xlinker -rpath,'$ORIGIN' -o carry/attention_small
