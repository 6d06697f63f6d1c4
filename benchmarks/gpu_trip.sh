#!/bin/bash
# Everything that needs a GPU, by stages; each has a limit of its own, so that one that fails or hangs does not take the
# others with it.
#   bash benchmarks/gpu_trip.sh [STAGE ...]     results under $OUT (default out/gpu)
#     correctness  every kernel against its numpy evaluator, through the C API and TensorRT's plugin interface (1 min)
#     quick        the same on fewer sizes
#     sanitizer    compute-sanitizer over every kernel
#     online       online outlier prediction: exact sets, sequences, graphs, streams, plugins; then what it costs (1 min)
#     mant         the linears of M-ANT: against their numpy evaluators, under compute-sanitizer, and graphopt bench kernels
#                  --suite mant (3 min)
#     attention    attention over caches, from build_attention.sh: against evaluators, under compute-sanitizer, timed (2 min)
#     vq           kernels of vector-quantized weights, from build_vq.sh: against decoded weights, under compute-sanitizer,
#                  VQ-LLM's optimizations one by one, and graphopt bench kernels --suite vq; then vq_hadamard (4 min)
#     vq_hadamard  their transform and what it is fused with: against evaluators, under compute-sanitizer, and its suite
#     fused        norms and activations by themselves: the same
#     timing       graphopt bench kernels, the suites of MixQ (3 min)
#     counters     hardware counters of MixQ's kernels
#     all          correctness sanitizer online mant attention timing counters (default)
#     mixq         quick timing counters
# Needs carry/ (benchmarks/gpu_carry.sh) and a python3 with torch, numpy, ml_dtypes, typer and rich.
cd "$(dirname "$0")/.." || exit 1
out="$(realpath -m "${OUT:-out/gpu}")"
mkdir -p "$out"
export PYTHONPATH="$PWD:$PWD/benchmarks:$PWD/carry" PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
export OPENBLAS_NUM_THREADS=2 OMP_NUM_THREADS=2
export GRAPHOPT_COMMIT="$(cat carry/commit 2>/dev/null)"
export GRAPHOPT_PLUGIN_LIBRARY="$PWD/carry/libgraphopt_plugins.so"
host="$PWD/carry/host_v3"
chmod +x "$host"
status=0

check() {
    timeout 240 python3 benchmarks/correctness.py --library "$GRAPHOPT_PLUGIN_LIBRARY" --host "$host" \
        --json "$out/correctness.json" "$@" 2>&1 | tee "$out/correctness.log"
    return "${PIPESTATUS[0]}"
}
correctness() { check; }
quick() { check --quick; }

# Cases of every kernel, small, through the C++ host: no framework's own kernels are in the way.
sanitizer() {
    local cases
    cases="$(mktemp -d)"
    python3 benchmarks/correctness.py --quick --write-cases "$cases" || return 1
    sanitize "$cases" "$out/sanitizer.log"
}

# sanitize CASES LOG: host_v3 on a folder of cases, under every tool.
sanitize() {
    local cases="$1" log="$2" failed=0 tool code
    : > "$log"
    for tool in memcheck racecheck initcheck synccheck; do
        echo "== $tool" >> "$log"
        timeout 60 compute-sanitizer --tool "$tool" --error-exitcode 9 --print-limit 20 \
            "$host" "$GRAPHOPT_PLUGIN_LIBRARY" "$cases" >> "$log" 2>&1
        code=$?
        echo "== $tool exit $code" >> "$log"
        [ "$code" = 0 ] || failed=1
        echo "$tool: exit $code, $(grep 'ERROR SUMMARY\|RACECHECK SUMMARY' "$log" | tail -1)"
    done
    return "$failed"
}

online() {
    local failed=0 cases
    timeout 100 python3 benchmarks/online_plugins.py --library "$GRAPHOPT_PLUGIN_LIBRARY" --host "$host" 2>&1 |
        tee "$out/online_plugins.log"
    [ "${PIPESTATUS[0]}" = 0 ] || failed=1
    timeout 150 python3 benchmarks/online.py --library "$GRAPHOPT_PLUGIN_LIBRARY" --json "$out/online.json" 2>&1 |
        tee "$out/online.log"
    [ "${PIPESTATUS[0]}" = 0 ] || failed=1
    cases="$(mktemp -d)"
    python3 benchmarks/online_plugins.py --write-cases "$cases" && sanitize "$cases" "$out/online_sanitizer.log" ||
        failed=1
    return "$failed"
}

