"""Which ids are text: told from the config alone, and with the tokenizer."""

import pytest
from transformers import LlamaConfig, LlavaConfig

from llava_stf.errors import CheckpointError
from llava_stf.loading.testing import tiny_tokenizer
from llava_stf.models.llava_stf.vocabulary import ensure_pad_token, suppressed_ids


def config_of(tokenizer, rows, **ids):
    text = LlamaConfig(vocab_size=rows, eos_token_id=ids.pop("eos_token_id", 2), pad_token_id=ids.get("pad_token_id"))
    return LlavaConfig(text_config=text, image_token_index=tokenizer.convert_tokens_to_ids("<image>"), **ids)


@pytest.mark.parametrize("pad", [None, -1, 2])
def test_without_a_tokenizer_the_config_tells_the_placeholder_and_a_pad_id_that_is_one(pad):
    tokenizer = tiny_tokenizer()
    config = config_of(tokenizer, 400, pad_token_id=pad, eos_token_id=[2, 7])
    assert suppressed_ids(config) == [config.image_token_id]
    assert suppressed_ids(config_of(tokenizer, 400, pad_token_id=356)) == [config.image_token_id, 356]


def test_the_tokenizer_tells_rows_without_a_token_also_after_it_grew():
    tokenizer = tiny_tokenizer()
    first = len(tokenizer)
    config = config_of(tokenizer, first + 4)
    silent = [tokenizer.convert_tokens_to_ids("<image>"), tokenizer.pad_token_id]
    assert suppressed_ids(config, tokenizer) == [*silent, *range(first, first + 4)]
    tokenizer.add_tokens(["[A]", "[B]"])
    assert suppressed_ids(config, tokenizer) == [*silent, first + 2, first + 3]


def test_a_tokenizer_that_has_nothing_to_pad_with_is_refused():
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token = tokenizer.unk_token = tokenizer.eos_token = None
    with pytest.raises(CheckpointError, match="pad_token in tokenizer_config"):
        ensure_pad_token(tokenizer)
