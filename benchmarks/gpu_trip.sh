#!/bin/bash
# Everything that needs a GPU, in one run of at most ten minutes: correctness, compute-sanitizer, first timings.
#   bash benchmarks/gpu_trip.sh [correctness|sanitizer|timing ...]     results under $OUT (default out/gpu)
# Needs carry/ (benchmarks/gpu_carry.sh) and a python3 with torch, numpy and ml_dtypes. Every stage has its own limit, so
# that one that fails or hangs does not take the others with it.
cd "$(dirname "$0")/.." || exit 1
out="${OUT:-out/gpu}"
mkdir -p "$out"
export PYTHONPATH="$PWD/benchmarks" PYTHONUNBUFFERED=1 OPENBLAS_NUM_THREADS=2 OMP_NUM_THREADS=2
export GRAPHOPT_COMMIT="$(cat carry/commit 2>/dev/null)"
library="$PWD/carry/libgraphopt_plugins.so"
host="$PWD/carry/host_v3"
chmod +x "$host"
status=0

correctness() {
    timeout 240 python3 benchmarks/correctness.py --library "$library" --host "$host" \
        --json "$out/correctness.json" 2>&1 | tee "$out/correctness.log"
    return "${PIPESTATUS[0]}"
}

# Cases of every kernel, small, through the C++ host: no framework's own kernels are in the way.
sanitizer() {
    local cases failed=0 tool
    cases="$(mktemp -d)"
    python3 benchmarks/correctness.py --quick --write-cases "$cases" || return 1
    : > "$out/sanitizer.log"
    for tool in memcheck racecheck initcheck synccheck; do
        echo "== $tool" >> "$out/sanitizer.log"
        timeout 45 compute-sanitizer --tool "$tool" --error-exitcode 9 --print-limit 20 \
            "$host" "$library" "$cases" >> "$out/sanitizer.log" 2>&1
        code=$?
        echo "== $tool exit $code" >> "$out/sanitizer.log"
        [ "$code" = 0 ] || failed=1
        echo "$tool: exit $code, $(grep 'ERROR SUMMARY\|RACECHECK SUMMARY' "$out/sanitizer.log" | tail -1)"
    done
    return "$failed"
}

timing() {
    timeout 150 python3 benchmarks/mixq_first.py --library "$library" --json "$out/mixq_first.json" 2>&1 |
        tee "$out/mixq_first.log"
    return "${PIPESTATUS[0]}"
}

[ $# -gt 0 ] || set -- correctness sanitizer timing
for stage in "$@"; do
    echo "===== $stage"
    start=$SECONDS
    "$stage" || { echo "===== $stage FAILED"; status=1; }
    echo "===== $stage took $((SECONDS - start)) s"
done
exit "$status"
