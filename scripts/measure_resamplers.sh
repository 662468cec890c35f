#!/usr/bin/env bash
# Compares trained ways to bring a LLaVA to 16 of 64 vision tokens, under one recipe: docs/reduction.md.
#
#   scripts/measure_resamplers.sh [FOLDER]    default: runs/resamplers; a run whose result is there is not run again
#
# Start of all is the bundled LLaVA; its tower stays frozen, projector and LLM are trained on drawn images. SEEDS="0 1 2",
# STEPS=300 optimizer steps of 16 images each, IMAGES=300 held-out ones asked about.
set -euo pipefail
out=${1:-runs/resamplers}
python=${PYTHON:-.venv/bin/python}
export OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false
steps=${STEPS:-300}

[ -f "$out/data/instruct.json" ] ||
    "$python" -m llava_stf.world --out "$out/data" --count 4800 --seed 31

train() { # KIND OPTIONS
    local run=$out/$1-$seed
    [ -f "$run/config.json" ] || {
        TIMEFORMAT='%U %S'
        { time "$python" -m llava_stf.training.finetune --output "$run" --data "$out/data/instruct.json" --resume \
            --stage instruct --base tiny-full --learning-rate 3e-4 --projector-learning-rate 1e-3 --adam-beta2 0.98 \
            --per-device-batch-size 16 --max-steps "$steps" --save-steps "$steps" --logging-steps 20 \
            --attn-implementation eager --cpu-threads 1 --seed "$seed" "${@:2}" > "$run.log" 2>&1; } 2> "$run.seconds"
    }
    [ -f "$run/accuracy.json" ] || "$python" -m llava_stf_eval.tables.training evaluate "$run" --images "${IMAGES:-300}"
}

for seed in ${SEEDS:-0 1 2}; do
    train stf --vision-tokens 16
    train stf-random --vision-tokens 16 --init random
    train tokenpacker --vision-tokens 16 --reduction tokenpacker --init random
    train mqt --vision-tokens 16 --reduction mqt --init random
    train pool --vision-tokens 16 --reduction pool
    train m3 --vision-tokens 16 --reduction m3 --vision-tokens-schedule all
    train mqt-nested --vision-tokens 16,4,1 --reduction mqt --init random
    train stf-nested --vision-tokens 16,4,1
done
"$python" -m llava_stf_eval.tables.resamplers "$out"
