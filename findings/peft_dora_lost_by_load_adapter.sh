#!/usr/bin/env bash
# peft 0.21.2, transformers 5.24.0, torch 2.13.0; run 2026-11-29.
#
# A LoRA and a DoRA adapter of a small Llama are saved by peft and read again by `PeftModel.from_pretrained` and by
# transformers' `load_adapter`.
# Expected: the same logits on either way, or an exception.
# Happens:  `load_adapter` reads LoRA right; of a DoRA it loses the magnitude vectors, and the model answers with others.
#           The report of loading names the keys, nothing is raised.
#
# Seen (largest difference of the logits from the trained model's, whose standard deviation is 0.16):
#   LoRA, PeftModel: 0.000   LoRA, load_adapter: 0.000
#   DoRA, PeftModel: 0.000   DoRA, load_adapter: 0.616
set -euo pipefail

dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
python3 -m venv venv
venv/bin/pip install -q --disable-pip-version-check torch==2.13.0 transformers==5.24.0 peft==0.21.2 accelerate==1.15.0 numpy==2.4.6
venv/bin/python - <<'PY'
import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

transformers.logging.set_verbosity_error()
torch.manual_seed(0)
config = LlamaConfig(
    hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, vocab_size=64
)
LlamaForCausalLM(config).save_pretrained("base")
ids = torch.arange(10)[None]


def base():
    return AutoModelForCausalLM.from_pretrained("base").eval()


differences = {}
for name, dora in {"LoRA": False, "DoRA": True}.items():
    settings = LoraConfig(
        r=4, target_modules="all-linear", use_dora=dora, init_lora_weights=False, task_type="CAUSAL_LM"
    )
    trained = get_peft_model(base(), settings).eval()
    with torch.no_grad():
        for key, weight in trained.named_parameters():
            if "magnitude" in key:
                weight.mul_(1.5)
    trained.save_pretrained(name)
    by_transformers = base()
    by_transformers.load_adapter(name)
    with torch.no_grad():
        right = trained(ids).logits
        for way, model in {
            "PeftModel": PeftModel.from_pretrained(base(), name),
            "load_adapter": by_transformers,
        }.items():
            differences[name, way] = (model.eval()(ids).logits - right).abs().max().item()
            print(f"{name}, {way}: {differences[name, way]:.3f}")
assert differences.pop(("DoRA", "load_adapter")) > 0.1
assert max(differences.values()) < 1e-4
PY
