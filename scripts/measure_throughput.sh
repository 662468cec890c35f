#!/usr/bin/env bash
# Throughput, share of time that waits for data, and peak memory of the tiny recipe with two workers: docs/training.md.
#
#   scripts/measure_throughput.sh [FOLDER]      default: runs/throughput
set -euo pipefail
root=$(dirname "$0")/..
out=${1:-runs/throughput}
python=${PYTHON:-$root/.venv/bin/python}
export OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false

[ -f "$out/data/instruct.json" ] || "$python" -m llava_stf.world --out "$out/data" --count 4800 --seed 31
for stage in instruct distill; do
    base=tiny
    [ $stage = instruct ] || base=tiny-full
    "$python" - "$python" -m llava_stf.training.finetune --config "$root/scripts/configs/tiny.yaml" --base $base \
        --vision-tokens 16 --stage $stage --learning-rate none --data "$out/data/instruct.json" --output "$out/$stage" \
        --max-steps 120 --logging-steps 60 --num-workers 2 --overwrite << 'RUN'
import resource, subprocess, sys
subprocess.run(sys.argv[1:], check=True)
print(f"peak memory {resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20:.2f} GiB, of the largest process")
RUN
done
