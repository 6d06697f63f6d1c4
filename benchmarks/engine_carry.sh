#!/bin/sh
# Build what benchmarks/engine_trip.sh needs into carry_trt8/ (not in git): the TensorRT 8 plugin library and the cases.
#   sh benchmarks/engine_carry.sh INCLUDE [arch]
# INCLUDE: folder of TensorRT 8.6's NvInferRuntime.h; arch: 90a (H100, H200; default), 80, 89, ...
# The runtime itself goes into carry_trt8/slim/NN/partNN, parts of at most 50 MiB, one folder each, beside unpack.sh.
set -eu
cd "$(dirname "$0")/.."
include="$1"
arch="${2:-90a}"
folder="out/trt8-$arch" # not in build/, where graphopt looks for libraries of other TensorRTs
cmake -S . -B "$folder" -G Ninja -DCMAKE_BUILD_TYPE=Release "-DGRAPHOPT_CUDA_ARCHS=$arch" \
    "-DTENSORRT8_INCLUDE_DIR=$include" >/dev/null
cmake --build "$folder" --target graphopt_plugins_trt8
mkdir -p carry_trt8/lib carry_trt8/cases
cp "$folder/libgraphopt_plugins_trt8.so" carry_trt8/lib/
git rev-parse --short=12 HEAD > carry_trt8/lib/commit
PYTHONPATH=benchmarks python benchmarks/engine_cases.py carry_trt8/cases
du -sh carry_trt8/lib carry_trt8/cases
