#!/usr/bin/env bash
# peft 0.21.2, torch 2.13.0, transformers 5.24.0; run 2026-11-29.
#
# `merge_and_unload` of a LoRA and of a DoRA adapter on a model that `fully_shard` (FSDP2) has sharded.
# Expected: merged weights, or an exception, as for layers that cannot be merged.
# Happens:  LoRA is merged. DoRA leaves the base weights and removes the adapter, without a word: its merge assigns
#           `weight.data = merged`, which has no effect on a DTensor and raises nothing (`.data.copy_` does work).
#
# Seen (largest difference of the logits of the merged weights):
#   LoRA: from the adapter's 0.000, from the base model's 1.154
#   DoRA: from the adapter's 1.154, from the base model's 0.000
set -euo pipefail

dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
python3 -m venv venv
venv/bin/pip install -q --disable-pip-version-check torch==2.13.0 transformers==5.24.0 peft==0.21.2 accelerate==1.15.0 numpy==2.4.6
venv/bin/python - <<'PY'
import os
import socket

import torch
import torch.distributed as dist
from peft import LoraConfig, get_peft_model
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers import LlamaConfig, LlamaForCausalLM

with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]
os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK="0", WORLD_SIZE="1")
dist.init_process_group("gloo")
mesh = init_device_mesh("cpu", (1,))
ids = torch.arange(10)[None]
config = LlamaConfig(
    hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, vocab_size=64
)
seen = {}
for name, dora in {"LoRA": False, "DoRA": True}.items():
    torch.manual_seed(0)
    model = LlamaForCausalLM(config).eval()
    settings = LoraConfig(
        r=4, target_modules="all-linear", use_dora=dora, init_lora_weights=False, task_type="CAUSAL_LM"
    )
    with torch.no_grad():
        of_base = model(ids).logits.clone()
        adapted = get_peft_model(model, settings).eval()
        of_adapter = adapted(ids).logits.clone()
        for layer in model.model.layers:
            fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh)
        merged = adapted.merge_and_unload()
        whole = LlamaForCausalLM(config).eval()
        whole.load_state_dict({key: weight.full_tensor() for key, weight in merged.named_parameters()}, strict=False)
        of_merged = whole(ids).logits
    seen[name] = (of_merged - of_adapter).abs().max().item(), (of_merged - of_base).abs().max().item()
    print(f"{name}: from the adapter's {seen[name][0]:.3f}, from the base model's {seen[name][1]:.3f}")
dist.destroy_process_group()
assert seen["LoRA"][0] < 1e-4 and seen["LoRA"][1] > 0.1
assert seen["DoRA"][0] > 0.1 and seen["DoRA"][1] < 1e-4
PY
