"""The text of an answer while its tokens arrive: whole characters, stop strings, nothing that a later id changes."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

from llava_stf.models.llava_stf.quoting import control_tokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


class Decoder:
    """What decoding needs to know of a tokenizer.

    Args:
        tokenizer: of the model.
        template: chat template; the special tokens that it writes are no text.
        ends: ids that end an answer.

    Attributes:
        control_ids: ids that are no text. A token that a user added is text, also one that was added as special.
        longest: characters of the longest token; a text of `n` times as many has more than `n` tokens.
        byte_ids: ids of single bytes (`<0x0A>`). A run of them is decoded as a whole: one more that makes it invalid
            UTF-8 turns all of it to replacement characters.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, template: str = "", ends: Collection[int] = ()) -> None:
        self._tokenizer = tokenizer
        vocabulary = tokenizer.get_vocab()
        names = (f"<0x{byte:02X}>" for byte in range(256))
        self.byte_ids = frozenset(vocabulary[name] for name in names if name in vocabulary)
        self.longest = max(map(len, vocabulary))
        special = {id_: token.content for id_, token in tokenizer.added_tokens_decoder.items() if token.special}
        control = control_tokens(tokenizer, template)
        self.control_ids = frozenset(ends) | {id_ for id_, token in special.items() if token in control}

    def __call__(self, ids: Sequence[int]) -> str:
        """The text of token ids, without control tokens."""
        return self._tokenizer.decode([id_ for id_ in ids if id_ not in self.control_ids])


class AnswerText:
    """The text of one answer, given out in pieces that join to the stripped text before the first stop string.

    Args:
        decode: of the model's tokenizer.
        stops: texts that end the answer and are not part of it.
    """

    def __init__(self, decode: Decoder, stops: Sequence[str] = ()) -> None:
        self._decode = decode
        self._stops = stops
        self._ids: list[int] = []
        self._settled = ""  # text of `_ids[:_until]`, which no later id can change
        self._until = 0
        self._context = 0  # where the ids decoded before the new ones begin: a first token loses its leading space
        self._given = 0  # characters

    def add(self, token: int) -> tuple[str, bool]:
        """The text that this id lets out, and whether a stop string is now complete."""
        if token in self._decode.control_ids:
            return "", False
        self._ids.append(token)
        text = self._text()
        places = [place for stop in self._stops if (place := text.find(stop)) >= 0]
        if places:
            return self._give(text[: min(places)].strip()), True
        if token in self._decode.byte_ids or text.endswith(_REPLACEMENT):
            return "", False
        self._settled, self._context, self._until = text, self._until, len(self._ids)
        text = text[: len(text) - self._begun_stop(text)]
        return self._give(text.strip()), False

    def finish(self) -> str:
        """What was held back, once no id follows."""
        return self._give(self._text().strip())

    def _text(self) -> str:
        known = self._decode(self._ids[self._context : self._until])
        return self._settled + self._decode(self._ids[self._context :])[len(known) :]

    def _begun_stop(self, text: str) -> int:
        """Characters at the end of the text that may become a stop string."""
        lengths = (length for stop in self._stops for length in range(1, len(stop)) if text.endswith(stop[:length]))
        return max(lengths, default=0)

    def _give(self, text: str) -> str:
        fresh = text[self._given :]
        self._given += len(fresh)
        return fresh
