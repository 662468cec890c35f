#!/usr/bin/env bash
# Compares trained ways to bring a LLaVA to 16 of 64 vision tokens, under one recipe: docs/reduction.md.
#
#   scripts/measure_resamplers.sh [FOLDER]    default: runs/resamplers; a run whose result is there is not run again
#
# Start of all is the bundled LLaVA; its tower stays frozen. Each projector is aligned first, alone: it learns to give the
# mean of the plain projector's outputs in each window and the answers of all tokens (ALIGN=600 steps of stage distill).
# Then it is trained with the LLM on right answers (STEPS=1200 of stage instruct). Each step is 8 drawn images, at all
# budgets where a kind has several. SEEDS="0 1 2", KINDS names the projectors, IMAGES=300 held-out images are asked about.
set -euo pipefail
out=${1:-runs/resamplers}
python=${PYTHON:-.venv/bin/python}
export OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false
align=${ALIGN:-600} steps=${STEPS:-1200}

[ -f "$out/data/instruct.json" ] || "$python" -m llava_stf.world --out "$out/data" --count 4800 --seed 31

finetune() { # RUN STEPS OPTIONS
    local run=$out/$1
    [ -f "$run/config.json" ] || "$python" -m llava_stf.training.finetune --output "$run" --resume \
        --data "$out/data/instruct.json" --per-device-batch-size 8 --max-steps "$2" --save-steps "$2" --logging-steps 20 \
        --vision-tokens-schedule all --adam-beta2 0.98 --bf16 false --cpu-threads 1 --seed "$seed" "${@:3}" > "$run.log" 2>&1
}
train() { # KIND OPTIONS
    finetune "$1-align-$seed" "$align" --stage distill --feature-weight 1 --base tiny-full --learning-rate 2e-3 "${@:2}"
    finetune "$1-$seed" "$steps" --stage instruct --base "$out/$1-align-$seed" --learning-rate 3e-4 \
        --projector-learning-rate 1e-3
    [ -f "$out/$1-$seed/accuracy.json" ] ||
        "$python" -m llava_stf_eval.tables.training evaluate "$out/$1-$seed" --images "${IMAGES:-300}"
}
kind() { # NAME
    case $1 in
        stf) train stf --vision-tokens 16 ;;
        stf-random) train stf-random --vision-tokens 16 --init random ;;
        tokenpacker) train tokenpacker --vision-tokens 16 --reduction tokenpacker --init random ;;
        mqt) train mqt --vision-tokens 16 --reduction mqt --init random ;;
        pool) train pool --vision-tokens 16 --reduction pool ;;
        m3) train m3 --vision-tokens 16 --reduction m3 ;;
        mqt-nested) train mqt-nested --vision-tokens 16,4,1 --reduction mqt --init random ;;
        stf-nested) train stf-nested --vision-tokens 16,4,1 ;;
        *) echo "unknown kind $1" >&2 && exit 2 ;;
    esac
}

for seed in ${SEEDS:-0 1 2}; do
    for name in ${KINDS:-stf stf-random tokenpacker mqt pool m3 mqt-nested stf-nested}; do kind "$name"; done
done
"$python" -m llava_stf_eval.tables.resamplers "$out" --speed docs/speed/methods-cpu.json
