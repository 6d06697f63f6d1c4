#!/bin/sh
# Print the path of an nvcc: $CUDACXX, the PATH, /usr/local/cuda, then the nvidia-cuda-nvcc wheel of a Python.
#   cmake/find_nvcc.sh [python]        python: the interpreter whose packages to search; default python3
# The wheels (no system toolkit needed):
#   pip install 'nvidia-cuda-nvcc==13.0.*' 'nvidia-cuda-runtime==13.0.*' 'nvidia-cuda-cccl==13.0.*' \
#               'nvidia-cuda-crt==13.0.*' 'nvidia-nvvm==13.0.*'
set -eu
python="${1:-python3}"
for candidate in "${CUDACXX:-}" "$(command -v nvcc || true)" /usr/local/cuda/bin/nvcc; do
    if [ -n "$candidate" ] && [ -x "$candidate" ]; then
        echo "$candidate"
        exit 0
    fi
done
for site in $("$python" -c 'import site, sysconfig; print(sysconfig.get_path("purelib"), *site.getsitepackages())' 2>/dev/null || true); do
    for candidate in "$site"/nvidia/cu13/bin/nvcc "$site"/nvidia/cuda_nvcc/bin/nvcc; do
        if [ -x "$candidate" ]; then
            echo "$candidate"
            exit 0
        fi
    done
done
echo "no nvcc was found: install a CUDA toolkit, pass -DCMAKE_CUDA_COMPILER=PATH, or install the wheels named in cmake/find_nvcc.sh" >&2
exit 1
