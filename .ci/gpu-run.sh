#!/usr/bin/env bash
# The kernel tests and benches of this folder on the first GPU: ./run.sh. Needs an NVIDIA driver; uses compute-sanitizer
# and PyTorch where it finds them. Leaves logs and results.json in results/; fails if anything failed.
set -uo pipefail
cd "$(dirname "$0")"
export LD_LIBRARY_PATH=${LD_LIBRARY_PATH:+$LD_LIBRARY_PATH:}$PWD/lib GPU_TESTS=required CRITERION_HOME=$PWD/results/criterion
rm -rf results
mkdir results
stages=() figures=() failed=0

# stage NAME COMMAND...: its output to results/NAME.log, its outcome to results.json.
stage() {
    local name=$1 started=$SECONDS passed=true
    shift
    "$@" > "results/$name.log" 2>&1 || { passed=false failed=1; tail -n 20 "results/$name.log"; }
    stages+=("\"$name\": {\"passed\": $passed, \"seconds\": $((SECONDS - started))}")
    echo "$name: passed $passed, $((SECONDS - started)) s"
}

on_gpu() { ./tests/kernels ::cuda "$@" && ! ./tests/kernels ::cuda --list | grep -q '^0 tests'; }
sanitized() { compute-sanitizer --tool "$1" --error-exitcode 1 ./tests/kernels ::cuda --test-threads=1; }

stage kernels on_gpu
if command -v compute-sanitizer > /dev/null; then
    stage memcheck sanitized memcheck
    stage racecheck sanitized racecheck
fi

# Medians in nanoseconds, as criterion writes them; the bench's name is group/function.
for bench in benches/*; do stage "bench-$(basename "$bench")" "$bench" --bench --noplot; done
for file in results/criterion/*/*/new/estimates.json; do
    [ -f "$file" ] || continue
    name=${file#results/criterion/}
    median=$(sed 's/.*"median":{"confidence_interval":{[^}]*},"point_estimate":\([^,]*\),.*/\1/' "$file")
    figures+=("\"${name%/new/estimates.json}\": $median")
done

# The same step in PyTorch: its last line is JSON.
if python3 -c "import torch; assert torch.cuda.is_available()" 2> /dev/null; then
    stage peer-torch python3 peers/dpg_torch.py --device cuda
    peer=$(tail -n 1 results/peer-torch.log | grep '^{')
fi

about() { nvidia-smi --id=0 --query-gpu="$1" --format=csv,noheader 2> /dev/null || echo unknown; }
join() { local IFS=,; echo "$*"; }
cat > results/results.json << JSON
{"commit": "$(cat commit)", "date": "$(date -u +%FT%TZ)", "gpu": "$(about name)", "driver": "$(about driver_version)",
 "passed": $( ((failed)) && echo false || echo true), "stages": {$(join "${stages[@]}")},
 "median_ns": {$(join "${figures[@]}")}, "peer_torch": ${peer:-null}}
JSON
cat results/results.json
exit "$failed"
