#!/usr/bin/env bash
# Compares the pre-training methods on CIFAR-10 images: docs/encoders.md.
#
#   scripts/measure_encoders.sh DATA.npz [FOLDER]     default: runs/encoders; what is there is not measured again
#
# DATA.npz holds train_images, train_labels, test_images and test_labels. The same ViT, budget, seed and augmentation for
# every method; about an hour and a half on one CPU core.
set -euo pipefail
root=$(dirname "$0")/..
data=$1
out=${2:-runs/encoders}
python=${PYTHON:-$root/.venv/bin/python}
export OMP_NUM_THREADS=1
config=$root/scripts/configs/encoders/cifar-quick.yaml
mkdir -p "$out"

llava-stf() { # COMMAND OPTIONS: the command line of $python, which may be the name of one on the path
    "$python" -c 'import sys; from llava_stf.cli import main; sys.exit(main())' "$@"
}
measure() { # NAME: nearest neighbours and a linear layer, on the class token and on the mean of the patches
    for pooling in class mean; do
        for protocol in knn linear; do
            local result=$out/$1.$protocol-$pooling.json
            [ -s "$result" ] || llava-stf encoders eval "$protocol" "$out/$1" --data "$data" \
                --pooling "$pooling" --no-augment > "$result"
        done
    done
}

[ -f "$out/random/config.json" ] ||
    "$python" -m llava_stf_eval.tables.encoders untrained "$out/random" --config "$config" --data "$data"
measure random
for method in ${METHODS:-mocov3 patchmix aps mgc mos}; do
    [ -f "$out/$method/config.json" ] || {
        # Appended: a run that was stopped goes on, and what it cost is the sum of its parts.
        [ -d "$out/$method" ] || rm -f "$out/$method.log" "$out/$method.seconds"
        TIMEFORMAT='%U %S'
        { time "$python" -m llava_stf.encoders.pretrain --method "$method" --config "$config" --data "$data" \
            --output "$out/$method" --cpu-threads 1 --resume >> "$out/$method.log" 2>&1; } 2>> "$out/$method.seconds"
    }
    measure "$method"
done
"$python" -m llava_stf_eval.tables.encoders encoders "$out" --output "$root/docs/encoders"
"$python" -m llava_stf_eval.tables "$root"
