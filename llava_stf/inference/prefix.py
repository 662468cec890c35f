"""What a model has read: keys and values of the ids and images that prompts begin with, kept and found again.

Prompts are compared as ids and images: up to the first difference they are alike. An image is taken over as a whole or
not at all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import zip_longest
from typing import Any

import numpy as np
from torch import Tensor

from llava_stf.inference.image_cache import SeenImage


@dataclass(frozen=True)
class Prompt:
    """The ids of a conversation, placeholders among them, and the images that these stand for."""

    ids: list[int]
    images: list[SeenImage]


@dataclass(frozen=True)
class Prefix:
    """What a model has read.

    Attributes:
        ids: int64 [n].
        images: key, first place and end of each image in it.
        layers: keys and values [heads, n, head width] of each layer.
    """

    ids: np.ndarray
    images: list[tuple[Any, int, int]]
    layers: list[tuple[Tensor, Tensor]]

    @cached_property
    def nbytes(self) -> int:
        """Of keys and values."""
        return sum(keys.nbytes + values.nbytes for keys, values in self.layers)

    @cached_property
    def marks(self) -> np.ndarray:
        """As `marks_of`."""
        return marks_of(self.ids, self.images)


def marks_of(ids: np.ndarray, images: list[tuple[Any, int, int]]) -> np.ndarray:
    """A number for each token, which differs where tokens or their images do: int64 [n]."""
    marks = ids.astype(np.int64)
    for key, first, end in images:
        marks[first:end] = -1 - abs(hash(key))
    return marks


def places_of(ids: np.ndarray, images: Sequence[SeenImage], image_token_id: int) -> list[tuple[Any, int, int]]:
    """Key, first place and end of each image of a prompt."""
    places = np.flatnonzero(ids == image_token_id)
    ends = np.cumsum([image.count for image in images], dtype=int)
    return [
        (image.key, int(places[end - image.count]), int(places[end - 1]) + 1)
        for image, end in zip(images, ends, strict=True)
    ]


def shared(
    one: tuple[np.ndarray, list[tuple[Any, int, int]]], other: tuple[np.ndarray, list[tuple[Any, int, int]]]
) -> int:
    """Tokens at the begin of two prompts, ids and `places_of`, that are the same, no image being cut."""
    length = min(len(one[0]), len(other[0]))
    differ = np.flatnonzero(one[0][:length] != other[0][:length])
    length = int(differ[0]) if len(differ) else length
    for mine, theirs in zip_longest(one[1], other[1]):
        if mine != theirs:
            length = min(length, *(place[1] for place in (mine, theirs) if place is not None))
            break
    for _, first, end in one[1]:
        if first < length < end:
            length = first
    return length


class PrefixCache:
    """What was read, up to a number of bytes, the latest used; for one thread.

    Args:
        limit: bytes of keys and values that are kept.
        most: prefixes that are kept; default: as many as there is room for.

    Attributes:
        nbytes: of the keys and values that are kept.
    """

    def __init__(self, limit: int, most: int | None = None) -> None:
        self.limit = limit
        self.most = most
        self.nbytes = 0
        self._kept: list[Prefix] = []  # the one used last at the end
        self._stamp = 0

    def renew(self, stamp: int) -> None:
        """Forgets what another state of the model has read."""
        if stamp != self._stamp:
            self._kept.clear()
            self.nbytes = 0
        self._stamp = stamp

    def find(self, ids: np.ndarray, images: list[tuple[Any, int, int]]) -> tuple[Prefix | None, int]:
        """The prefix that shares most tokens with a prompt, and how many; at least one is left to be read."""
        best, length, marks = None, 0, marks_of(ids, images)
        for prefix in reversed(self._kept):
            # Of hundreds that are kept all but a few differ already where a longer one would have to be alike.
            if length < len(prefix.ids) and prefix.marks[length] == marks[length]:
                same = shared((prefix.ids, prefix.images), (ids[:-1], images))
                if same > length:
                    best, length = prefix, same
        if best is not None:
            self._kept.append(self._kept.pop(next(i for i, prefix in enumerate(self._kept) if prefix is best)))
        return best, length

    def put(self, prefix: Prefix) -> None:
        """Keeps a prefix in the place of those that it extends, unless one that extends it is kept."""
        if prefix.nbytes > self.limit or any(_extends(kept, prefix) for kept in self._kept):
            return
        self._kept = [kept for kept in self._kept if not _extends(prefix, kept)]
        self._kept.append(prefix)
        self.nbytes = sum(kept.nbytes for kept in self._kept)
        while self.nbytes > self.limit or len(self._kept) > (self.most or len(self._kept)):
            self.nbytes -= self._kept.pop(0).nbytes


def _extends(prefix: Prefix, other: Prefix) -> bool:
    """Whether a prefix begins with all of another one."""
    length = len(other.ids)
    if length > len(prefix.ids) or other.marks[-1] != prefix.marks[length - 1]:
        return False
    return shared((other.ids, other.images), (prefix.ids, prefix.images)) == length
