#!/usr/bin/env bash
# transformers 5.24.0, bitsandbytes 0.50.2, torch 2.13.0; run 2026-12-01.
#
# A LLaVA is loaded in 4 bits with `llm_int8_skip_modules=["vision_tower"]`.
# Expected: the tower is left out, and with it the head, which by default is.
# Happens:  version 5 compares with the beginning ("model.vision_tower") and the end of a layer's full name, where
#           version 4 took a name within it, so the tower is quantized all the same, without a word. And a list of one's
#           own replaces the default instead of adding to it: now the head, which nobody named, is quantized, too.
#
# Seen (linear layers in 4 bits of all):
#                                                  tower   projector   language model   head
#   none                                           12/12   2/2         14/14            0/1
#   ['vision_tower']                               12/12   2/2         14/14            1/1
#   ['model.vision_tower']                          0/12   2/2         14/14            1/1
#   ['model.vision_tower', 'lm_head']               0/12   2/2         14/14            0/1
set -euo pipefail

dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
python3 -m venv venv
venv/bin/pip install -q --disable-pip-version-check torch==2.13.0 transformers==5.24.0 accelerate==1.15.0 \
    bitsandbytes==0.50.2 numpy==2.4.6
export HF_HUB_OFFLINE=1 TRANSFORMERS_VERBOSITY=error
venv/bin/python - 2>warnings.txt <<'PY' || { cat warnings.txt >&2; exit 1; }
import torch
from bitsandbytes.nn import Linear4bit
from transformers import BitsAndBytesConfig, CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

torch.manual_seed(0)
text = LlamaConfig(hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, vocab_size=100)
vision = CLIPVisionConfig(
    hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=14
)
config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=99)
LlavaForConditionalGeneration(config).save_pretrained("llava")
parts = ("vision_tower", "multi_modal_projector", "language_model", "lm_head")
seen = {}
for skipped in (None, ["vision_tower"], ["model.vision_tower"], ["model.vision_tower", "lm_head"]):
    bits = BitsAndBytesConfig(load_in_4bit=True, llm_int8_skip_modules=skipped)
    model = LlavaForConditionalGeneration.from_pretrained("llava", quantization_config=bits, dtype=torch.bfloat16)
    counts = []
    for part in parts:
        layers = [
            layer
            for name, layer in model.named_modules()
            if part in name.split(".") and isinstance(layer, torch.nn.Linear)
        ]
        counts.append(f"{sum(isinstance(layer, Linear4bit) for layer in layers)}/{len(layers)}")
    tower, projector, language, head = counts
    print(f"{skipped or 'none'!s:45}  {tower:>5}   {projector}         {language}            {head}")
    seen[str(skipped)] = (tower, head)
assert list(seen.values()) == [("12/12", "0/1"), ("12/12", "1/1"), ("0/12", "1/1"), ("0/12", "0/1")], seen
PY
