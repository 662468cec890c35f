#!/usr/bin/env bash
# transformers 5.24.0, torch 2.13.0; run 2026-12-01.
#
# A LLaVA answers about an image by `generate`, with and without `prompt_lookup_num_tokens=10`, which guesses the next
# tokens from what stood behind the same tokens in the prompt.
# Expected: the same answer; guesses that are wrong are thrown away.
# Happens:  LLaVA-1.5's prompt ends as "USER:" does, with a colon, and behind that one stand the image's placeholders.
#           So the very first guess is made of placeholders, and it is appended before the prompt is read together with
#           the image: an error says that tokens and features of images do not match, although those that were given
#           do. Prompts that do not end as the part before their image did are answered. A guess is cut where a logits
#           processor forbids it, so that `suppress_tokens` with the placeholder helps.
#
# Seen (ids of the answer, random weights):
#   USER: <image> ... ASSISTANT:    no lookup              [106, 54, 23, 40, 11, 48]
#   USER: <image> ... ASSISTANT:    lookup                 ValueError: Image features and image tokens do not match
#   USER: <image> ... ASSISTANT:    lookup, suppressed     [106, 54, 23, 40, 11, 48]
#   USER: <image> ... ASSISTANT     no lookup              [89, 0, 89, 13, 73, 70]
#   USER: <image> ... ASSISTANT     lookup                 [89, 0, 89, 13, 73, 70]
set -euo pipefail

dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
python3 -m venv venv
venv/bin/pip install -q --disable-pip-version-check torch==2.13.0 transformers==5.24.0 numpy==2.4.6 pillow==12.3.0
export HF_HUB_OFFLINE=1 TRANSFORMERS_VERBOSITY=error
venv/bin/python - <<'PY'
import torch
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

words = Tokenizer(models.BPE())
words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
words.decoder = decoders.ByteLevel()
trainer = trainers.BpeTrainer(vocab_size=120, special_tokens=["<s>", "</s>", "<pad>", "<image>"])
words.train_from_iterator(["USER: \nWhat colour is the triangle? ASSISTANT:"] * 9, trainer)
tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, bos_token="<s>", eos_token="</s>", pad_token="<pad>")
PLACEHOLDER = tokenizer.convert_tokens_to_ids("<image>")
images = CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28})
processor = LlavaProcessor(
    images, tokenizer, patch_size=14, vision_feature_select_strategy="default", num_additional_image_tokens=1
)
torch.manual_seed(0)
tower = CLIPVisionConfig(
    hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=14
)
text = LlamaConfig(
    hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, vocab_size=120, eos_token_id=None
)
config = LlavaConfig(vision_config=tower, text_config=text, image_token_id=PLACEHOLDER)
model = LlavaForConditionalGeneration(config).eval()
for weight in model.parameters():
    if weight.dim() > 1:
        torch.nn.init.normal_(weight, std=0.4)


def answer(prompt, **options):
    inputs = processor(images=Image.new("RGB", (28, 28), "red"), text=prompt, return_tensors="pt")
    try:
        ids = model.generate(**inputs, max_new_tokens=6, do_sample=False, pad_token_id=2, **options)
    except ValueError as error:
        return f"ValueError: {str(error).split(',')[0]}"
    return ids[0, inputs["input_ids"].shape[1] :].tolist()


lookup = {"prompt_lookup_num_tokens": 10}
bare = "USER: <image>\nWhat colour is the triangle? ASSISTANT"
colon = f"{bare}:"
seen = {}
for prompt, way, options in (
    (colon, "no lookup", {}),
    (colon, "lookup", lookup),
    (colon, "lookup, suppressed", {**lookup, "suppress_tokens": [PLACEHOLDER]}),
    (bare, "no lookup", {}),
    (bare, "lookup", lookup),
):
    seen[prompt, way] = answer(prompt, **options)
    title = f"{prompt.split(chr(10))[0]} ... {prompt.split()[-1]}"
    print(f"{title:31} {way:22} {seen[prompt, way]}")
assert seen[colon, "lookup"] == "ValueError: Image features and image tokens do not match", seen
assert seen[colon, "lookup, suppressed"] == seen[colon, "no lookup"]
assert seen[bare, "lookup"] == seen[bare, "no lookup"]
PY
