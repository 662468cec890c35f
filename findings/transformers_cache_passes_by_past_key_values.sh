#!/usr/bin/env bash
# transformers 5.24.0 (and 5.23.0 before the new name), torch 2.13.0; run 2026-11-29.
#
# A subclass of a causal language model looks at `past_key_values` in its `forward`, as pruning methods do to tell the
# prompt from later steps, and hands everything on.
# Expected: the KV cache at every step of `generate`; the old name is deprecated until 5.40 and still taken.
# Happens:  it is None at every step, since `generate` passes the cache as `cache` and only a parent's own signature is
#           translated, not a subclass's. Answers stay right, as the cache passes by in the other keywords, and the
#           subclass takes every step for the first. The one warning says that the name is deprecated.
#
# Seen (length of the cache that forward was given, at four steps):
#   transformers 5.23.0: [0, 10, 11, 12]
#   transformers 5.24.0: [None, None, None, None]
set -euo pipefail

dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
python3 -m venv venv
cat >watch.py <<'PY'
import torch
import transformers
from transformers import LlamaConfig, LlamaForCausalLM

seen = []


class Watching(LlamaForCausalLM):
    def forward(self, input_ids=None, past_key_values=None, **others):
        seen.append(None if past_key_values is None else past_key_values.get_seq_length())
        return super().forward(input_ids=input_ids, past_key_values=past_key_values, **others)


torch.manual_seed(0)
config = LlamaConfig(
    hidden_size=64,
    intermediate_size=128,
    num_hidden_layers=2,
    num_attention_heads=4,
    vocab_size=64,
    eos_token_id=None,
)
model = Watching(config).eval()
model.generate(torch.arange(1, 11)[None], max_new_tokens=4, do_sample=False)
print(f"transformers {transformers.__version__}: {seen}")
assert seen == ([0, 10, 11, 12] if transformers.__version__ == "5.23.0" else [None] * 4)
PY
for version in 5.23.0 5.24.0; do
    venv/bin/pip install -q --disable-pip-version-check torch==2.13.0 numpy==2.4.6 "transformers==$version"
    venv/bin/python watch.py
done
