#!/usr/bin/env bash
# transformers 5.22.0, torch 2.13.0; run 2026-12-01.
#
# A random LLaVA generates behind two images of its own each, the prompt read at once and in parts of 8 tokens.
# Expected: the same tokens: `prefill_chunk_size` reads a long prompt in parts to save memory.
# Happens:  the parts are prepared without `pixel_values`, which go to what is known as the first pass, and no part is.
#           The image's places are read as the embedding of `<image>`, without a word: both images have one answer, that
#           of a prompt to which no pixels are given. transformers 5.23 reads the images in the parts.
#
# Seen:
#   5.22.0   at once: answers differ      in parts: answers are the same, those without pixels
#   5.23.0   at once: answers differ      in parts: answers as at once
set -euo pipefail

dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
python3 -m venv venv
venv/bin/pip install -q --disable-pip-version-check torch==2.13.0 numpy==2.4.6
export HF_HUB_OFFLINE=1 TRANSFORMERS_VERBOSITY=error
for version in 5.22.0 5.23.0; do
    venv/bin/pip install -q --disable-pip-version-check "transformers==$version"
    venv/bin/python - <<'PY' 2> warnings.txt || { cat warnings.txt >&2; exit 1; }
import torch
import transformers
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

torch.manual_seed(0)
vision = CLIPVisionConfig(
    hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, image_size=56, patch_size=14
)
text = LlamaConfig(hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, vocab_size=100)
model = LlavaForConditionalGeneration(LlavaConfig(vision_config=vision, text_config=text, image_token_index=99)).eval()
for name, weight in model.named_parameters():  # large enough that an image decides what follows
    if weight.dim() > 1:
        weight.data.mul_(8)
ids = torch.tensor([[1, 5, *[99] * 16, 7, 8, 9]])


def answer(pixels=None, **options):
    options |= {} if pixels is None else {"pixel_values": pixels}
    made = model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=8, min_new_tokens=8,
        pad_token_id=0, **options
    )
    return made[0, -8:].tolist()


images = [torch.full((1, 3, 56, 56), value) for value in (-2.0, 2.0)]
whole = [answer(image) for image in images]
parts = [answer(image, prefill_chunk_size=8) for image in images]
assert whole[0] != whole[1], whole
if transformers.__version__ == "5.22.0":
    assert parts == [answer(), answer()], parts
    told = "the same, those without pixels"
else:
    assert parts == whole, parts
    told = "as at once"
print(f"{transformers.__version__}   at once: answers differ      in parts: answers are {told}".replace("are as", "as"))
PY
done
