"""Token ids of a prompt: its text is split at the image markers, and each chunk is tokenised on its own.

A LLaMA tokenizer puts a word-start piece in front of every text it gets, and the language model of LLaVA-1.5 has seen
that piece behind every image.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from llava_stf.errors import PromptError
from llava_stf.models.llava_stf.quoting import split_quoted

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

IMAGE_TOKEN = "<image>"


def tokenize_chunks(
    tokenizer: PreTrainedTokenizerBase,
    text: str,
    *,
    image_token_id: int,
    image_token: str = IMAGE_TOKEN,
    others: Mapping[str, int] | None = None,
) -> list[int]:
    """Token ids of a prompt: BOS, then each chunk between markers tokenised on its own, one id per marker.

    Markers that stand side by side have no chunk between them, so a marker repeated n times gives n ids in a row. A BOS
    that the text itself begins with, as some chat templates write it, is not doubled.

    Args:
        tokenizer: of the model.
        text: the prompt.
        image_token_id: of a marker.
        image_token: the marker.
        others: ids of further markers, `<video>` for one.

    Raises:
        PromptError: a lone surrogate.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise PromptError(f"The prompt is no valid Unicode text: {error.reason}.") from error
    places = {image_token: image_token_id, **(others or {})}
    split = re.split(f"({'|'.join(map(re.escape, places))})", text.removeprefix(tokenizer.bos_token or ""))
    return join_chunks(
        tokenize_texts(tokenizer, split[::2]), [places[marker] for marker in split[1::2]], tokenizer.bos_token_id
    )


def tokenize_texts(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[list[int]]:
    """The ids of each text on its own, without BOS, in one call; quoted control tokens are text."""
    pieces = [split_quoted(text) for text in texts]
    if all(len(split) == 1 for split in pieces):
        return _ids(tokenizer, texts)
    # A piece behind a control token is tokenised as one that stands there, and the token is then spelled out.
    starts = [[split[0], *(a + b for a, b in zip(split[1::2], split[2::2], strict=True))] for split in pieces]
    encoded = iter(_ids(tokenizer, [piece for split in starts for piece in split]))
    joined = []
    for split in pieces:
        ids = list(next(encoded))
        for control in split[1::2]:
            ids += _spelled(tokenizer, control) + next(encoded)[1:]
        joined.append(ids)
    return joined


def _spelled(tokenizer: PreTrainedTokenizerBase, control: str) -> list[int]:
    """The ids of a control token's characters, without a word-start piece in front of them."""
    before, with_control = _ids(tokenizer, ["\n", f"\n{control}"], split_special_tokens=True)
    return with_control[len(before) :]


def _ids(tokenizer: PreTrainedTokenizerBase, texts: list[str], **options: Any) -> list[list[int]]:
    settings = {"add_special_tokens": False, "return_attention_mask": False, "verbose": False}
    return tokenizer(texts, **settings, **options)["input_ids"]


def join_chunks(chunks: Sequence[list[int]], places: Sequence[int], bos_token_id: int | None) -> list[int]:
    """BOS, then the chunks with the ids of the places between them."""
    ids = [] if bos_token_id is None else [bos_token_id]
    for i, chunk in enumerate(chunks):
        if i:
            ids.append(places[i - 1])
        ids.extend(chunk)
    return ids
