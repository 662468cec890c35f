#!/usr/bin/env bash
# Trains the bundled models from nothing, on images that the project draws, and evaluates them: docs/bundled.md.
#
#   scripts/train_tiny.sh [FOLDER]        default: runs/tiny; a stage whose result is there is not run again, and one
#                                         that was stopped goes on from its last checkpoint
#
# As in the paper, tower and language model exist first: a tower that is trained on dense targets (CLIP's part), and
# beside it a language model that learns to look things up and to name options by their letters, from scenes told in its
# own words (Vicuna's part). Then the projector is aligned to these words, and both learn from images (`base`). From that
# common start every KIND is trained under one budget, the tower frozen: all 64 tokens (full), 16 by mean pooling
# (pool), STF alone (spatial), MBTF and STF (fused), MBTF alone at 64 (blocks), one model for 64, 16 and 4 (nested), and
# two for 4 tokens alone (pool4, fused4).
# SEEDS="0 1 2" repeats that last part. The wheel has full and nested of seed 0.
# DTYPE=float32 computes in float32, which some CPUs multiply faster than bfloat16. THREADS=2 is for one run at a time.
set -euo pipefail
out=${1:-runs/tiny}
python=${PYTHON:-.venv/bin/python}
dtype=${DTYPE:-bfloat16}
export OMP_NUM_THREADS=${THREADS:-2} TOKENIZERS_PARALLELISM=false

drawn() { # NAME START PART STEPS OPTIONS
    [ -f "$out/$1/config.json" ] ||
        "$python" -m llava_stf.training.pretrain_drawn --part "$3" --start "$2" --output "$out/$1" --steps "$4" \
            --dtype "$dtype" --resume "${@:5}"
}
assemble() { # NAME OPTIONS
    [ -f "$out/$1/config.json" ] || "$python" -m llava_stf.training.assemble_tiny --output "$out/$1" "${@:2}"
}
tower() {
    [ -f "$out/tower/config.json" ] ||
        "$python" -m llava_stf.training.pretrain_tower --output "$out/tower" --images 400000 --dtype "$dtype"
}

mkdir -p "$out"
assemble blank
OMP_NUM_THREADS=1 tower > "$out/tower.log" 2>&1 &
OMP_NUM_THREADS=1 drawn objects "$out/blank" objects 6250
wait $!
assemble start --tower "$out/tower" --language "$out/objects"
[ -f "$out/states/about.json" ] ||
    "$python" -m llava_stf.training.drawn_states --model "$out/start" --output "$out/states" --images 40000 --seed 21
drawn base "$out/start" images 10000 --states "$out/states" --fades 0.4

compared() { # KIND OPTIONS
    drawn "$1-$seed" "$out/base" tokens 2000 --states "$out/states" --fades 0.8 --learning-rate 5e-4 --seed "$seed" "${@:2}"
}
answers() { # KIND OPTIONS
    [ -f "$out/$1-$seed.json" ] ||
        "$python" -m llava_stf_eval.drawn --images "${IMAGES:-1000}" --output "$out/$1-$seed.json" "${@:2}"
}
kind() { # NAME
    case $1 in
        full) compared full ;;
        pool) compared pool --vision-tokens 16 --reduction pool ;;
        spatial) compared spatial --vision-tokens 16 --fusion-layers -2 ;;
        blocks) compared blocks --vision-tokens 64 ;;
        fused) compared fused --vision-tokens 16 ;;
        nested) compared nested --vision-tokens 16,64,4 ;;
        pool4) compared pool4 --vision-tokens 4 --reduction pool ;;
        fused4) compared fused4 --vision-tokens 4 ;;
        *) echo "unknown kind $1" >&2 && exit 2 ;;
    esac
    case $1 in
        full) answers full --full "$out/full-$seed" ;;
        nested) answers nested --model "$out/nested-$seed" --budget 64 --budget 16 --budget 4 ;;
        *) answers "$1" --model "$out/$1-$seed" ;;
    esac
}
for seed in ${SEEDS:-0}; do
    for name in ${KINDS:-full blocks pool spatial fused nested pool4 fused4}; do kind "$name"; done
done
"$python" -m llava_stf_eval.tables.bundled "$out"
