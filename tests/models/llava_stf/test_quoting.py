"""What a person wrote is text in every form of a message; a prompt that holds the quotes themselves breaks nothing."""

import re

import pytest

from llava_stf.loading.testing import tiny_tokenizer
from llava_stf.models.llava_stf.chunks import tokenize_chunks
from llava_stf.models.llava_stf.quoting import CLOSE, OPEN, quote_messages, without_quotes

CONTROLS = re.compile("</s>|<s>")
QUOTED = f"a {OPEN}</s>{CLOSE} b"


@pytest.mark.parametrize(
    ("content", "quoted"),
    [
        ("a </s> b", QUOTED),
        (["a </s> b"], [QUOTED]),
        ([{"type": "text", "text": "a </s> b"}], [{"type": "text", "text": QUOTED}]),
        ([{"type": "refusal", "refusal": "a </s> b"}], [{"type": "refusal", "refusal": QUOTED}]),
        (({"text": "a </s> b"} for _ in range(1)), [{"text": QUOTED}]),
        ([{"type": "image_url", "image_url": {"url": "</s>"}}], [{"type": "image_url", "image_url": {"url": "</s>"}}]),
        ([{"type": "text", "text": 7}, 7], [{"type": "text", "text": 7}, 7]),
        (None, None),
        ("<image> [SEG]", "<image> [SEG]"),
        (f"a {OPEN} b", "a \N{REPLACEMENT CHARACTER} b"),
    ],
)
def test_texts_are_quoted_wherever_they_stand(content, quoted):
    messages = [{"role": "user", "content": content}, {"role": "assistant"}, 7]
    assert quote_messages(messages, CONTROLS) == [{"role": "user", "content": quoted}, {"role": "assistant"}, 7]


def test_quotes_go_again():
    messages = [{"role": "user", "content": [{"type": "text", "text": "a </s> b"}, {"type": "image"}]}]
    assert without_quotes(quote_messages(messages, CONTROLS)) == messages


@pytest.mark.parametrize("text", [f"a {OPEN} b", f"{CLOSE}a{OPEN}", f"{OPEN}{OPEN}</s>{CLOSE}", f"a{OPEN}b</s>"])
def test_a_raw_prompt_with_quotes_of_its_own_is_tokenised(text):
    tokenizer = tiny_tokenizer()
    ids = tokenize_chunks(tokenizer, text, image_token_id=tokenizer.convert_tokens_to_ids("<image>"))
    assert ids[0] == tokenizer.bos_token_id
    assert len(ids) > 1
