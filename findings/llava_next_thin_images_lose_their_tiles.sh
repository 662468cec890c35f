#!/usr/bin/env bash
# transformers 5.24.0, torch 2.13.0; run 2026-11-29.
#
# LLaVA-NeXT encodes thin images: a base tile and three tiles of detail each.
# Expected: tokens of the detail at any aspect ratio, at least one row of them.
# Happens:  where the image's share of the tiles' 24 rows rounds to none (from an aspect ratio of about 48 on), the tiles
#           are encoded and then all cut away, the newline token too: pixels of the tiles have no effect any more. Processor
#           and model count alike, so nothing is said.
#
# Seen (height x width, tokens, whether zeroed tiles give the same tokens):
#   336x336:  1176 tokens, tiles matter
#   30x1500:   722 tokens, tiles matter
#   30x3000:   576 tokens, tiles have no effect
set -euo pipefail

dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
python3 -m venv venv
venv/bin/pip install -q --disable-pip-version-check torch==2.13.0 transformers==5.24.0 numpy==2.4.6
venv/bin/python - <<'PY'
import torch
from transformers import CLIPVisionConfig, LlamaConfig, LlavaNextConfig, LlavaNextForConditionalGeneration
from transformers.models.llava_next.modeling_llava_next import image_size_to_num_patches

tower = CLIPVisionConfig(
    hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, image_size=336, patch_size=14
)
language_model = LlamaConfig(
    hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2, vocab_size=64
)
torch.manual_seed(0)
config = LlavaNextConfig(vision_config=tower, text_config=language_model, image_token_id=63)
model = LlavaNextForConditionalGeneration(config).eval()
seen = {}
for size in ((336, 336), (30, 1500), (30, 3000)):
    tiles = image_size_to_num_patches(size, config.image_grid_pinpoints, 336)
    pixels = torch.randn(1, tiles, 3, 336, 336)
    base_only = pixels.clone()
    base_only[:, 1:] = 0
    with torch.no_grad():
        tokens, without = (
            model.get_image_features(values, torch.tensor([size])).pooler_output[0] for values in (pixels, base_only)
        )
    same = torch.equal(tokens, without)
    seen[size] = len(tokens), same
    name = f"{size[0]}x{size[1]}:"
    print(f"{name:9} {len(tokens):4} tokens, tiles {'have no effect' if same else 'matter'}")
assert seen == {(336, 336): (1176, False), (30, 1500): (722, False), (30, 3000): (576, True)}
PY
