"""Conversations in a model's own chat template: labels are what `generate` has to give, and nothing else."""

import pytest

from llava_stf.data.templates import encode_chat, template_of
from llava_stf.inference import user_turn
from llava_stf.loading.testing import MISTRAL_TEMPLATE, tiny_llava_next
from llava_stf.loading.testing_videos import QWEN_TEMPLATE, VICUNA_TEMPLATE, tiny_llava_onevision
from llava_stf.models.llava_stf.conversation import CHAT_TEMPLATE, render_chat

LLAMA3_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n\n' }}{% for item in message['content'] %}"
    "{{ '<image>\n' if item['type'] == 'image' else item['text'] | trim }}{% endfor %}{{ '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n\n' }}{% endif %}"
)
# Qwen3's, which puts an empty thought before the last answer alone.
QWEN3_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['role'] == 'assistant' and loop.last %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"
    "{% for item in message['content'] %}{{ '<image>' if item['type'] == 'image' else item['text'] }}{% endfor %}"
    "{{ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# As published Vicunas have it: nothing ends an answer.
OPEN_TEMPLATE = (
    "{% for m in messages %}{{ m['role'].upper() + ': ' }}{% for c in m['content'] %}"
    "{{ '<image>\n' if c['type'] == 'image' else c['text'] + ' ' }}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)


def turns(*texts):
    return [{"from": ("human", "gpt")[i % 2], "value": text} for i, text in enumerate(texts)]


@pytest.fixture(scope="module")
def processor():
    return tiny_llava_onevision()[1]


@pytest.mark.parametrize(
    ("template", "end", "before"),
    [
        (MISTRAL_TEMPLATE, "</s>", ""),
        (VICUNA_TEMPLATE, "</s>", ""),
        (QWEN_TEMPLATE, "<|im_end|>", ""),
        (LLAMA3_TEMPLATE, "<|im_end|>", ""),
        (QWEN3_TEMPLATE, "<|im_end|>", "<think>\n\n</think>\n\n"),
    ],
    ids=["mistral", "vicuna", "qwen2", "llama3", "qwen3"],
)
def test_labels_are_the_answers_and_their_ends(processor, template, end, before):
    processor.chat_template = template
    assert template_of(processor) == "chat"
    ids, labels = encode_chat(processor, turns("<image>\nWhat?", "A bus", "Two <image>?", "No: </s> or <|im_end|>"))
    learnt = "".join(processor.tokenizer.convert_ids_to_tokens([label for label in labels if label != -100]))
    first, second, rest = learnt.replace("▁", " ").split(end)[0], *learnt.replace("▁", " ").split(end)[1:3]
    assert first.strip() in ("A bus", "\nA bus")
    assert second.strip().startswith(before.strip() + ("No:" if not before else "\n\nNo:"))
    assert "<image>" not in learnt
    assert ids.count(processor.image_token_id) == 2
    assert ids.count(processor.tokenizer.convert_tokens_to_ids(end)) == (2 if end == "</s>" else 4)
    assert rest is not None


def test_the_prompt_before_the_first_label_is_what_the_model_is_asked_with(processor):
    processor.chat_template = QWEN_TEMPLATE
    ids, labels = encode_chat(processor, turns("<image>\nWhat?", "A bus"))
    asked = processor.prompt_ids(render_chat(processor, [user_turn("What?", 1)]), [1])
    first = next(at for at, label in enumerate(labels) if label != -100)
    assert ids[:first] == asked


def test_a_template_without_ends_is_not_trained_on(processor):
    processor.chat_template = OPEN_TEMPLATE
    assert template_of(processor) == "v1"
    processor.chat_template = None
    assert template_of(processor) == "v1"


def test_v1_stays_v1():
    _, processor = tiny_llava_next()
    processor.chat_template = CHAT_TEMPLATE
    assert template_of(processor) == "v1"