mant() {
    local failed=0 cases
    timeout 100 python3 benchmarks/mant.py --library "$GRAPHOPT_PLUGIN_LIBRARY" --host "$host" \
        --json "$out/mant_correctness.json" 2>&1 | tee "$out/mant_correctness.log"
    [ "${PIPESTATUS[0]}" = 0 ] || failed=1
    cases="$(mktemp -d)"
    python3 benchmarks/mant.py --write-cases "$cases" && sanitize "$cases" "$out/mant_sanitizer.log" || failed=1
    bench mant
    return "$failed"
}

attention() {
    local failed=0 tool
    timeout 60 python3 benchmarks/kernels/attention_mant.py --output "$out/attention" 2>&1 | tee "$out/attention_mant.log"
    [ "${PIPESTATUS[0]}" = 0 ] || failed=1
    for tool in memcheck racecheck synccheck; do
        timeout 60 compute-sanitizer --tool "$tool" --error-exitcode 9 --print-limit 20 carry/attention_small \
            > "$out/attention_$tool.log" 2>&1 || failed=1
        grep 'cases\|ERROR SUMMARY\|RACECHECK SUMMARY' "$out/attention_$tool.log"
    done
    timeout 150 python3 benchmarks/kernels/attention.py --output "$out/attention" 2>&1 | tee "$out/attention.log"
    [ "${PIPESTATUS[0]}" = 0 ] || failed=1
    return "$failed"
}

# bench SUITE: graphopt bench kernels; sets `failed`.
bench() {
    timeout 150 python3 -m graphopt bench kernels --suite "$1" --output "$out/$1.json" 2>&1 | tee "$out/$1.log"
    [ "${PIPESTATUS[0]}" = 0 ] || failed=1
}

vq() {
    local failed=0 run tool preset
    timeout 60 python3 benchmarks/kernels/vq.py --output "$out/vq_check" --check-only 2>&1 | tee "$out/vq_check.log"
    [ "${PIPESTATUS[0]}" = 0 ] || failed=1
    for run in memcheck {racecheck,synccheck}\ {0..11}; do
        read -r tool preset <<< "$run"
        timeout 60 compute-sanitizer --tool "$tool" --error-exitcode 9 --print-limit 20 \
            carry/vq_small carry/libvq.so $preset > "$out/vq_$tool$preset.log" 2>&1 || failed=1
        grep 'cases\|ERROR SUMMARY\|RACECHECK SUMMARY' "$out/vq_$tool$preset.log"
    done
    timeout 30 carry/vq_ablation | tee "$out/vq_ablation.json"
    [ "${PIPESTATUS[0]}" = 0 ] || failed=1
    bench vq
    vq_hadamard || failed=1
    return "$failed"
}

vq_hadamard() { by_itself vq_hadamard hadamard python3 benchmarks/kernels/hadamard.py; }
fused() { by_itself fused fused python3 benchmarks/kernels/fused.py --host "$host"; }

# by_itself SUITE NAME COMMAND ...: the checks of COMMAND, carry/NAME_small under every tool, SUITE.
by_itself() {
    local suite="$1" name="$2" failed=0 tool
    timeout 60 "${@:3}" --output "$out" --library "$GRAPHOPT_PLUGIN_LIBRARY" \
        2>&1 | tee "$out/${name}_check.log"
    [ "${PIPESTATUS[0]}" = 0 ] || failed=1
    for tool in memcheck racecheck synccheck; do
        timeout 60 compute-sanitizer --tool "$tool" --error-exitcode 9 --print-limit 20 \
            "carry/${name}_small" "$GRAPHOPT_PLUGIN_LIBRARY" > "$out/${name}_$tool.log" 2>&1 || failed=1
        grep 'cases\|ERROR SUMMARY\|RACECHECK SUMMARY' "$out/${name}_$tool.log"
    done
    bench "$suite"
    return "$failed"
}

timing() {
    local failed=0 suite
    for suite in mixq_quantize mixq_residual mixq; do
        bench "$suite"
    done
    return "$failed"
}

# What MixQ's kernels wait for.
counters() {
    timeout 100 python3 benchmarks/counters.py --json "$out/mixq_counters.json" 2>&1 | tee "$out/counters.txt"
    return "${PIPESTATUS[0]}"
}

[ $# -gt 0 ] || set -- all
stages=()
for name in "$@"; do
    case "$name" in
    all) stages+=(correctness sanitizer online mant attention timing counters) ;;
    mixq) stages+=(quick timing counters) ;;
    *) stages+=("$name") ;;
    esac
done
for stage in "${stages[@]}"; do
    echo "===== $stage"
    start=$SECONDS
    "$stage" || { echo "===== $stage FAILED"; status=1; }
    echo "===== $stage took $((SECONDS - start)) s"
done
exit "$status"
