#!/usr/bin/env bash
# Compares ways to bring a LLaVA to fewer vision tokens, on the bundled model and drawn images: docs/training.md.
#
#   scripts/measure_training.sh [FOLDER]      default: runs/training; a run whose result is there is not run again
#
# Start of all is the bundled LLaVA at 64 tokens. Every run sees 4,800 images, 300 steps of 16, in the order of its
# seed, and is asked about 300 held-out images after every 100 steps. SEEDS="0 1 2"; KINDS are those of `kind` below. With
# others of them, commands side by side may share a FOLDER whose data is there; the report is of the runs that are.
set -euo pipefail
root=$(dirname "$0")/..
out=${1:-runs/training}
python=${PYTHON:-$root/.venv/bin/python}
export OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false

[ -f "$out/data/instruct.json" ] ||
    "$python" -m llava_stf.world --out "$out/data" --count 4800 --seed 31 --captions

# A run that is stopped writes one more checkpoint, which must not push out one that is asked, and goes on with --resume:
# its seconds and its log are those of all its parts.
finetune() { # RUN OPTIONS
    local run=$out/$1
    [ -f "$run/config.json" ] || {
        [ -d "$run" ] || rm -f "$run.log" "$run.seconds"
        TIMEFORMAT='%U %S'
        { time "$python" -m llava_stf.training.finetune --output "$run" --data "$out/data/instruct.json" --resume \
            --per-device-batch-size 16 --max-steps 300 --save-steps 100 --save-total-limit 1000 --logging-steps 20 \
            --adam-beta2 0.98 --cpu-threads 1 --seed "$seed" "${@:2}" \
            >> "$run.log" 2>&1; } 2>> "$run.seconds"
    }
    [ -f "$run/accuracy.json" ] || "$python" -m llava_stf_eval.tables.training evaluate "$run" --images 300 --every 100
}

supervised="--stage instruct --base tiny-full --projector-learning-rate 1e-3"
distilled="--stage distill --base tiny-full --learning-rate 1e-3"
kind() { # NAME
    case $1 in
        distill-warm) finetune "$1-$seed" $distilled --vision-tokens 16 ;;
        distill-random) finetune "$1-$seed" $distilled --vision-tokens 16 --init random ;;
        distill-features) finetune "$1-$seed" $distilled --vision-tokens 16 --feature-weight 1 ;;
        supervised-projector) finetune "$1-$seed" $supervised --vision-tokens 16 --learning-rate 0 ;;
        supervised-warm) finetune "$1-$seed" $supervised --vision-tokens 16 --learning-rate 3e-4 ;;
        paper)
            finetune "paper-align-$seed" --stage align --base tiny-full --data "$out/data/align.json" \
                --vision-tokens 16 --init random --learning-rate 1e-3 --max-steps 100
            finetune "paper-$seed" --stage instruct --base "$out/paper-align-$seed" --learning-rate 3e-4 \
                --projector-learning-rate 1e-3 --max-steps 200
            ;;
        several) finetune "$1-$seed" $distilled --vision-tokens 16,4 ;;
        several-descending)
            finetune "$1-$seed" $distilled --vision-tokens 16,4 --vision-tokens-schedule descending
            ;;
        four) finetune "$1-$seed" $distilled --vision-tokens 4 ;;
        *) echo "unknown kind $1" >&2 && exit 2 ;;
    esac
}

all="distill-warm supervised-projector distill-random supervised-warm paper several four several-descending distill-features"
for seed in ${SEEDS:-0 1 2}; do
    for name in ${KINDS:-$all}; do kind "$name"; done
done
"$python" -m llava_stf_eval.tables.training report "$out" --output "$root/docs/training"
"$python" -m llava_stf_eval.tables "$root"
