"""A trained model is asked with the prompt that it was trained on, whatever its base was asked with."""

import logging
import shutil

import pytest
from transformers import AutoProcessor

from llava_stf import load_model
from llava_stf.inference import user_turn
from llava_stf.models.llava_stf.conversation import CHAT_TEMPLATE, SYSTEM_PROMPT

WITHOUT_SYSTEM = (
    "{% for m in messages %}{{ m['role'].upper() + ': ' }}"
    "{% for c in m['content'] if c['type'] == 'image' %}{{ '<image>\n' }}{% endfor %}"
    "{% for c in m['content'] if c['type'] == 'text' %}{{ c['text'] + ' ' }}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
V1 = f"{SYSTEM_PROMPT} USER: <image>\nWhat is it? ASSISTANT:"


@pytest.fixture
def base(llava_base, tmp_path):
    """Writes the base with another chat template, or with none."""

    def write(template):
        folder = shutil.copytree(llava_base, tmp_path / "base")
        (folder / "chat_template.jinja").unlink()
        if template is not None:
            (folder / "chat_template.jinja").write_text(template)
        return str(folder)

    return write


def prompt(folder):
    processor = load_model(folder).processor
    return processor.apply_chat_template([user_turn("What is it?", 1)], add_generation_prompt=True)


@pytest.mark.parametrize("others", [{}, {"lora_rank": 2}], ids=["full", "lora"])
@pytest.mark.parametrize("template", [WITHOUT_SYSTEM, "{{ raise_exception('no') }}"], ids=["other", "refusing"])
def test_the_result_has_the_template_it_was_trained_on_and_the_log_says_so(run, base, caplog, template, others):
    with caplog.at_level(logging.INFO, "llava_stf"):
        output = run(base=base(template), max_steps=1, save_steps=1, **others)
    assert (
        "the base has a chat template that cannot be trained on: the trained model gets the v1 template" in caplog.text
    )
    assert prompt(output) == V1
    assert AutoProcessor.from_pretrained(output / "checkpoint-1").chat_template == CHAT_TEMPLATE


def test_captions_leave_the_template_as_it_is(run, base, caplog):
    with caplog.at_level(logging.INFO, "llava_stf"):
        output = run(base=base(WITHOUT_SYSTEM), data="align.json", stage="align", max_steps=1)
    assert "chat template" not in caplog.text
    assert prompt(output) == "USER: <image>\nWhat is it? ASSISTANT:"


def test_a_template_that_gives_the_same_prompt_stays(run, base):
    same = "{# mine #}" + CHAT_TEMPLATE
    output = run(base=base(same), max_steps=1)
    assert AutoProcessor.from_pretrained(output).chat_template == same
