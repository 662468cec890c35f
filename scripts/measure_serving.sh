#!/usr/bin/env bash
# Measures servers under load, vLLM's and our own, at 100 % and 25 % of the vision tokens: the tables of docs/serving.md.
#
#   scripts/measure_serving.sh [FOLDER]       default: runs/serving; a run whose figure is there is not run again
#
# PYTHON is that of an environment with vLLM and this package (default: .venv-serving/bin/python, see make test-serving).
# Server and client share the machine. Without a GPU about a quarter of an hour on two cores.
set -euo pipefail
root=$(dirname "$0")/..
out=${1:-runs/serving}
python=${PYTHON:-$root/.venv-serving/bin/python}
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false VLLM_CPU_KVCACHE_SPACE=${VLLM_CPU_KVCACHE_SPACE:-2}

llava-stf() { # COMMAND OPTIONS: the command line of $python, which may be the name of one on the path
    "$python" -c 'import sys; from llava_stf.cli import main; sys.exit(main())' "$@"
}
bench() { # RUN OPTIONS
    [ -f "$out/$1/serving.png" ] || llava-stf bench serve --output "$out/$1" --overwrite "${@:2}"
}

embedded="--model tiny-full:all --model tiny --clients 1,16 --requests 48 --new-tokens 32"
medium="--shape medium --new-tokens 16"
# Without compilation, which takes vLLM minutes at every start.
vllm="--engine vllm --server-arguments"
bench embedded-vllm $embedded $vllm "--enforce-eager --max-model-len 512"
bench embedded-transformers $embedded --engine transformers
bench medium-vllm $medium --clients 8 --requests 32 $vllm "--enforce-eager --max-model-len 1024"
bench medium-transformers $medium --clients 8 --requests 32 --engine transformers
# 36 blocks of 128 tokens for the requests, one for vLLM: how many of them run at once?
bench medium-vllm-36-blocks $medium --clients 24 --requests 48 --kv-blocks 37 $vllm "--enforce-eager --max-model-len 1024"
"$python" -m llava_stf_eval.serving.tables "$out" --output "$root/docs/serving"
"$python" -m llava_stf_eval.tables "$root"
