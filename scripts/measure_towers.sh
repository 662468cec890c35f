#!/usr/bin/env bash
# Which vision tower suits a LLaVA-STF, and does MBTF help a frozen one? On drawn images: docs/encoders.md.
#
#   scripts/measure_towers.sh [FOLDER]      default: runs/towers; a run whose result is there is not run again
#
# Towers: the bundled model's own, a random one, and one pre-trained by each method on 6,000 images without labels. Each
# is frozen under the language model of the bundled LLaVA with a random projector, which is trained in the paper's two
# stages on 4,800 images, once with the states of many depths fused (MBTF) and once with the select layer's alone. STEPS
# is the length of the second stage, and a third of it that of the first. About an hour and a half on one CPU core.
set -euo pipefail
root=$(dirname "$0")/..
out=${1:-runs/towers}
python=${PYTHON:-$root/.venv/bin/python}
export OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false
steps=${STEPS:-300}
config=$root/scripts/configs/encoders/drawn-quick.yaml

source "$root/scripts/one_budget.sh"
one_budget "$out" "$steps steps"
[ -f "$out/drawn/instruct.json" ] || "$python" -m llava_stf.world --out "$out/drawn" --count 6000 --seed 51
[ -f "$out/data/instruct.json" ] || "$python" -m llava_stf.world --out "$out/data" --count 4800 --seed 31 --captions

llava-stf() { # COMMAND OPTIONS: the command line of $python, which may be the name of one on the path
    "$python" -c 'import sys; from llava_stf.cli import main; sys.exit(main())' "$@"
}
finetune() { # RUN BASE OPTIONS
    [ -f "$1/config.json" ] ||
        "$python" -m llava_stf.training.finetune --output "$1" --base "$2" --resume --per-device-batch-size 16 \
            --adam-beta2 0.98 --cpu-threads 1 --save-steps 300 --logging-steps 50 "${@:3}" \
            >> "$1.log" 2>&1
}

llava_with() { # TOWER LAYERS NAME_OF_LAYERS
    local run=$out/llava-$1-$3
    [ -f "$run.json" ] && return
    [ -f "$run-start/config.json" ] ||
        llava-stf assemble "$run-start" --vision-encoder "$out/$1" --language-model tiny-full \
            --fusion-layers "$2"
    finetune "$run-align" "$run-start" --stage align --data "$out/data/align.json" --max-steps $((steps / 3)) \
        --learning-rate 1e-3
    finetune "$run" "$run-align" --stage instruct --data "$out/data/instruct.json" --max-steps "$steps" \
        --learning-rate 3e-4 --projector-learning-rate 1e-3
    "$python" -m llava_stf_eval.drawn --model "$run" --images 300 --output "$run.json"
}

both() { # TOWER
    llava_with "$1" -2,4,3,2,1 many
    llava_with "$1" -2 one
}

[ -f "$out/embedded/config.json" ] || "$python" -m llava_stf_eval.tables.encoders embedded "$out/embedded"
both embedded
[ -f "$out/random/config.json" ] || "$python" -m llava_stf_eval.tables.encoders untrained "$out/random" \
    --config "$config" --data "$out/drawn/images"
both random
for method in ${METHODS:-mocov3 patchmix aps mgc mos}; do
    [ -f "$out/$method/config.json" ] ||
        "$python" -m llava_stf.encoders.pretrain --method "$method" --config "$config" \
            --data "$out/drawn/images" --output "$out/$method" --cpu-threads 1 --resume >> "$out/$method.log" 2>&1
    both "$method"
done
"$python" -m llava_stf_eval.tables.encoders towers "$out" --output "$root/docs/encoders"
"$python" -m llava_stf_eval.tables "$root"
