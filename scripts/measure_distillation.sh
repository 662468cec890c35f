#!/usr/bin/env bash
# Compares what images a LLaVA can be distilled on, by the projector of the bundled one at 16 of 64 tokens: docs/training.md.
#
#   PHOTOS=photos/ CIFAR=cifar10.npz scripts/measure_distillation.sh [FOLDER]
#
# FOLDER is runs/distillation by default; what is there is not made again. PHOTOS and CIFAR are folders of images, or npz
# files with train_images; a source that has none is left out. Every source gives IMAGES=512 squares of 112 px; one of
# fewer images gives crops of each. The bundled LLaVA answers the same questions about each source at all its tokens,
# those that are asked about the drawn images, and the projector learns from its answers: STEPS=100 of stage distill, 16
# images each, SEEDS="0 1 2". Then ASKED=300 held-out drawn images are asked about.
set -euo pipefail
root=$(dirname "$0")/..
out=${1:-runs/distillation}
python=${PYTHON:-$root/.venv/bin/python}
export OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false
count=${IMAGES:-512} steps=${STEPS:-100} asked=${ASKED:-300} photos=${PHOTOS:-} cifar=${CIFAR:-}
sources="drawn ${photos:+photos} ${cifar:+cifar} ${photos:+${cifar:+mosaics}} noise inverted"
data=$out/data/instruct.json

source "$root/scripts/one_budget.sh"
one_budget "$out" "$count images of a source, $steps steps, $asked images"

[ -f "$data" ] || "$python" -m llava_stf.world --out "$out/data" --count "$count" --seed 31

llava-stf() { # COMMAND OPTIONS: the command line of $python, which may be the name of one on the path
    "$python" -c 'import sys; from llava_stf.cli import main; sys.exit(main())' "$@"
}
replace() { # SOURCE OPTIONS: images of the source at the paths of the drawn ones
    [ -d "$out/$1" ] || "$python" -m llava_stf_eval.measurement.image_sources "$data" "$out/$1" "${@:2}"
}
mosaics() { # of photographs and CIFAR pictures, as many of each
    [ -d "$out/pieces" ] || {
        rm -rf "$out/copied" && mkdir "$out/copied" && cp -r "$out/photos" "$out/cifar" "$out/copied"
        mv "$out/copied" "$out/pieces"
    }
    [ -d "$out/cut" ] || llava-stf data mosaic "$out/pieces" "$out/cut" --count "$count" --side 112 --pieces 4
    replace mosaics --crops "$out/cut"
}
images() { # SOURCE
    case $1 in
        drawn) [ -d "$out/drawn" ] || ln -s data "$out/drawn" ;;
        photos) replace photos --crops "$photos" ;;
        cifar) replace cifar --crops "$cifar" ;;
        mosaics) mosaics ;;
        noise) replace noise --noise ;;
        inverted) [ -d "$out/inverted" ] || "$python" -m llava_stf_eval.measurement.inversion "$data" "$out/inverted" ;;
    esac
}
train() { # SOURCE
    local run=$out/$1-$seed
    [ -f "$run/config.json" ] || "$python" -m llava_stf.training.finetune --output "$run" --resume \
        --data "$out/$1.jsonl" --images "$out/$1" --stage distill --base tiny-full --vision-tokens 16 \
        --learning-rate 1e-3 --adam-beta2 0.98 --per-device-batch-size 16 --max-steps "$steps" --save-steps "$steps" \
        --logging-steps 10 --bf16 false --cpu-threads 1 --seed "$seed" > "$run.log" 2>&1
    [ -f "$run/accuracy.json" ] || "$python" -m llava_stf_eval.tables.training evaluate "$run" --images "$asked"
    [ -f "$run/divergence.json" ] || "$python" -m llava_stf_eval.measurement.divergence "$run"
}

for source in $sources; do
    images "$source"
    llava-stf data label "$data" "$out/$source.jsonl" --images "$out/$source" --model tiny-full --dtype float32 \
        --batch-size 64 --max-new-tokens 12
done
for seed in ${SEEDS:-0 1 2}; do
    for source in $sources; do train "$source"; done
done
[ -f "$out/untrained.json" ] || "$python" -m llava_stf_eval.drawn --full tiny-full --method pool --vision-tokens 16 \
    --images "$asked" --output "$out/untrained.json"
"$python" -m llava_stf_eval.tables.distillation "$out" --output "$out/distillation.json"
