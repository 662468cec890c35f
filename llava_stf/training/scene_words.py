"""A scene in a language model's own word embeddings: as tokens of objects, or patch by patch as an image shows it.

A token is the sum of the embeddings of the words that are true of it, each less what all embeddings have in common, and
once what they have in common. What is learned from such tokens needs no tower; a projector that gives them is aligned.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from llava_stf.world.labels import patch_labels
from llava_stf.world.questions import UNANSWERABLE
from llava_stf.world.scene import CHARACTERS, COLOURS, PLACES, SHAPES, SIZES, WORDS, Scene

OBJECT = "shapes"  # the word for any object, so that "How many shapes are there?" finds them
ORDERS = tuple(f"<0x{number:02X}>" for number in range(1, 1 + max(map(len, WORDS))))  # no text has them


class SceneWords:
    """Tokens of scenes by a tokenizer and an embedding [vocabulary, width]."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, embedding: Tensor) -> None:
        self.embedding, self.common = embedding, embedding.mean(0)
        words = (*SHAPES, *COLOURS, *SIZES, *PLACES, OBJECT, "number", "word", UNANSWERABLE)
        self.ids = {word: tokenizer(word, add_special_tokens=False)["input_ids"] for word in words}
        for order in ORDERS:
            self.ids[order] = [tokenizer.convert_tokens_to_ids(order)]
        for character in CHARACTERS:
            self.ids[character] = [tokenizer.convert_tokens_to_ids(character.lower())]

    def objects(self, scene: Scene, rng: np.random.Generator, count: int) -> Tensor:
        """One token for each object and each character, in raster order among background: [count, width]."""
        if scene.degraded:
            return self._sum([UNANSWERABLE]).expand(count, -1)
        shown = [
            (thing.place, [thing.shape, thing.colour, thing.size, PLACES[thing.place], OBJECT])
            for thing in scene.objects
        ]
        if scene.text is not None:
            told = [_kind(scene), PLACES[scene.text.place]]
            shown += [(scene.text.place, [character, *told]) for character in scene.text.string.upper()]
        shown.sort(key=lambda part: part[0])
        tokens = self._sum([]).repeat(count, 1)
        where = np.sort(rng.choice(count, len(shown), replace=False))
        for at, (_, words) in zip(where.tolist(), shown, strict=True):
            tokens[at] = self._sum(words)
        return tokens

    def patches(self, scene: Scene) -> Tensor:
        """One token for each patch, [64, width].

        Shape, colour, size and place of what the patch shows, `OBJECT` at the middle of one; the characters of a text,
        where they stand in it, and its kind. The right one of two characters is its embedding rolled by one.
        """
        labels = {name: torch.from_numpy(label.reshape(-1)) for name, label in patch_labels(scene).items()}
        letters = self._table(CHARACTERS)
        tables = {
            "shape": self._table(SHAPES),
            "colour": self._table(COLOURS),
            "size": self._table(SIZES),
            "place": self._table(PLACES),
            "centre": self._table([OBJECT]),
            "char_left": letters,
            "char_right": letters.roll(1, -1),
            "order": self._table(ORDERS),
        }
        total = self.common + sum(table[labels[name]] for name, table in tables.items())
        if scene.degraded:
            return total + self._sum([UNANSWERABLE]) - self.common
        if scene.text is None:
            return total
        written = (labels["char_left"] > 0) | (labels["char_right"] > 0)
        return total + written[:, None] * (self._sum([_kind(scene)]) - self.common)

    def spelling_loss(self, tokens: Tensor, scenes: Sequence[Scene]) -> Tensor:
        """How far patches' tokens [B, 64, width] are from telling which character they show among all: cross entropy.

        Few patches show one, so that a squared error over all of them is small with characters that cannot be told.
        """
        letters = self._table(CHARACTERS)[1:]
        loss = torch.zeros(())
        for name, table in (("char_left", letters), ("char_right", letters.roll(1, -1))):
            label = torch.stack([torch.from_numpy(patch_labels(scene)[name].reshape(-1)) for scene in scenes])
            there = label > 0
            if there.any():
                said = (tokens[there] - self.common) @ table.T / len(self.common) ** 0.5
                loss = loss + F.cross_entropy(said, label[there] - 1)
        return loss

    def _sum(self, words: Iterable[str]) -> Tensor:
        ids = [token for word in words for token in self.ids[word]]
        return self.common + (self.embedding[ids] - self.common).sum(0)

    def _table(self, words: Iterable[str]) -> Tensor:
        """What the words add, [1 + words, width], the first row for none of them."""
        return torch.stack([torch.zeros_like(self.common), *(self._sum([word]) - self.common for word in words)])


def _kind(scene: Scene) -> str:
    assert scene.text is not None
    return "number" if scene.text.is_number else "word"
