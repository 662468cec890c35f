#!/usr/bin/env bash
# Compares trained ways to bring the bundled LLaVA to fewer of its 64 vision tokens: docs/bundled.md, docs/reduction.md.
#
#   scripts/measure_fusion.sh [FOLDER]    default: runs/fusion; what is there is not made again
#
# All start from one plain LLaVA, START=tiny-full, its tower frozen, and have one budget: STEPS=2000 of four drawn images
# each, of which the tower's states are computed once. KINDS: mean pooling (pool), STF alone (spatial), MBTF and STF
# (fused), that with random weights (random), TokenPacker and MQT, all at 16 tokens; MBTF alone at 64 (blocks); one model
# for 64, 16 and 4 (nested), M3's for 16, 4 and 1 (m3); two for 4 tokens alone (pool4, fused4). Whatever has weights of its
# own is aligned first, alone. SEEDS="0 1 2"; IMAGES=1000 held-out images are asked about. DTYPE=float32 computes in
# float32, which some CPUs multiply faster than bfloat16. Prints tables; runs side by side may share a FOLDER, which is for
# one START, STEPS and IMAGES.
set -euo pipefail
root=$(dirname "$0")/..
out=${1:-runs/fusion}
python=${PYTHON:-$root/.venv/bin/python}
start=${START:-tiny-full} steps=${STEPS:-2000} images=${IMAGES:-1000} dtype=${DTYPE:-bfloat16}
export OMP_NUM_THREADS=${THREADS:-1} TOKENIZERS_PARALLELISM=false

source "$root/scripts/one_budget.sh"
one_budget "$out" "$steps steps from ${start##*/}, $images images"

train() { # KIND OPTIONS
    [ -f "$out/$1-$seed/config.json" ] ||
        "$python" -m llava_stf.training.pretrain_drawn --part tokens --start "$start" --states "$out/states" \
            --output "$out/$1-$seed" --steps "$steps" --fades 0.8 --learning-rate 5e-4 --seed "$seed" \
            --dtype "$dtype" --resume "${@:2}"
}
answers() { # KIND OPTIONS
    [ -f "$out/$1-$seed.json" ] ||
        "$python" -m llava_stf_eval.drawn --images "$images" --output "$out/$1-$seed.json" \
            --model "$out/$1-$seed" --dtype "$dtype" "${@:2}"
}
kind() { # NAME
    case $1 in
        pool) train pool --vision-tokens 16 --reduction pool ;;
        spatial) train spatial --vision-tokens 16 --fusion-layers -2 ;;
        fused) train fused --vision-tokens 16 ;;
        random) train random --vision-tokens 16 --init random ;;
        tokenpacker) train tokenpacker --vision-tokens 16 --reduction tokenpacker ;;
        mqt) train mqt --vision-tokens 16 --reduction mqt ;;
        blocks) train blocks --vision-tokens 64 ;;
        nested) train nested --vision-tokens 16,64,4 ;;
        m3) train m3 --vision-tokens 16 --reduction m3 ;;
        pool4) train pool4 --vision-tokens 4 --reduction pool ;;
        fused4) train fused4 --vision-tokens 4 ;;
        *) echo "unknown kind $1" >&2 && exit 2 ;;
    esac
    case $1 in
        nested) answers nested --budget 64 --budget 16 --budget 4 ;;
        m3) answers m3 --budget 16 --budget 4 --budget 1 ;;
        *) answers "$1" ;;
    esac
}

[ -f "$out/states/about.json" ] ||
    "$python" -m llava_stf.training.drawn_states --model "$start" --output "$out/states" --images 40000 \
        --seed 21 --dtype "$dtype"
for seed in ${SEEDS:-0}; do
    for name in ${KINDS:-pool spatial fused random tokenpacker mqt blocks nested m3 pool4 fused4}; do kind "$name"; done
done
"$python" -m llava_stf_eval.tables.bundled "$out"
"$python" -m llava_stf_eval.tables.resamplers "$out" --speed "$root/docs/speed/methods-cpu.json"
