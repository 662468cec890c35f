#!/usr/bin/env bash
# peft 0.21.2, transformers 5.24.0, torch 2.13.0; run 2026-12-01.
#
# Four tokens are added to a Llama, and to a LLaVA on such a Llama, by `resize_token_embeddings`; their rows are copied
# from tokens of a similar meaning. LoRA is put on, saved, and loaded onto the base, resized once more.
# Expected: the same logits. By default `save_pretrained` stores the tables of a model whose vocabulary has grown, which
#           are in no other file.
# Happens:  of the Llama it does, with a warning that it does. Whether a vocabulary has grown is read from
#           `config.vocab_size`, which a LLaVA has in its `text_config` only: of the LLaVA the tables are left out
#           without a word, and loading says nothing either. What the new rows were set to, or had been trained to, is
#           gone. `save_embedding_layers=True` helps.
#
# Seen (tables saved, and the largest difference of logits behind a new token from those before saving, in standard
# deviations of these):
#   llama                                embed_tokens and lm_head   warned  0.00
#   llava                                none                               2.59
#   llava, save_embedding_layers=True    embed_tokens and lm_head           0.00
set -euo pipefail

dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
python3 -m venv venv
venv/bin/pip install -q --disable-pip-version-check torch==2.13.0 transformers==5.24.0 peft==0.21.2 numpy==2.4.6
export HF_HUB_OFFLINE=1
venv/bin/python - 2>warnings.txt <<'PY' || { cat warnings.txt >&2; exit 1; }
import shutil
import warnings

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors import safe_open
from transformers import CLIPVisionConfig, LlamaConfig, LlamaForCausalLM, LlavaConfig, LlavaForConditionalGeneration

ROWS, NEW = 200, 4
text = LlamaConfig(hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, vocab_size=ROWS)
vision = CLIPVisionConfig(
    hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=14
)
torch.manual_seed(0)
LlamaForCausalLM(text).save_pretrained("llama")
config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=ROWS - 1)
LlavaForConditionalGeneration(config).save_pretrained("llava")
ids = torch.tensor([[1, 5, ROWS, 7, ROWS + 3]])


def resized(cls, name):
    model = cls.from_pretrained(name)
    model.resize_token_embeddings(ROWS + NEW)
    return model


def copied(model):
    for table in (model.get_input_embeddings(), model.get_output_embeddings()):
        table.weight.data[ROWS:] = table.weight.data[10 : 10 + NEW]
    return model


def logits(model):
    with torch.no_grad():
        return model.eval()(input_ids=ids).logits[:, 2:]


seen = {}
for name, options in (("llama", {}), ("llava", {}), ("llava", {"save_embedding_layers": True})):
    cls = LlamaForCausalLM if name == "llama" else LlavaForConditionalGeneration
    model = get_peft_model(copied(resized(cls, name)), LoraConfig(target_modules=r".*layers.*q_proj"))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.save_pretrained("adapter", **options)
    with safe_open("adapter/adapter_model.safetensors", "pt") as file:
        tables = sorted(key.split(".")[-2] for key in file.keys() if "lora" not in key)
    warned = any("save_embedding_layers" in str(one.message) for one in caught)
    before = logits(model)
    again = PeftModel.from_pretrained(resized(cls, name), "adapter")
    error = float((logits(again) - before).abs().max() / before.std())
    title = name + "".join(f", {key}={value}" for key, value in options.items())
    print(f"{title:35}  {' and '.join(tables) or 'none':25}  {'warned' if warned else '':6}  {error:.2f}")
    seen[title] = (len(tables), warned, error > 0.1)
    shutil.rmtree("adapter")
assert list(seen.values()) == [(2, True, False), (0, False, True), (2, False, False)], seen
PY
