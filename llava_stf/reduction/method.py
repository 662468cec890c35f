"""What a method says about itself, and what is fixed when it is applied to a model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor
from torch.utils.hooks import RemovableHandle
from transformers import LlavaConfig, LlavaForConditionalGeneration

if TYPE_CHECKING:
    from llava_stf.reduction.model import ReducedLlavaModel


class Method(ABC):
    """A way to shorten the image's part of the prompt. B images of N patches, M tokens left, H the LLM's width.

    Attributes:
        name: the key in `METHODS`.
        title: for a table.
        reference: where it is described.
        needs: what it costs besides the tokens, in a sentence.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    reference: ClassVar[str]
    needs: ClassVar[str]

    def check(self, config: LlavaConfig, patches: int, vision_tokens: int) -> None:
        """Raise `FusionError` where a model of this config cannot be had at that budget, 1 <= M <= N given."""
        return

    def prompt_tokens(self, patches: int, vision_tokens: int) -> int:
        """Placeholders that an image takes in the prompt."""
        return vision_tokens

    def vision_tokens_per_layer(self, num_layers: int, patches: int, vision_tokens: int) -> list[int]:
        """Tokens of an image that each layer of the LLM works on, the first layer first."""
        return [vision_tokens] * num_layers

    def model_class(self) -> type[ReducedLlavaModel]:
        """The class that the inner model gets."""
        from llava_stf.reduction.model import ReducedLlavaModel

        return ReducedLlavaModel

    def hooks(self, model: LlavaForConditionalGeneration) -> list[RemovableHandle]:
        """Forward hooks that the method puts on the model."""
        return []

    @abstractmethod
    def image_tokens(self, model: ReducedLlavaModel, pixel_values: Tensor) -> Tensor:
        """What takes the image's place in the prompt: pixel_values [B, 3, height, width] -> [B, prompt tokens, H]."""

    def kept(self, model: LlavaForConditionalGeneration, pixel_values: Tensor) -> Tensor | None:
        """Patches that a model with this method applied keeps, raster indices [B, <= M], int64, ascending.

        `None` where no patch is kept as it is, or where the choice depends on the prompt.
        """
        return None


@dataclass(frozen=True)
class Reduction:
    """A method with its budget, as `apply_reduction` leaves it on the inner model under `reduction`."""

    method: Method
    patches: int
    vision_tokens: int
    seed: int

    @property
    def prompt_tokens(self) -> int:
        """Placeholders that an image takes in the prompt."""
        return self.method.prompt_tokens(self.patches, self.vision_tokens)
