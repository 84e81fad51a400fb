#!/usr/bin/env bash
# The kernel tests and benches of this folder on the first GPU: ./run.sh, or some parts in turn: ./run.sh tests programs.
# Needs an NVIDIA driver; uses compute-sanitizer and PyTorch where it finds them. Leaves logs, results.json and results.md,
# a table with ratios to peers and floors, in results/; fails if anything failed.
set -uo pipefail
cd "$(dirname "$0")"
export LD_LIBRARY_PATH=${LD_LIBRARY_PATH:+$LD_LIBRARY_PATH:}$PWD/lib GPU_TESTS=required CRITERION_HOME=$PWD/results/criterion
parts=${*:-tests sanitizers programs benches peers}
for part in $parts; do
    case $part in
        tests | sanitizers | programs | benches | peers) ;;
        *) echo "part: expected tests, sanitizers, programs, benches or peers, got $part" >&2; exit 2 ;;
    esac
done
(($#)) || rm -rf results
mkdir -p results
[ ! -f programs.tar.xz ] || [ -d tests ] || tar -xJf programs.tar.xz || python3 -m tarfile -e programs.tar.xz .

# stage NAME COMMAND...: its output to results/NAME.log, its outcome to results/NAME.stage. One that hangs fails.
stage() {
    local name=$1 started=$SECONDS passed=true
    shift
    timeout "${STAGE_SECONDS:-600}" "$@" > "results/$name.log" 2>&1 || { passed=false; tail -n 20 "results/$name.log"; }
    echo "\"$name\": {\"passed\": $passed, \"seconds\": $((SECONDS - started))}" > "results/$name.stage"
    echo "$name: passed $passed, $((SECONDS - started)) s"
}

# The cases that a test has for a GPU; there must be some.
tests() {
    for test in tests/*; do
        stage "test-$(basename "$test")" sh -c '"$0" ::cuda && ! "$0" ::cuda --list | grep -q "^0 tests"' "$test"
    done
}

sanitizers() {
    command -v compute-sanitizer > /dev/null || return 0
    # A kernel is looked for in one module after the other: that most have none of its name is no error.
    for tool in "memcheck --report-api-errors no" racecheck; do
        for test in tests/*; do
            stage "${tool%% *}-$(basename "$test")" compute-sanitizer --tool $tool --error-exitcode 1 "$test" ::cuda --test-threads=1
        done
    done
}

# A whole step by phase, draws at the aims' size (1e6 sequences of 30 tokens, 30 outputs), and the papers' setting from data
# to policy.
programs() {
    for batch in 2048 65536; do stage "step-$batch" ./step --device cuda:0 --batch "$batch"; done
    stage draw ./draw --device cuda:0 --batch 1000000
    stage motif ./motif --device cuda:0 --motif 10001011111000 --hidden 200 --layers 2 --features 1001111 --data-size 5000 \
        --batch 64 --learning-rate 0.003 --samples 32000 --out results/motif
}

benches() {
    for bench in benches/*; do stage "bench-$(basename "$bench")" "$bench" --bench --noplot ${BENCH_OPTIONS:-}; done
}

# The same work in PyTorch; in Liger, CCE and QuACK too where they are installed.
peers() {
    python3 -c "import torch; assert torch.cuda.is_available()" 2> /dev/null || return 0
    for batch in 2048 65536; do
        peer "step-$batch" dpg --batch "$batch"
        peer "step-$batch-graph" dpg --batch "$batch" --graph
        peer "step-$batch-compiled" dpg --batch "$batch" --compile
    done
    peer draw dpg --sample-only --vocab 30 --batch 1000000
    peer draw-graph dpg --sample-only --vocab 30 --batch 1000000 --graph
    peer features features --rows 1000000
    for dtype in float32 bfloat16; do
        peer "logits-$dtype" logits --dtype "$dtype" --shapes 1048576x256 8192x128256
        peer "logits-$dtype-compiled" logits --dtype "$dtype" --shapes 1048576x256 8192x128256 --compile
    done
    peer head head
}
peer() { stage "peer-$1" python3 "peers/$2_torch.py" --device cuda "${@:3}"; }

# Medians in nanoseconds, as criterion writes them; a bench's name is group/function or group/function/parameter.
medians() {
    for file in results/criterion/*/*/new/estimates.json results/criterion/*/*/*/new/estimates.json; do
        [ -f "$file" ] || continue
        name=${file#results/criterion/}
        echo "\"${name%/new/estimates.json}\": $(sed \
            's/.*"median":{"confidence_interval":{[^}]*},"point_estimate":\([^,]*\),.*/\1/' "$file")"
    done
}

about() { nvidia-smi --id=0 --query-gpu="$1" --format=csv,noheader 2> /dev/null || echo unknown; }
# Lines, or the lines of JSON in logs, as elements of a list.
list() { paste -sd , -; }
json() { grep -hs '^{' "$@" | list; }

for part in $parts; do "$part"; done
passed=true
! grep -qs '"passed": false' results/*.stage || passed=false
[ ! -f results/motif/report.json ] || tr -d '\n' < results/motif/report.json > results/motif-report.log
cat > results/results.json << JSON
{"commit": "$(cat commit)", "date": "$(date -u +%FT%TZ)", "gpu": "$(about name)", "driver": "$(about driver_version)",
 "passed": $passed, "stages": {$(cat results/*.stage | list)},
 "median_ns": {$(medians | list)},
 "programs": [$(json results/step-*.log results/draw.log results/motif-report.log)],
 "peers": [$(json results/peer-*.log)]}
JSON
./gpu-results results/results.json | tee results/results.md
$passed
