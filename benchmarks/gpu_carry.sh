#!/bin/sh
# Build what benchmarks/gpu_trip.sh needs into carry/ (not in git): the libraries and host_v3 for one architecture, and
# bitsandbytes, a peer, without its libraries for other GPUs and toolkits.
#   sh benchmarks/gpu_carry.sh [arch]          arch: 90a (H100, H200; default), 80, 89, 120, ...
set -eu
cd "$(dirname "$0")/.."
arch="${1:-90a}"
cmake -S . -B "build/carry-$arch" -G Ninja -DCMAKE_BUILD_TYPE=Release "-DGRAPHOPT_CUDA_ARCHS=$arch" >/dev/null
cmake --build "build/carry-$arch"
mkdir -p carry
cp "build/carry-$arch/libgraphopt_plugins.so" "build/carry-$arch/host_v3" carry/
git rev-parse --short=12 HEAD > carry/commit
if [ ! -d carry/bitsandbytes ]; then
    wheels="$(mktemp -d)"
    python3 -m pip download --quiet --no-deps --only-binary=:all: --python-version 3.12 \
        --platform manylinux_2_24_x86_64 --dest "$wheels" 'bitsandbytes==0.50.2'
    python3 -m zipfile -e "$wheels"/bitsandbytes-*.whl "$wheels/unpacked"
    mkdir "$wheels/kept"
    cp "$wheels"/unpacked/bitsandbytes/libbitsandbytes_cuda130.so "$wheels/kept/"
    rm "$wheels"/unpacked/bitsandbytes/lib*.so
    cp "$wheels"/kept/* "$wheels/unpacked/bitsandbytes/"
    cp -r "$wheels/unpacked/bitsandbytes" "$wheels"/unpacked/bitsandbytes-*.dist-info carry/
    rm -rf "$wheels"
fi
du -sh carry
