#!/usr/bin/env bash
# bitsandbytes 0.50.2, peft 0.21.2, transformers 5.24.0, torch 2.13.0; run 2026-12-01 on an AMD EPYC with AVX512-BF16.
#
# A Llama of 4-bit weights with LoRA (QLoRA) on a CPU: steps of training, once as loaded, once behind an evaluation, once
# behind an evaluation and `state_dict()`. And LoRA merged into such weights, before and after an answer.
# Expected: an evaluation changes nothing.
# Happens:  in evaluation mode a layer packs its weights for AVX512-BF16 at its first input, and stays so in training,
#           where the packed product has no gradient: what lies before it learns nothing (LoRA on q and v: no weight at
#           all) or from a part of its gradient (LoRA everywhere), until a checkpoint is saved, which unpacks them. torch
#           warns once of an operation without a gradient. Merging and `dequantize()` read packed weights as plain ones.
#
# Seen (weights of LoRA with a gradient, and the least cosine of these to the one as loaded; loss of steps 1 and 20):
#   q and v: as loaded                     8 of 8,   1.00, 4.58 to 3.99
#   q and v: after an evaluation           0 of 8,         4.58 to 4.58
#   q and v: then state_dict()             8 of 8,   1.00, 4.58 to 3.99
#   all:     as loaded                    28 of 28,  1.00, 4.59 to 3.77
#   all:     after an evaluation          28 of 28,  0.31, 4.59 to 3.79
#   merged, as loaded:       logits are 0.56 of their standard deviation off (weights are rounded to 4 bits again)
#   merged, after an answer: logits are 3.36 off
set -euo pipefail

dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
python3 -m venv venv
venv/bin/pip install -q --disable-pip-version-check torch==2.13.0 transformers==5.24.0 peft==0.21.2 accelerate==1.15.0 \
    bitsandbytes==0.50.2 numpy==2.4.6
export HF_HUB_OFFLINE=1 TRANSFORMERS_VERBOSITY=error
venv/bin/python - 2>warnings.txt <<'PY' || { cat warnings.txt >&2; exit 1; }
import sys

import torch
from bitsandbytes.functional import has_avx512bf16
from peft import LoraConfig, get_peft_model
from transformers import BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM

if not has_avx512bf16():
    sys.exit("This CPU has no AVX512-BF16, for which weights are packed: nothing to show here.")
torch.manual_seed(0)
config = LlamaConfig(hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, vocab_size=96)
LlamaForCausalLM(config).save_pretrained("llama")
ids = torch.arange(1, 25)[None]


def adapted(targets):
    torch.manual_seed(1)
    bits = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype="bfloat16")
    base = LlamaForCausalLM.from_pretrained("llama", quantization_config=bits, dtype=torch.bfloat16)
    return get_peft_model(base, LoraConfig(target_modules=targets, init_lora_weights=False)).train()


@torch.no_grad()
def logits(model):
    return model(input_ids=ids).logits.float()


def evaluate(model):
    logits(model.eval())
    model.train()


def trained(targets, *before):
    model = adapted(targets)
    for act in before:
        act(model)
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=1e-2)
    losses = []
    for step in range(20):
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        if step == 0:
            grads = [None if weight.grad is None else weight.grad.flatten().float() for weight in weights]
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return grads, losses


def save(model):
    model.state_dict()


seen = {}
for name, targets in (("q and v", ["q_proj", "v_proj"]), ("all", "all-linear")):
    for title, before in (("as loaded", ()), ("after an evaluation", (evaluate,)), ("then state_dict()", (evaluate, save))):
        if title[0] == "t" and name == "all":
            continue
        grads, losses = trained(targets, *before)
        if not before:
            reference = grads
        pairs = [(one, other) for one, other in zip(grads, reference, strict=True) if one is not None]
        least = min((torch.cosine_similarity(*pair, dim=0).item() for pair in pairs), default=None)
        told = "" if least is None else f"{least:.2f},"
        print(f"{name + ':':8} {title:25} {len(pairs):5} of {f'{len(grads)},':4} {told:5} {losses[0]:.2f} to {losses[-1]:.2f}")
        seen[name, title] = (len(pairs), least, losses[0] - losses[-1])
assert seen["q and v", "as loaded"][0] == 8 and seen["q and v", "as loaded"][2] > 0.3, seen
assert seen["q and v", "after an evaluation"][0] == 0 and abs(seen["q and v", "after an evaluation"][2]) < 0.01, seen
assert seen["q and v", "then state_dict()"][1] > 0.98 and seen["q and v", "then state_dict()"][2] > 0.3, seen
assert seen["all", "after an evaluation"][0] == 28 and seen["all", "after an evaluation"][1] < 0.7, seen

off = {}
for title in ("as loaded", "after an answer"):
    model = adapted(["q_proj", "v_proj", "down_proj"])
    right = logits(model)
    if title == "after an answer":
        evaluate(model)
    merged = model.merge_and_unload().train()
    off[title] = float((logits(merged) - right).abs().max() / right.std())
    print(f"merged, {title + ':':16} logits are {off[title]:.2f} of their standard deviation off")
assert off["as loaded"] < 1 and off["after an answer"] > 2, off
PY
