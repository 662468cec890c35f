"""What the parts of a pipeline need of the whole, so that they know it without importing it."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from PIL import Image
from transformers import BatchFeature, LlavaForConditionalGeneration

from llava_stf.images.frames import Video
from llava_stf.inference.turns import Conversation
from llava_stf.models.fusion.budget import VisionTokens
from llava_stf.models.fusion.detail import Detail

if TYPE_CHECKING:
    from llava_stf.models.llava_stf.processing_llava_stf import LlavaStfProcessor


class Encoder(Protocol):
    """What kept images need: a model, and the inputs that it takes."""

    model: LlavaForConditionalGeneration

    def encode(
        self,
        conversations: Sequence[Conversation],
        images: Sequence[Sequence[Image.Image | Video]],
        vision_tokens: VisionTokens | Detail = None,
        max_vision_tokens: int | None = None,
    ) -> BatchFeature:
        """Model inputs of one batch of conversations."""


class Pipeline(Encoder, Protocol):
    """What conversations and kept prefixes need of a `LlavaStf`; its methods say what they do."""

    processor: LlavaStfProcessor | None

    @property
    def compiled(self) -> bool:
        """Whether generation is compiled."""

    @property
    def positions(self) -> int:
        """Most tokens that a prompt and its answer have together."""

    @property
    def image_cache(self) -> Any:
        """The `ImageCache`, which is itself given the encoder."""

    def reuses(self, generate_kwargs: Mapping[str, Any]) -> bool:
        """Whether image tokens and what was read serve other prompts."""

    def compose(
        self,
        conversation: Conversation,
        images: Sequence[Image.Image],
        vision_tokens: VisionTokens | Detail = None,
        max_vision_tokens: int | None = None,
    ) -> Any:
        """One conversation as a `Prompt`."""

    def _answers(self, inputs: BatchFeature, max_new_tokens: int, generate_kwargs: dict[str, Any]) -> list[str]: ...

    def _pieces(
        self, inputs: BatchFeature, max_new_tokens: int, generate_kwargs: dict[str, Any]
    ) -> Generator[str, None, None]: ...
