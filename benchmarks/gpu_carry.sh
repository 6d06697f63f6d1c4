#!/bin/sh
# Build what benchmarks/gpu_trip.sh needs into carry/ (not in git): the libraries and host_v3 for one architecture.
#   sh benchmarks/gpu_carry.sh [arch]          arch: 90a (H100, H200; default), 80, 89, 120, ...
set -eu
cd "$(dirname "$0")/.."
arch="${1:-90a}"
cmake -S . -B "build/carry-$arch" -G Ninja -DCMAKE_BUILD_TYPE=Release "-DGRAPHOPT_CUDA_ARCHS=$arch" >/dev/null
cmake --build "build/carry-$arch"
mkdir -p carry
cp "build/carry-$arch/libgraphopt_plugins.so" "build/carry-$arch/host_v3" carry/
git rev-parse --short HEAD > carry/commit
du -sh carry
