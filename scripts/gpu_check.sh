#!/usr/bin/env bash
# Everything that a CUDA GPU can tell, in under 8 minutes on an H200, the most valuable first: GPU tests, projector, model,
# operations, then what else fits. Run it again to go on where it ended.
#
#   scripts/gpu_check.sh [--out DIR]
#
# Needs torch, triton, transformers, pytest and hypothesis; no installation of this package and no network. Results go to
# kernels/benchmarks/results and into the tables of the READMEs; --out copies results and logs to a folder after every
# step. Finished steps are remembered in $STATE until a source file changes.
# PYTHON: interpreter, default python3. LIMIT: seconds in all, default 470. STATE: folder, default runs/gpu_check.
# Exit status: 0 no step failed (one that ran out of time did not), 1 one did, 2 there is no GPU or an option is unknown.
set -uo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
limit=${LIMIT:-470}
state=${STATE:-runs/gpu_check}
out=
while [ $# -gt 0 ]; do
    case $1 in
    --out) out=${2:?--out needs a folder} && shift 2 ;;
    *) echo "gpu_check: unknown option $1" >&2 && exit 2 ;;
    esac
done
export PYTHONPATH=.:kernels:eval PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1

if ! "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' 2>/dev/null; then
    echo "gpu_check: $python has no torch that sees a CUDA device; nothing was checked or measured" >&2
    exit 2
fi
sources=$(find kernels llava_stf tests -name '*.py' -print0 | sort -z | xargs -0 cat | sha256sum | cut -c1-12)
state=$state/$sources
mkdir -p "$state"
: >"$state/summary.txt"
failed=0

copy_out() {
    [ -n "$out" ] || return 0
    mkdir -p "$out"
    cat "$state"/*.log >"$out/log.txt" 2>/dev/null
    cp "$state/summary.txt" "$out"
    cp kernels/benchmarks/results/*.json "$out" 2>/dev/null
}
trap copy_out EXIT

step() { # NAME SECONDS COMMAND...; {} in the command stands for the seconds after which it should begin nothing new
    local name=$1 seconds=$2 left=$((limit - SECONDS)) started=$SECONDS result
    shift 2
    if [ -e "$state/$name.done" ]; then
        result="done before"
    elif [ "$left" -lt 15 ]; then
        result="no time left"
    else
        seconds=$((seconds < left ? seconds : left))
        echo "== $name (at most $seconds s)"
        timeout -k 5 "$seconds" "${@//\{\}/$((seconds * 2 / 3))}" 2>&1 | tee "$state/$name.log"
        case ${PIPESTATUS[0]} in
        0) result="done" && touch "$state/$name.done" ;;
        3) result="incomplete, run again to go on" ;;
        124 | 137) result="out of time, run again to go on" ;;
        *) result="FAILED" && failed=1 ;;
        esac
    fi
    printf '%-20s %4d s  %s\n' "$name" $((SECONDS - started)) "$result" >>"$state/summary.txt"
    copy_out
}

bench() { # NAME SECONDS SCRIPT OPTIONS...
    step "$1" "$2" "$python" "kernels/benchmarks/$3.py" --budget "{}" "${@:4}"
}

# Most of the tests' time is the compilation of kernels, which has the machine's cores to itself.
workers=()
if "$python" -c 'import xdist' 2>/dev/null; then workers=(-n 4); fi
first=(--widths 7b --batches 1 16 64 --directions forward)
quick=(--implementations ours eager conv)
step tests 120 "$python" -m pytest -q -m gpu "${workers[@]}" --continue-on-collection-errors
bench projector 60 bench_projector "${first[@]}" "${quick[@]}"
bench model 75 bench_model --modes eager
bench operations 60 bench_ops "${first[@]}" "${quick[@]}"
bench projector-compiled 120 bench_projector "${first[@]}"
bench model-compiled 150 bench_model
bench projector-all 150 bench_projector
bench operations-all 150 bench_ops
limit=$((limit + 15))
rm -f "$state/tables.done"
step tables 30 "$python" kernels/benchmarks/tables.py

echo "== summary"
cat "$state/summary.txt"
exit "$failed"
