#!/usr/bin/env bash
# Trains the bundled models from nothing, on images that the project draws, and evaluates them.
#
#   scripts/train_tiny.sh [FOLDER]        default: runs/tiny; a stage whose result is there is not run again
#
# As in the paper, tower and language model exist first. The tower is trained on a dense target per patch (CLIP's part);
# then tower, projector and language model together at all 64 tokens (Vicuna's part): captions and questions, questions
# alone, questions about one shape, about up to two, about up to four. From that common start three models are trained
# under one budget, the tower frozen, in the paper's two stages: all 64 tokens, 16 by mean pooling, 16 by MBTF and STF.
# The bundled weights differ from this script in one thing: their stage `questions` was the first 1,600 steps of a
# cosine schedule over 4,800. About two hours on two CPU cores; PROCESSES=1 keeps to one.
set -euo pipefail
out=${1:-runs/tiny}
python=${PYTHON:-.venv/bin/python}
processes=${PROCESSES:-2}
export OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false

data() { [ -f "$out/$1/instruct.json" ] || "$python" -m llava_stf.world --out "$out/$1" "${@:2}"; }
finetune() { # PROCESSES NAME OPTIONS; 16 images a step
    [ -f "$out/$2/config.json" ] ||
        "$python" -m torch.distributed.run --standalone --nproc_per_node "$1" -m llava_stf.training.finetune \
            --output "$out/$2" --per-device-batch-size $((16 / $1)) --adam-beta2 0.98 --attn-implementation eager \
            --cpu-threads 1 --logging-steps 50 --resume "${@:3}"
}
base() { # NAME BASE DATA STEPS TOWER_RATE OPTIONS
    finetune "$processes" "$1" --base "$out/$2" --data "$out/$3/instruct.json" --max-steps "$4" --learning-rate 1e-3 \
        --vision-tower-learning-rate "$5" --vision-tokens all "${@:6}"
}

data captioned --count 80000 --seed 1 --describe --questions-per-image 4
data four --count 80000 --seed 1
data one --count 24000 --seed 11 --max-objects 1
data two --count 24000 --seed 12 --max-objects 2
data compare --count 30000 --seed 2 --captions

[ -f "$out/tower/config.json" ] || "$python" -m llava_stf.training.pretrain_tower --output "$out/tower" --images 140000
[ -f "$out/start/config.json" ] || "$python" -m llava_stf.training.assemble_tiny --tower "$out/tower" --output "$out/start"
base base-captioned start captioned 5000 2e-4
base base-questions base-captioned four 1600 2e-4
base base-one base-questions one 700 1e-4 --scheduler constant_with_warmup
base base-two base-one two 1000 1e-4 --scheduler constant_with_warmup
base base base-two four 2200 1e-4

align() { # NAME OPTIONS
    finetune 1 "$1-align" --base "$out/base" --stage align --data "$out/compare/align.json" --max-steps 300 \
        --learning-rate 1e-3 "${@:2}"
}
instruct() { # NAME OPTIONS
    finetune 1 "$1" --base "$out/$1-align" --stage instruct --data "$out/compare/instruct.json" --max-steps 2000 \
        --learning-rate 7e-4 --save-dtype bfloat16 "${@:2}"
}
align full --vision-tokens all && instruct full --vision-tokens all
align pool --reduction pool && instruct pool
align stf --reduction stf && instruct stf

"$python" -m llava_stf_eval.drawn --full "$out/full" --model "$out/pool" --model "$out/stf" \
    --images 1000 --output "$out/results.json"
