#!/usr/bin/env bash
# Trains the embedded models from nothing, on pictures that the project draws, and evaluates them.
#
#   scripts/train_tiny.sh [FOLDER]        default: runs/tiny; a stage whose result is there is not run again
#
# As in the paper, tower and language model exist first: the tower is trained on a dense target per patch (it plays
# CLIP's part), then tower, projector and language model together at all 64 tokens (Vicuna's part). From that common
# start three models are trained under one budget, the tower frozen, in the paper's two stages: all 64 tokens, 16 by
# mean pooling, 16 by MBTF and STF. With two processes (PROCESSES=2) the batch of the base is the same.
set -euo pipefail
out=${1:-runs/tiny}
python=${PYTHON:-.venv/bin/python}
processes=${PROCESSES:-2}
export OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false

data() { [ -f "$out/$1/instruct.json" ] || "$python" -m llava_stf.world --out "$out/$1" "${@:2}"; }
finetune() {
    [ -f "$2/config.json" ] ||
        "$python" -m torch.distributed.run --standalone --nproc_per_node "$1" -m llava_stf.training.finetune \
            --attn-implementation eager --cpu-threads 1 --max-length 1024 --adam-beta2 0.98 --logging-steps 50 \
            --output "$2" --resume "${@:3}"
}

data base-data --count 80000 --seed 1 --describe --questions-per-image 4
data compare-data --count 30000 --seed 2 --captions --questions-per-image 4
[ -f "$out/tower/config.json" ] || "$python" -m llava_stf.training.pretrain_tower --output "$out/tower" --pictures 140000
[ -f "$out/start/config.json" ] || "$python" -m llava_stf.training.assemble_tiny --tower "$out/tower" --output "$out/start"
finetune "$processes" "$out/base" --base "$out/start" --data "$out/base-data/instruct.json" --vision-tokens all \
    --max-steps 5000 --per-device-batch-size $((16 / processes)) --learning-rate 1e-3 --vision-tower-learning-rate 2e-4

align() { # NAME OPTIONS
    finetune 1 "$out/$1-align" --base "$out/base" --stage align --data "$out/compare-data/align.json" \
        --max-steps 500 --per-device-batch-size 16 --learning-rate 1e-3 "${@:2}"
}
instruct() { # NAME OPTIONS
    finetune 1 "$out/$1" --base "$out/$1-align" --stage instruct --data "$out/compare-data/instruct.json" \
        --max-steps 1800 --per-device-batch-size 16 --learning-rate 5e-4 --save-dtype bfloat16 "${@:2}"
}
align full --vision-tokens all && instruct full --vision-tokens all
align pool --reduction pool && instruct pool
align stf --reduction stf && instruct stf

PYTHONPATH=eval "$python" -m llava_stf_eval.drawn --full "$out/full" --model "$out/pool" --model "$out/stf" \
    --pictures 1500 --output "$out/results.json"
