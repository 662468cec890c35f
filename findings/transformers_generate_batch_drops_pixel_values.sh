#!/usr/bin/env bash
# transformers 5.24.0, torch 2.13.0; run 2026-11-29.
#
# A LLaVA answers one prompt about a black and about a white image, by `generate` and by `generate_batch` (continuous
# batching), which takes further keywords.
# Expected: `generate_batch(..., pixel_values=...)` answers about the image, or says that it takes none.
# Happens:  the keyword is taken and dropped without a word. The embeddings of the placeholder token stand where the
#           image should be, so both images get the answer of no image.
#
# Seen (ids of the answer, random weights):
#   generate,       black: [47, 41, 10, 3, 32, 10, 31, 56]
#   generate,       white: [47, 7, 3, 3, 3, 3, 3, 3]
#   generate,       none:  [40, 51, 47, 58, 32, 10, 47, 0]
#   generate_batch, black: [40, 51, 47, 58, 32, 10, 47, 0]
#   generate_batch, white: [40, 51, 47, 58, 32, 10, 47, 0]
set -euo pipefail

dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
python3 -m venv venv
venv/bin/pip install -q --disable-pip-version-check torch==2.13.0 transformers==5.24.0 numpy==2.4.6 psutil==7.2.2
venv/bin/python - <<'PY'
import torch
import transformers
from transformers import (
    CLIPVisionConfig,
    ContinuousBatchingConfig,
    GenerationConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
)

transformers.logging.set_verbosity_error()
torch.manual_seed(0)
tower = CLIPVisionConfig(
    hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=14
)
language_model = LlamaConfig(
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=2,
    vocab_size=64,
    eos_token_id=None,
    pad_token_id=0,
)
model = LlavaForConditionalGeneration(
    LlavaConfig(vision_config=tower, text_config=language_model, image_token_id=63)
).eval()
for weight in model.parameters():
    if weight.dim() > 1:
        torch.nn.init.normal_(weight, std=0.5)
ids = [1, 63, 63, 63, 63, 5, 6, 7]
settings = GenerationConfig(max_new_tokens=8, do_sample=False, pad_token_id=0)
small = ContinuousBatchingConfig(num_blocks=16, max_batch_tokens=32)  # the default takes most of the memory
images = {"black": torch.full((1, 3, 28, 28), -2.0), "white": torch.full((1, 3, 28, 28), 2.0)}


def generate(**image):
    return model.generate(torch.tensor([ids]), generation_config=settings, **image)[0, len(ids) :].tolist()


def generate_batch(**image):
    answers = model.generate_batch(
        [ids], generation_config=settings, continuous_batching_config=small, progress_bar=False, **image
    )
    return next(iter(answers.values())).generated_tokens


answers = {("generate", name): generate(pixel_values=image) for name, image in images.items()}
answers["generate", "none"] = generate()
answers |= {("generate_batch", name): generate_batch(pixel_values=image) for name, image in images.items()}
for (way, name), answer in answers.items():
    print(f"{way + ',':15} {name + ':':6} {answer}")
assert answers["generate", "black"] != answers["generate", "white"] != answers["generate", "none"]
assert answers["generate_batch", "black"] == answers["generate_batch", "white"] == answers["generate", "none"]
PY
