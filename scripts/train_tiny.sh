#!/usr/bin/env bash
# Trains the bundled models from nothing, on images that the project draws, and evaluates them: docs/bundled.md.
#
#   scripts/train_tiny.sh [FOLDER]        default: runs/tiny; a stage whose result is there is not run again, and one
#                                         that was stopped goes on from its last checkpoint
#
# As in the paper, tower and language model exist first: a tower that is trained on dense targets (CLIP's part), and
# beside it a language model that learns to look things up and to name options by their letters, from scenes told in its
# own words (Vicuna's part). Then the projector is aligned to these words, and both learn from images (`base`, then `full`
# with a learning rate that fades). That is the wheel's plain model; one for 64, 16 and 4 tokens is made of it, the tower
# frozen, by scripts/measure_fusion.sh, whose KINDS and SEEDS are heeded. The wheel has full and nested of seed 0.
# DTYPE=float32 computes in float32, which some CPUs multiply faster than bfloat16. THREADS=2 is for one run at a time.
# Two to three hours on two cores of a CPU that multiplies bfloat16 quickly.
set -euo pipefail
root=$(dirname "$0")/..
out=${1:-runs/tiny}
python=${PYTHON:-$root/.venv/bin/python}
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
        "$python" -m llava_stf.training.pretrain_tower --output "$out/tower" --images 400000 --dtype "$dtype" --resume
}

mkdir -p "$out"
assemble blank
OMP_NUM_THREADS=1 tower >> "$out/tower.log" 2>&1 &
trap 'kill $(jobs -p) 2> /dev/null' EXIT # the tower's training ends with this one
OMP_NUM_THREADS=1 drawn objects "$out/blank" objects 6250
wait $!
assemble start --tower "$out/tower" --language "$out/objects"
[ -f "$out/states/about.json" ] ||
    "$python" -m llava_stf.training.drawn_states --model "$out/start" --output "$out/states" --images 40000 \
        --seed 21 --dtype "$dtype"
drawn base "$out/start" images 10000 --states "$out/states" --fades 0.4

drawn full-0 "$out/base" tokens 2000 --states "$out/states" --fades 0.8 --learning-rate 5e-4
[ -f "$out/full-0.json" ] || "$python" -m llava_stf_eval.drawn --images 1000 --output "$out/full-0.json" \
    --full "$out/full-0" --dtype "$dtype"
START=$out/full-0 KINDS=${KINDS:-nested} "$root/scripts/measure_fusion.sh" "$out"
