#!/usr/bin/env bash
# The kernel tests and benches of this folder on the first GPU: ./run.sh. Needs an NVIDIA driver; uses compute-sanitizer
# and PyTorch where it finds them. Leaves logs, results.json and results.md, a table with ratios to peers and floors, in
# results/; fails if anything failed.
set -uo pipefail
cd "$(dirname "$0")"
export LD_LIBRARY_PATH=${LD_LIBRARY_PATH:+$LD_LIBRARY_PATH:}$PWD/lib GPU_TESTS=required CRITERION_HOME=$PWD/results/criterion
rm -rf results
mkdir results
[ ! -f programs.tar.gz ] || tar -xzf programs.tar.gz
stages=() figures=() programs=() failed=0

# stage NAME COMMAND...: its output to results/NAME.log, its outcome to results.json.
stage() {
    local name=$1 started=$SECONDS passed=true
    shift
    "$@" > "results/$name.log" 2>&1 || { passed=false failed=1; tail -n 20 "results/$name.log"; }
    stages+=("\"$name\": {\"passed\": $passed, \"seconds\": $((SECONDS - started))}")
    echo "$name: passed $passed, $((SECONDS - started)) s"
}

on_gpu() { "$1" ::cuda && ! "$1" ::cuda --list | grep -q '^0 tests'; }
sanitized() { compute-sanitizer --tool "$1" --error-exitcode 1 "$2" ::cuda --test-threads=1; }

for test in tests/*; do stage "test-$(basename "$test")" on_gpu "$test"; done
if command -v compute-sanitizer > /dev/null; then
    for test in tests/*; do
        stage "memcheck-$(basename "$test")" sanitized memcheck "$test"
        stage "racecheck-$(basename "$test")" sanitized racecheck "$test"
    done
fi

# Medians in nanoseconds, as criterion writes them; the bench's name is group/function or group/function/parameter.
for bench in benches/*; do stage "bench-$(basename "$bench")" "$bench" --bench --noplot; done
for file in results/criterion/*/*/new/estimates.json results/criterion/*/*/*/new/estimates.json; do
    [ -f "$file" ] || continue
    name=${file#results/criterion/}
    median=$(sed 's/.*"median":{"confidence_interval":{[^}]*},"point_estimate":\([^,]*\),.*/\1/' "$file")
    figures+=("\"${name%/new/estimates.json}\": $median")
done

# A whole step by phase, and the papers' setting from data to policy; each last line, and the report, is JSON.
for batch in 2048 65536; do
    stage "step-$batch" ./step --device cuda:0 --batch "$batch"
    programs+=("$(grep '^{' "results/step-$batch.log" || echo null)")
done
# The aims' size: 1e6 sequences of 30 tokens, 30 outputs.
stage draw ./draw --device cuda:0 --batch 1000000
programs+=("$(grep '^{' results/draw.log || echo null)")
stage motif ./motif --device cuda:0 --motif 10001011111000 --hidden 200 --layers 2 --features 1001111 --data-size 5000 \
    --batch 64 --learning-rate 0.003 --samples 32000 --out results/motif
[ -f results/motif/report.json ] && programs+=("$(tr -d '\n' < results/motif/report.json)")

# The same work in PyTorch; each prints lines of JSON.
peer() {
    stage "peer-$1" python3 "peers/$2_torch.py" --device cuda "${@:3}"
    while read -r line; do peers+=("$line"); done < <(grep '^{' "results/peer-$1.log")
}
peers=()
if python3 -c "import torch; assert torch.cuda.is_available()" 2> /dev/null; then
    for batch in 2048 65536; do
        peer "step-$batch" dpg --batch "$batch"
        peer "step-$batch-graph" dpg --batch "$batch" --graph
        peer "step-$batch-compiled" dpg --batch "$batch" --compile
    done
    peer draw dpg --sample-only --vocab 30 --batch 1000000
    peer draw-graph dpg --sample-only --vocab 30 --batch 1000000 --graph
    peer features features --rows 1000000
    for dtype in float32 bfloat16; do
        peer "logits-$dtype" logits --dtype "$dtype" --shapes 65536x256 8192x128256
        peer "logits-$dtype-compiled" logits --dtype "$dtype" --shapes 65536x256 8192x128256 --compile
    done
    # Liger, CCE and QuACK too where they are installed.
    peer head head
fi

about() { nvidia-smi --id=0 --query-gpu="$1" --format=csv,noheader 2> /dev/null || echo unknown; }
join() { local IFS=,; echo "$*"; }
cat > results/results.json << JSON
{"commit": "$(cat commit)", "date": "$(date -u +%FT%TZ)", "gpu": "$(about name)", "driver": "$(about driver_version)",
 "passed": $( ((failed)) && echo false || echo true), "stages": {$(join "${stages[@]}")},
 "median_ns": {$(join "${figures[@]}")}, "programs": [$(join "${programs[@]}")], "peers": [$(join "${peers[@]}")]}
JSON
cat results/results.json
./gpu-results results/results.json | tee results/results.md
exit "$failed"
