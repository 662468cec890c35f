"""What the demo shows: images, what was asked about them, both answers and what they cost."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True)
class Asked:
    """One question with its reference, if there is one, and the answers at 100 % and 25 % of the tokens."""

    family: str | None
    question: str
    reference: str | None
    full: str = ""
    fused: str = ""

    def right(self, answer: str) -> bool | None:
        """Whether the answer is the reference but for case and a closing period; None without a reference."""
        from llava_stf.world import is_right

        return None if self.reference is None else is_right(answer, self.reference)


@dataclass(frozen=True)
class Shown:
    """One image, where it is from, and what was asked about it."""

    source: str
    image: "Image"
    asked: Sequence[Asked]


@dataclass(frozen=True)
class Cost:
    """Vision tokens of one image and median seconds to the first token."""

    vision_tokens: int
    first_token_seconds: float
