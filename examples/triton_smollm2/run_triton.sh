#!/bin/sh
# Start Triton with this repository, for this machine only: to serve others, add --http-address=0.0.0.0 and
# --grpc-address=0.0.0.0 behind something that knows who may ask. Further arguments go to tritonserver.
#   TRITONSERVER   the program (default: tritonserver), with its whole path
set -eu
here=$(CDPATH= cd -- "$(dirname -- "$0")" && pwd)
# Python looks for packages in the folder that the server is started in. Models are those of this folder: in any other
# mode, clients could load some of their own, code included.
cd "$here"
exec "${TRITONSERVER:-tritonserver}" \
  --model-repository="$here/models" \
  --model-control-mode=none \
  --disable-auto-complete-config \
  --exit-on-error=true \
  --exit-timeout-secs=10 \
  --http-address=127.0.0.1 \
  --grpc-address=127.0.0.1 \
  --metrics-address=127.0.0.1 \
  "$@"
