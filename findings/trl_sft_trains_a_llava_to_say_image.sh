#!/usr/bin/env bash
# trl 1.16.0, transformers 5.24.0, torch 2.13.0; run 2026-12-01.
#
# A small random LLaVA is trained by `SFTTrainer`, ten steps on four images of one colour each whose answers are the
# colours: rows of `messages` once, rows of `prompt` and `completion` once. What the loss is of is left to the defaults.
# Expected: of `messages` the question is trained, too; the image's 576 places have no text and no label.
# Happens:  only padding is masked. The processor has written `<image>` 576 times before the collator copies the ids to
#           the labels, and the model masks nothing, so 576 of an example's 583 labels are `<image>`. The reported loss
#           falls and the reported accuracy of tokens is 0.99, while every answer is "<image>" still. With `prompt` and
#           `completion` the labels are the answer's. (`assistant_only_loss=True` needs a template that marks answers.)
#
# Seen (labels of an example; loss and accuracy of the last step as reported; what is said after training):
#   messages: 583 labels, 576 of them <image>; loss 0.09, accuracy 0.99; says <image> <image> <image> <image>
#   prompt and completion: 3 labels, 0 of them <image>; loss 0.58, accuracy 0.75; says red blue blue white
set -euo pipefail

dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
python3 -m venv venv
venv/bin/pip install -q --disable-pip-version-check torch==2.13.0 transformers==5.24.0 trl==1.16.0 datasets==5.2.0 \
  accelerate==1.15.0 numpy==2.4.6 pillow==12.3.0
export HF_HOME="$dir/cache" HF_HUB_OFFLINE=1 TRANSFORMERS_VERBOSITY=error
venv/bin/python - 2>warnings.txt <<'PY' || { cat warnings.txt >&2; exit 1; }
import contextlib
import io

import torch
from datasets import Dataset
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    CLIPImageProcessorPil, CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor,
    PreTrainedTokenizerFast,
)
from trl import SFTConfig, SFTTrainer

COLOURS = ["red", "green", "blue", "white"]
WORDS = ["<pad>", "<s>", "</s>", "<unk>", "<image>", "USER:", "ASSISTANT:", "what", "colour", "?", *COLOURS]
TEMPLATE = (
    "{% for message in messages %}{{ 'USER: ' if message.role == 'user' else 'ASSISTANT: ' }}"
    "{% for part in message.content %}{{ '<image> ' if part.type == 'image' else part.text + ' ' }}{% endfor %}"
    "{{ '</s>' if message.role == 'assistant' else '' }}{% endfor %}"
)
words = Tokenizer(models.WordLevel({word: row for row, word in enumerate(WORDS)}, unk_token="<unk>"))
words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
tokenizer = PreTrainedTokenizerFast(
    tokenizer_object=words, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>",
    extra_special_tokens=["<image>"],
)
processor = LlavaProcessor(
    CLIPImageProcessorPil(size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336}), tokenizer,
    patch_size=14, vision_feature_select_strategy="default", num_additional_image_tokens=1, chat_template=TEMPLATE,
)
config = LlavaConfig(
    vision_config=CLIPVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, image_size=336, patch_size=14
    ),
    text_config=LlamaConfig(
        hidden_size=64, intermediate_size=128, num_hidden_layers=1, num_attention_heads=2, vocab_size=len(WORDS)
    ),
    image_token_index=WORDS.index("<image>"),
)
options = SFTConfig(
    "out", max_length=None, max_steps=10, per_device_train_batch_size=4, learning_rate=1e-2, report_to=[], use_cpu=True,
    lr_scheduler_type="constant", bf16=False, gradient_checkpointing=False, logging_steps=1, save_strategy="no",
    disable_tqdm=True,
)
kinds = {"messages": [], "prompt and completion": []}
for colour in COLOURS:
    image = {"images": [Image.new("RGB", (336, 336), colour)]}
    question, answer = [{"role": "user", "content": "what colour ?"}], [{"role": "assistant", "content": colour}]
    kinds["messages"].append(image | {"messages": question + answer})
    kinds["prompt and completion"].append(image | {"prompt": question, "completion": answer})
seen = []
for kind, rows in kinds.items():
    torch.manual_seed(0)
    model = LlavaForConditionalGeneration(config)
    data = Dataset.from_list(rows)
    trainer = SFTTrainer(model, args=options, train_dataset=data, processing_class=processor)
    with contextlib.redirect_stdout(io.StringIO()):
        trainer.train()
    last = [entry for entry in trainer.state.log_history if "loss" in entry][-1]
    batch = trainer.data_collator([dict(row) for row in data])
    labels = batch.pop("labels")[0]
    counts = int((labels != -100).sum()), int((labels == config.image_token_id).sum())
    with torch.no_grad():
        logits = model.eval()(**batch).logits
    places = (batch["input_ids"] == tokenizer.convert_tokens_to_ids("ASSISTANT:")).nonzero()
    said = [WORDS[int(logits[row, place].argmax())] for row, place in places]
    print(f"{kind}: {counts[0]} labels, {counts[1]} of them <image>;", end=" ")
    print(f"loss {last['loss']:.2f}, accuracy {last['mean_token_accuracy']:.2f}; says {' '.join(said)}")
    seen.append((counts, last["mean_token_accuracy"] > 0.95, set(said) == {"<image>"}))
assert seen == [((583, 576), True, True), ((3, 0), False, False)], seen
PY
