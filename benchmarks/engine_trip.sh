#!/bin/bash
# TensorRT 8.6 engines on a GPU host without a network.
#   bash benchmarks/engine_trip.sh unpack PARTS     rebuild the runtime from the parts in the folder PARTS
#   bash benchmarks/engine_trip.sh check            small models and every op against their references
#   bash benchmarks/engine_trip.sh make             random layers of Llama's shapes in the forms SCHEMES (no GPU needed);
#                                                   PRESET (llama-2-7b), LAYERS (4)
#   bash benchmarks/engine_trip.sh first PARTS      the three above in one call; `make` runs beside `check`
#   bash benchmarks/engine_trip.sh time             build and time them, one after another: builders that share a GPU wait
#                                                   for each other; PHASES, BATCHES, SCHEMES, LEVEL (0) of all but fp16
#   bash benchmarks/engine_trip.sh text GGUF STATISTICS PREPARED    SmolLM2 by engines: text and perplexity in the forms
#                                                   SCHEMES (needs the package gguf; PREPARED is from
#                                                   benchmarks/generate.py prepare)
#   bash benchmarks/engine_trip.sh hold QUEUE       what QUEUE lists, one after another and each within a limit, of what `make`
#                                                   wrote to $WORK/FOLDER (benchmarks/engine_hold.py)
# Needs carry_trt8/lib and carry_trt8/cases (benchmarks/engine_carry.sh). Results in $OUT (default out/engine); models and
# plans in $WORK (default /tmp/engine). Each verb ends by itself after at most SECONDS_LIMIT (default 540). SCHEMES,
# PHASES and BATCHES are lists with commas, as benchmarks/engine.py and generate.py take them.
cd "$(dirname "$0")/.." || exit 1
out="$(realpath -m "${OUT:-out/engine}")"
work="${WORK:-/tmp/engine}"
runtime="${RUNTIME:-/tmp/trt8}"
limit="${SECONDS_LIMIT:-540}"
mkdir -p "$out" "$work"
verb="${1:?unpack, check, make, first, time, text or hold}"
shift

# The folders passes/ and models/ are packages of graphopt once installed.
package() {
    rm -rf "$work/site"
    mkdir -p "$work/site"
    cp -r graphopt "$work/site/graphopt"
    cp -r passes "$work/site/graphopt/passes"
    cp -r models "$work/site/graphopt/models"
    mkdir -p "$work/lib"
    [ -f carry_trt8/lib/libgraphopt_plugins_trt8.so ] && cp carry_trt8/lib/* "$work/lib/"
    export PYTHONPATH="$work/site:$PWD/benchmarks" PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
    export GRAPHOPT_PLUGIN_LIBRARY="$work/lib/libgraphopt_plugins_trt8.so"
    export GRAPHOPT_COMMIT="$(cat "$work/lib/commit" 2>/dev/null)"
}

run() {
    timeout "$limit" "$runtime/bin/trt8-python" benchmarks/engine.py "$@" 2>&1 | tee -a "$out/$verb.log"
    return "${PIPESTATUS[0]}"
}

make_layers() {
    run make --work "$work" --preset "${PRESET:-llama-2-7b}" --layers "${LAYERS:-4}" ${SCHEMES:+--schemes "$SCHEMES"}
}

package
case "$verb" in
first)
    parts="${1:?folder of the parts}"
    bash carry_trt8/unpack.sh "$parts" "$runtime" || exit 1
    (verb=make; make_layers) &
    made=$!
    verb=check
    cp -r carry_trt8/cases "$work/" && run check --cases "$work/cases" --work "$work" --json "$out/check.json"
    status=$?
    wait "$made" || echo "make failed"
    exit "$status"
    ;;
unpack) bash carry_trt8/unpack.sh "${1:?folder of the parts}" "$runtime" ;;
check) cp -r carry_trt8/cases "$work/" && run check --cases "$work/cases" --work "$work" --json "$out/check.json" ;;
make) make_layers ;;
time)
    : "${SCHEMES:=mixq-w4a8,mixq-w8a8,tensorrt_fp16}" "${PHASES:=decode,prefill}" "${BATCHES:=1,4,16,64}" "${LEVEL:=0}"
    driver="$(nvidia-smi --query-gpu=driver_version --format=csv,noheader 2>/dev/null | head -1)"
    run time --work "$work" --json "$out/engine.json" --driver "$driver" --seconds $((limit - 120)) \
        --phases "$PHASES" --batches "$BATCHES" --schemes "$SCHEMES" --level "$LEVEL"
    ;;
hold)
    queue="${1:?file with a list of steps}"
    driver="$(nvidia-smi --query-gpu=driver_version --format=csv,noheader 2>/dev/null | head -1)"
    echo $(($(date +%s) + limit - 15)) > "$work/until"
    "$runtime/bin/trt8-python" benchmarks/engine_hold.py run "$queue" --work "$work" --out "$out" --until "$work/until" \
        --driver "$driver" 2>&1 | tee -a "$out/hold.log"
    exit "${PIPESTATUS[0]}"
    ;;
text)
    gguf="${1:?GGUF file}" statistics="${2:?statistics}" prepared="${3:?folder of benchmarks/generate.py prepare}"
    generate() { timeout "$limit" "$runtime/bin/trt8-python" benchmarks/generate.py "$@" 2>&1 | tee -a "$out/text.log"; }
    schemes="${SCHEMES:-none,mixq-w8a8}"
    generate make "$gguf" "$statistics" "$work/text" --schemes "$schemes"
    generate build "$work/text" --schemes "$schemes"
    plans=()
    for scheme in ${schemes//,/ }; do plans+=("$scheme=$work/text/$scheme.plan"); done
    generate run "$prepared" "${plans[@]}" --json "$out/generate.json"
    ;;
*) echo "unknown verb $verb" >&2; exit 2 ;;
esac
