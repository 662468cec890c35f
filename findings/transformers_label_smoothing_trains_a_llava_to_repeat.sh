#!/usr/bin/env bash
# transformers 5.24.0, accelerate 1.15.0, torch 2.13.0; run 2026-12-01.
#
# A small random LLaVA, and the Llama within it, learn one row by heart with `Trainer`, with and without
# `label_smoothing_factor=0.1`.
# Expected: smoothed or not, a place learns the token behind it.
# Happens:  with smoothing the Trainer computes the loss itself, and moves labels by one place only for classes of the
#           mapping of causal language models. LLaVA, like the other classes of images and text, stands in another one:
#           each place is taught its own token. The loss falls, and the model repeats what it reads. Nothing warns.
#
# Seen (what a place says, against its own token and the one behind it):
#   row                        1  5 99 99 99 99  7  8  9  2
#   Llama                      5  .  .  .  .  7  8  9  2  .   the next token
#   Llama, smoothed            5  .  .  .  .  7  8  9  2  .   the next token
#   LLaVA                      5  .  .  .  .  7  8  9  2  .   the next token
#   LLaVA, smoothed            1  5  .  .  .  .  7  8  9  2   its own token
set -euo pipefail

dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
python3 -m venv venv
venv/bin/pip install -q --disable-pip-version-check torch==2.13.0 transformers==5.24.0 accelerate==1.15.0 numpy==2.4.6
export HF_HUB_OFFLINE=1 TRANSFORMERS_VERBOSITY=error
venv/bin/python - 2>warnings.txt <<'PY' || { cat warnings.txt >&2; exit 1; }
import torch
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PrinterCallback,
    Trainer,
    TrainingArguments,
)

IMAGE = 99
ids = torch.tensor([1, 5, *[IMAGE] * 4, 7, 8, 9, 2])
text = LlamaConfig(hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, vocab_size=100)
vision = CLIPVisionConfig(
    hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=14
)
llava = LlavaConfig(vision_config=vision, text_config=text, image_token_index=IMAGE, image_seq_length=4)
row = {"input_ids": ids, "labels": ids.masked_fill(ids == IMAGE, -100)}
print("row                      ", " ".join(f"{one:2}" for one in ids.tolist()))

# Places that the loss asks about: those whose next, or whose own token is a label.
following, own = (ids[1:] != IMAGE).nonzero().flatten(), (ids != IMAGE).nonzero().flatten()
seen = {}
for name, cls, config in (("Llama", LlamaForCausalLM, text), ("LLaVA", LlavaForConditionalGeneration, llava)):
    for factor in (0.0, 0.1):
        torch.manual_seed(0)
        model = cls(config)
        rows = [row | ({"pixel_values": torch.zeros(3, 28, 28)} if name == "LLaVA" else {})] * 4
        settings = TrainingArguments(
            "out", per_device_train_batch_size=4, max_steps=25, learning_rate=1e-2, label_smoothing_factor=factor,
            report_to=[], use_cpu=True, save_strategy="no", logging_strategy="no", disable_tqdm=True,
        )
        trainer = Trainer(model, settings, train_dataset=rows)
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        with torch.no_grad():
            inputs = {key: value[None] for key, value in rows[0].items() if key != "labels"}
            said = model.eval()(**inputs).logits[0].argmax(-1)
        if torch.equal(said[following], ids[following + 1]):
            found, asked = "the next token", following
        elif torch.equal(said[own], ids[own]):
            found, asked = "its own token", own
        else:
            found, asked = "neither", torch.arange(len(ids))
        told = " ".join(f"{one:2}" if place in asked else " ." for place, one in enumerate(said.tolist()))
        title = name + (", smoothed" if factor else "")
        print(f"{title:25} {told}   {found}")
        seen[title] = found
nexts = ["Llama", "Llama, smoothed", "LLaVA"]
assert seen == {**dict.fromkeys(nexts, "the next token"), "LLaVA, smoothed": "its own token"}, seen
PY
