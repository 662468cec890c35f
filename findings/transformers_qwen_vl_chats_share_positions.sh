#!/usr/bin/env bash
# transformers 5.24.0, torch 2.13.0; run 2026-12-01.
#
# A random Qwen2.5-VL, and a random LLaVA, hold two chats, each about an image of its own and with a cache of its own.
# The first chat goes on alone, behind a turn of the other one, and is read anew without a cache.
# Expected: the same answer: what a chat has read is in its cache.
# Happens:  how far an image moves the positions behind it is kept in the model (`rope_deltas`), not in the cache. The
#           chat goes on at positions of the image that was read last, whoever's it was. Turns of one chat are right,
#           and so are two chats on two models, or about images of one size.
#
# Seen (whether the second answer of the first chat is that of the whole chat read anew):
#                                        Qwen2.5-VL   LLaVA
#   alone                                yes          yes
#   behind a turn of the other chat      no           yes
set -euo pipefail

dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
python3 -m venv venv
venv/bin/pip install -q --disable-pip-version-check torch==2.13.0 transformers==5.24.0 numpy==2.4.6
export HF_HUB_OFFLINE=1 TRANSFORMERS_VERBOSITY=error
venv/bin/python - 2>warnings.txt <<'PY' || { cat warnings.txt >&2; exit 1; }
import torch
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
)

IMAGE, NEW = 99, 6


def qwen():
    text = {
        "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "vocab_size": 100,
        "rope_parameters": {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 10000.0},
    }
    vision = {
        "depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "out_hidden_size": 64,
        "fullatt_block_indexes": [1], "window_size": 56,
    }
    config = Qwen2_5_VLConfig(
        text_config=text, vision_config=vision, image_token_id=IMAGE, video_token_id=98, vision_start_token_id=97,
        vision_end_token_id=96,
    )
    return Qwen2_5_VLForConditionalGeneration(config)


def llava():
    text = LlamaConfig(
        hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, vocab_size=100
    )
    vision = CLIPVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=14
    )
    return LlavaForConditionalGeneration(LlavaConfig(vision_config=vision, text_config=text, image_token_index=IMAGE))


class Chat:
    """A chat about one image: `side` patches of 14 pixels each way for Qwen, four tokens for LLaVA."""

    def __init__(self, model, side):
        self.model, self.ids, self.cache = model, [], None
        torch.manual_seed(side)
        if isinstance(model, LlavaForConditionalGeneration):
            self.image, tokens = {"pixel_values": torch.randn(1, 3, 28, 28)}, 4
        else:
            pixels, grid = torch.randn(side * side, 3 * 2 * 14 * 14), torch.tensor([[1, side, side]])
            self.image, tokens = {"pixel_values": pixels, "image_grid_thw": grid}, side * side // 4
        self.question = [1, 97, *[IMAGE] * tokens, 96, 5, 6, 7]

    def turn(self, more):
        ids = torch.tensor([self.ids + more])
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "cache": self.cache}
        if self.cache is None:
            inputs |= self.image
        if "image_grid_thw" in self.image:  # as the processor gives it
            inputs["mm_token_type_ids"] = (ids == IMAGE).int()
        with torch.no_grad():
            made = self.model.generate(
                **inputs, do_sample=False, max_new_tokens=NEW, min_new_tokens=NEW, pad_token_id=0,
                return_dict_in_generate=True,
            )
        self.ids, self.cache = made.sequences[0].tolist(), made.cache
        return self.ids[-NEW:]


seen = {}
for name, make in (("Qwen2.5-VL", qwen), ("LLaVA", llava)):
    torch.manual_seed(0)
    model = make().eval()
    for weight in model.parameters():  # large enough that positions decide what follows
        if weight.dim() > 1:
            weight.data.mul_(8)
    answers = {}
    for title in ("alone", "behind a turn of the other chat"):
        first, other = Chat(model, 4), Chat(model, 12)
        first.turn(first.question)
        history = list(first.ids)
        if title != "alone":
            other.turn(other.question)
        answers[title] = first.turn([10, 11, 12])
    whole = Chat(model, 4).turn([*history, 10, 11, 12])
    for title, answer in answers.items():
        seen.setdefault(title, []).append("yes" if answer == whole else "no")
print(f"{'':36} Qwen2.5-VL   LLaVA")
for title, (one, two) in seen.items():
    print(f"{title:36} {one:12} {two}")
assert list(seen.values()) == [["yes", "yes"], ["no", "yes"]], seen
PY
