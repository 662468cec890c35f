"""What a method sees at a layer of the LLM, and how it says which tokens stay.

Shapes: B rows, T tokens at the layer, I images of n tokens each, H the LLM's width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Tokens:
    """A prompt with images at the input of one layer.

    Attributes:
        hidden: [B, T, H].
        below: [B, T, H], the same tokens at the input of the layer before; `None` below the second layer.
        rotary: cosine and sine of the positions, each [1 or B, T, head_dim].
        valid: bool [B, T], false for padding on either side.
        image: bool [B, T], the image tokens, `per_image` for each image; rows may hold different numbers of images.
        per_image: n.
        marks: bool [B, T], what `LayerDropping.start` has marked.
    """

    hidden: Tensor
    below: Tensor | None
    rotary: tuple[Tensor, Tensor]
    valid: Tensor
    image: Tensor
    per_image: int
    marks: Tensor | None = None

    def places(self) -> tuple[Tensor, Tensor]:
        """Row of each image, int64 [I], and the columns of its tokens, int64 [I, n]."""
        rows, columns = self.image.nonzero(as_tuple=True)
        return rows.view(-1, self.per_image)[:, 0], columns.view(-1, self.per_image)

    def behind(self) -> Tensor:
        """The text behind the last image of each row, bool [B, T]."""
        last = self.image.long().flip(-1).cumsum(-1).flip(-1)
        return self.valid & ~self.image & (last == 0)

    def left(self, kept: Tensor) -> Tensor:
        """Tokens that stay, bool [B, T]: all text, and of each image those that kept, bool [I, n], says."""
        left, (rows, columns) = self.valid & ~self.image, self.places()
        left[rows[:, None], columns] = kept
        return left


def best(scores: Tensor, count: int) -> Tensor:
    """The `count` highest of each row of scores [I, n]: bool [I, n]."""
    return torch.zeros_like(scores, dtype=torch.bool).scatter(1, scores.topk(count, dim=-1).indices, True)
