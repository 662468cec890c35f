#!/usr/bin/env bash
# Measures what tiles are worth to a LLaVA-NeXT, and what of it STF keeps on a quarter of their tokens: docs/family.md.
#
#   scripts/measure_tiles.sh [FOLDER]    default: runs/tiles; a run or answer whose result is there is not made again, and
#                                        a run that was stopped goes on from its last checkpoint
#
# Images are drawn at 224 px with shapes and letters as large as the bundled model's, whose tower sees 112 px: four tiles
# show them as they are, one shows them at half their size. The bundled LLaVA's weights are trained on the same images
# as a LLaVA-1.5 (one tile), and as a LLaVA-NeXT at all tokens, by mean pooling and by STF at a quarter; the tower stays
# frozen. SEEDS="0 1 2" of training and of the IMAGES=250 held-out images, STEPS=250 optimizer steps of 8 images each; one FOLDER
# is for one number of steps and images.
set -euo pipefail
root=$(dirname "$0")/..
out=${1:-runs/tiles}
python=${PYTHON:-$root/.venv/bin/python}
export OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false
steps=${STEPS:-250} images=${IMAGES:-250}
world="--side 224 --family open --family text --family presence"

source "$root/scripts/one_budget.sh"
one_budget "$out" "$steps steps, $images images"
[ -f "$out/data/instruct.json" ] || "$python" -m llava_stf.world --out "$out/data" --count $((8 * steps)) --seed 51 $world
[ -d "$out/next" ] || "$python" -m llava_stf_eval.measurement.make_tiled "$out/next"

train() { # KIND OPTIONS
    [ -f "$out/$1-$seed/config.json" ] || "$python" -m llava_stf.training.finetune --output "$out/$1-$seed" \
        --data "$out/data/instruct.json" --resume --stage instruct --learning-rate 3e-4 --projector-learning-rate 1e-3 \
        --adam-beta2 0.98 --per-device-batch-size 8 --max-steps "$steps" --save-steps 50 --logging-steps 10 \
        --cpu-threads 1 --seed "$seed" "${@:2}" > "$out/$1-$seed.log" 2>&1
}
ask() { # KIND OPTIONS
    [ -f "$out/$1-$seed.json" ] || "$python" -m llava_stf_eval.drawn --images "$images" --seed "$seed" $world \
        --output "$out/$1-$seed.json" "${@:2}"
}

for seed in ${SEEDS:-0 1 2}; do
    train all --base "$out/next" --vision-tokens all
    ask all --full "$out/all-$seed"
    train stf --base "$out/next"
    ask stf --model "$out/stf-$seed"
    train one-tile --base tiny-full --vision-tokens all
    ask one-tile --full "$out/one-tile-$seed"
    train pool --base "$out/next" --reduction pool
    ask pool --model "$out/pool-$seed"
    ask pool-untrained --model "$out/all-$seed" --budget 16
done
"$python" -m llava_stf_eval.tables.tiles "$out"
