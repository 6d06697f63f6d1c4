#!/bin/sh
# Build carry/libmixq_w4a8.so for mixq_w4a8.py, and carry/libmixq_w4a8_bounded.so, whose waits trap after two seconds
# instead of hanging.   sh benchmarks/kernels/build_mixq_w4a8.sh [nvcc] [folder for object files]
set -eu
cd "$(dirname "$0")/../.."
nvcc=${1:-nvcc}
objects=${2:-build/mixq_w4a8}
lib=$(dirname "$(command -v "$nvcc")")/../lib  # where the wheels of nvcc keep what a toolkit has in lib64
source=trt_plugins/mixq/linear_w4a8
mkdir -p carry "$objects/bounded"
compile() { # source, object, more flags
  input=$1 object=$2
  shift 2
  rm -f "$object"
  "$nvcc" -std=c++17 -O3 -DNDEBUG -DGRAPHOPT_SM90A -lineinfo -I trt_plugins -gencode=arch=compute_90a,code=sm_90a \
    -Xptxas -v -Xcompiler -fPIC,-fvisibility=default "$@" -c "$input" -o "$object" 2>&1 |
    { grep -E "warning|error|C75|spill|Used" || true; } | sort | uniq -c
}
link() { # folder of the kernels with waits, library
  "$nvcc" -shared -cudart static "-L$lib" $plain "$1"/sm90_f16.o "$1"/sm90_bf16.o -o "carry/$2"
}
plain=
for input in benchmarks/kernels/mixq_w4a8.cu $source/launch.cu $source/launch_f16.cu $source/launch_bf16.cu \
  $source/launch_f32.cu trt_plugins/common/check.cpp trt_plugins/common/tensor_map.cpp; do
  object="$objects/$(basename "${input%.*}").o"
  plain="$plain $object"  # nothing else that lies there: objects of other sources would replace functions of these
  test "$object" -nt "$input" && test -z "$(find trt_plugins -newer "$object" -name '*.*h')" || compile "$input" "$object"
done
mkdir -p "$objects/free"
for type in f16 bf16; do
  compile $source/sm90_$type.cu "$objects/free/sm90_$type.o"
  compile $source/sm90_$type.cu "$objects/bounded/sm90_$type.o" -DGRAPHOPT_WAIT_LIMIT_NS=2000000000ull
done
link "$objects/free" libmixq_w4a8.so
link "$objects/bounded" libmixq_w4a8_bounded.so
