"""Control tokens that a person wrote are text: they are quoted in a message, and spelled out when it is tokenised.

The quotes go with a text from the rendering of a message to its tokenising, through whatever chat template. They are
noncharacters of Unicode, which no text holds.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

OPEN, CLOSE = "\ufdd0", "\ufdd1"
_QUOTES = re.compile(f"[{OPEN}{CLOSE}]")
_QUOTED = re.compile(f"{OPEN}([^{OPEN}{CLOSE}]*){CLOSE}")
_TEXT_FIELDS = ("text", "refusal", "thinking")  # of a part in OpenAI's form, as vLLM reads it


def control_tokens(tokenizer: PreTrainedTokenizerBase, template: str) -> set[str]:
    """What begins, ends or parts a prompt: the named special tokens, and those that the chat template writes."""
    named = (tokenizer.bos_token, tokenizer.eos_token, tokenizer.unk_token, tokenizer.pad_token)
    written = (token.content for token in tokenizer.added_tokens_decoder.values() if token.special)
    return {token for token in named if token} | {token for token in written if token in template}


def control_pattern(
    tokenizer: PreTrainedTokenizerBase, template: str, markers: Collection[str | None]
) -> re.Pattern[str]:
    """The control tokens in a text; image markers are none."""
    longest_first = sorted(control_tokens(tokenizer, template).difference(markers), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or "(?!)")


def quote(text: str, controls: re.Pattern[str]) -> str:
    """`text` with its control tokens quoted. Raises `UnicodeEncodeError` for a lone surrogate."""
    text.encode("utf-8")
    return controls.sub(rf"{OPEN}\g<0>{CLOSE}", _QUOTES.sub("\N{REPLACEMENT CHARACTER}", text))


def quote_messages(messages: Iterable[Any], controls: re.Pattern[str]) -> list[Any]:
    """Messages in OpenAI's form with their texts quoted; what is no text stays, to be judged by whoever reads it.

    Raises:
        UnicodeEncodeError: a text has a lone surrogate.
    """
    return [
        {**message, "content": _quote_content(message["content"], controls)}
        if isinstance(message, Mapping) and "content" in message
        else message
        for message in messages
    ]


def _quote_content(content: Any, controls: re.Pattern[str]) -> Any:
    if isinstance(content, str):
        return quote(content, controls)
    if isinstance(content, Mapping) or not isinstance(content, Iterable):
        return content
    return [_quote_part(part, controls) for part in content]


def _quote_part(part: Any, controls: re.Pattern[str]) -> Any:
    if isinstance(part, str):
        return quote(part, controls)
    if not isinstance(part, Mapping):
        return part
    texts = {name: part[name] for name in _TEXT_FIELDS if isinstance(part.get(name), str)}
    return {**part, **{name: quote(text, controls) for name, text in texts.items()}}


def without_quotes(value: Any) -> Any:
    """A text, or whatever holds texts, as it was before it was quoted."""
    if isinstance(value, str):
        return _QUOTES.sub("", value)
    if isinstance(value, list):
        return [without_quotes(item) for item in value]
    return {key: without_quotes(item) for key, item in value.items()} if isinstance(value, dict) else value


def split_quoted(text: str) -> list[str]:
    """Text, control token, text, ..., text: the quoted control tokens stand at odd places."""
    return _QUOTED.split(text)
