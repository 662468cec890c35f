#!/usr/bin/env bash
# Trains models for the bundle on images that the project draws, and evaluates them.
#
#   scripts/train_tiny.sh [FOLDER]        default: runs/tiny; a stage whose result is there is not run again, and one
#                                         that was stopped goes on from its last checkpoint
#   FROM_NOTHING=1 scripts/train_tiny.sh  trains tower and language model as well, in place of scripts/tiny_start
#
# As in the paper, tower and language model exist first: a tower that was trained on dense targets (CLIP's part) and a
# language model that looks things up, knows option letters and has learned to see all 64 tokens (Vicuna's part and
# more). From that common start, scripts/tiny_start, three models are trained under one budget, the tower frozen: all 64
# tokens, 16 by mean pooling, 16 by MBTF and STF. The models in the wheel are of the recipe before this one.
# One core: the tower 30 minutes, objects 10, images 40, each of the three 15. DTYPE=float32 computes in float32, which
# some CPUs multiply faster than bfloat16.
set -euo pipefail
out=${1:-runs/tiny}
python=${PYTHON:-.venv/bin/python}
dtype=${DTYPE:-bfloat16}
export OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false

drawn() { # NAME START PART STEPS OPTIONS
    [ -f "$out/$1/config.json" ] ||
        "$python" -m llava_stf.training.pretrain_drawn --part "$3" --start "$2" --states "$out/states" \
            --output "$out/$1" --steps "$4" --dtype "$dtype" --resume "${@:5}"
}

start=scripts/tiny_start
if [ -n "${FROM_NOTHING:-}" ]; then
    start=$out/start
    [ -f "$out/tower/config.json" ] ||
        "$python" -m llava_stf.training.pretrain_tower --output "$out/tower" --images 240000 --dtype "$dtype"
    [ -f "$start/config.json" ] ||
        "$python" -m llava_stf.training.assemble_tiny --tower "$out/tower" --output "$start"
fi
[ -f "$out/states/about.json" ] ||
    "$python" -m llava_stf.training.drawn_states --model "$start" --output "$out/states" --images 40000 --seed 21
if [ -n "${FROM_NOTHING:-}" ]; then
    drawn objects "$start" objects 1400
    drawn base "$out/objects" images 6500 --fades 0.45
    start=$out/base
fi

compared() { drawn "$1" "$start" tokens 2000 --fades 0.8 --learning-rate 5e-4 "${@:2}"; } # NAME OPTIONS
compared full
compared pool --vision-tokens 16 --reduction pool
compared stf --vision-tokens 16

"$python" -m llava_stf_eval.drawn --full "$out/full" --model "$out/pool" --model "$out/stf" \
    --images 1000 --output "$out/results.json"
