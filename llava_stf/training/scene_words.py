"""A scene in a language model's own word embeddings: as tokens of objects, or patch by patch as an image shows it.

A token is the sum of the embeddings of the words that are true of it, each less what all embeddings have in common, and
once what they have in common. What is learned from such tokens needs no tower; a projector that gives them is aligned.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from llava_stf.world.labels import patch_labels
from llava_stf.world.questions import UNANSWERABLE
from llava_stf.world.scene import CHARACTERS, COLOURS, PLACES, SHAPES, SIZES, WORDS, Scene

OBJECT = "shapes"  # the word for any object, so that "How many shapes are there?" finds them
LONGEST = max(map(len, WORDS))
ORDERS = tuple(f"<0x{number:02X}>" for number in range(1, 1 + LONGEST))  # no text has them


class SceneWords:
    """Tokens of scenes by a tokenizer and an embedding [vocabulary, width].

    A character is said with its number in its text: its embedding is rolled by so many places, so that the sum over a
    text's characters still tells "12" from "21".
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, embedding: Tensor) -> None:
        self.embedding = embedding
        self.common = embedding[embedding.any(-1)].mean(0)  # a token that is never seen is zeros
        words = (*SHAPES, *COLOURS, *SIZES, *PLACES, OBJECT, "number", "word", UNANSWERABLE)
        self.ids = {word: tokenizer(word, add_special_tokens=False)["input_ids"] for word in words}
        for order in ORDERS:
            self.ids[order] = [tokenizer.convert_tokens_to_ids(order)]
        letters = torch.tensor([tokenizer.convert_tokens_to_ids(character.lower()) for character in CHARACTERS])
        # [LONGEST, 1 + characters, width], with a first row for none
        letters = F.pad(embedding[letters] - self.common, (0, 0, 1, 0))
        self.letters = torch.stack([letters.roll(number, -1) for number in range(LONGEST)])

    def objects(self, scene: Scene, rng: np.random.Generator, count: int) -> Tensor:
        """One token for each object and each character, in raster order among background: [count, width]."""
        if scene.degraded:
            return self._sum([UNANSWERABLE]).expand(count, -1)
        shown = [
            (thing.place, self._sum([thing.shape, thing.colour, thing.size, PLACES[thing.place], OBJECT]))
            for thing in scene.objects
        ]
        if scene.text is not None:
            for number, character in enumerate(scene.text.string.upper()):
                token = self._sum([_kind(scene), PLACES[scene.text.place], ORDERS[number]])
                shown.append((scene.text.place, token + self.letters[number, CHARACTERS.index(character) + 1]))
        shown.sort(key=lambda part: part[0])
        tokens = self._sum([]).repeat(count, 1)
        where = np.sort(rng.choice(count, len(shown), replace=False))
        tokens[where] = torch.stack([token for _, token in shown])
        return tokens

    def patches(self, scene: Scene, labels: Mapping[str, Tensor]) -> Tensor:
        """One token for each patch by the scene's `flat_labels`, [64, width].

        Shape, colour, size and place of what the patch shows, `OBJECT` at the middle of one; the characters whose
        middle it shows with their numbers in their text, and the text's kind.
        """
        tables = {
            "shape": self._table(SHAPES),
            "colour": self._table(COLOURS),
            "size": self._table(SIZES),
            "place": self._table(PLACES),
            "centre": self._table([OBJECT]),
        }
        total = self.common + sum(table[labels[name]] for name, table in tables.items())
        if scene.degraded:
            return total + self._sum([UNANSWERABLE]) - self.common
        orders = self._table(ORDERS)
        written = torch.zeros(len(total), dtype=torch.bool)
        for name, number in _numbered(labels).items():
            there = labels[name] > 0
            total[there] += orders[number[there] + 1] + self.letters[number[there], labels[name][there]]
            written |= there
        if scene.text is None:
            return total
        return total + written[:, None] * (self._sum([_kind(scene)]) - self.common)

    def spelling_loss(self, tokens: Tensor, scenes: Sequence[Mapping[str, Tensor]]) -> Tensor:
        """How far patches' tokens [B, 64, width] are from telling which character they show among all: cross entropy.

        `scenes` are their `flat_labels`. Few patches show one, so that a squared error over all of them is small with
        characters that cannot be told.
        """
        said, shown = [], []
        for token, labels in zip(tokens, scenes, strict=True):
            for name, number in _numbered(labels).items():
                (there,) = torch.nonzero(labels[name], as_tuple=True)
                letters = self.letters[number[there], 1:]
                said.append((letters @ (token[there] - self.common)[:, :, None]).squeeze(-1))
                shown.append(labels[name][there] - 1)
        if not sum(map(len, shown)):
            return torch.zeros(())
        return 2 * F.cross_entropy(torch.cat(said) / len(self.common) ** 0.5, torch.cat(shown))

    def _sum(self, words: Iterable[str]) -> Tensor:
        ids = [token for word in words for token in self.ids[word]]
        return self.common + (self.embedding[ids] - self.common).sum(0)

    def _table(self, words: Iterable[str]) -> Tensor:
        """What the words add, [1 + words, width], the first row for none of them."""
        return torch.stack([torch.zeros_like(self.common), *(self._sum([word]) - self.common for word in words)])


def flat_labels(scene: Scene) -> dict[str, Tensor]:
    """What each patch shows, `patch_labels` as tensors [64]."""
    return {name: torch.from_numpy(label.reshape(-1)) for name, label in patch_labels(scene).items()}


def _numbered(labels: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """For each half of a patch the number in its text of the character whose middle lies there, from 0."""
    first = (labels["order"] - 1).clamp(min=0)
    return {"char_left": first, "char_right": (first + (labels["char_left"] > 0)).clamp(max=LONGEST - 1)}


def _kind(scene: Scene) -> str:
    assert scene.text is not None
    return "number" if scene.text.is_number else "word"
