"""What a method says about itself, and what it makes of a model and its processor."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import LlavaConfig, LlavaForConditionalGeneration, LlavaModel, LlavaProcessor

from llava_stf.errors import FusionError


class Method(ABC):
    """A way to shorten the image's part of the prompt. B images of N patches, M tokens left, H the LLM's width.

    Attributes:
        name: the key in `METHODS`.
        title: for a table.
        reference: where it is described.
        needs: what it costs besides the tokens, in a sentence.
        reads_prompt: whether what it keeps of an image depends on the rest of the prompt, so that nothing of what was
            read serves another prompt.
        attention_bias: whether tokens weigh in the LLM's attention by the patches that they stand for, see
            `llava_stf.reduction.size_bias`; an option of methods that merge.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    reference: ClassVar[str]
    needs: ClassVar[str]
    reads_prompt: ClassVar[bool] = False
    attention_bias: bool = False

    def check(self, config: LlavaConfig, patches: int, vision_tokens: int) -> None:
        """Check that a plain model of this config can be had at that budget, 1 <= M <= N given.

        Raises:
            FusionError: it cannot.
        """
        return

    def prompt_tokens(self, patches: int, vision_tokens: int) -> int:
        """Placeholders that an image takes in the prompt."""
        return vision_tokens

    def vision_tokens_per_layer(self, num_layers: int, patches: int, vision_tokens: int) -> list[int]:
        """Tokens of an image that each layer of the LLM works on, the first layer first; M is what is kept."""
        return [vision_tokens] * num_layers

    def mean_tokens(self, num_layers: int, patches: int, vision_tokens: int) -> float:
        """Mean of `vision_tokens_per_layer`: the budget by which methods are compared.

        FastV that keeps 166, 98 or 30 of 576 after 2 of 32 layers has a mean of 192, 128 or 64.

        Raises:
            FusionError: the LLM has no layer, or not 1 to all of the patches are kept.
        """
        counts = (num_layers, patches, vision_tokens)
        if any(type(count) is not int for count in counts) or num_layers < 1 or not 1 <= vision_tokens <= patches:
            raise FusionError(
                f"A mean is over 1 layer or more, of 1 to all {patches!r} patches; found {num_layers!r} layers and "
                f"{vision_tokens!r} vision tokens."
            )
        layers = self.vision_tokens_per_layer(num_layers, patches, vision_tokens)
        return sum(layers) / len(layers)

    @abstractmethod
    def plan(self, model: LlavaForConditionalGeneration, vision_tokens: int, seed: int) -> Change:
        """What this method makes of a plain model at a budget that `check` passed; changes nothing yet.

        Args:
            model: the plain model.
            vision_tokens: M.
            seed: of whatever the method draws at random.

        Raises:
            FusionError: the model cannot be changed.
        """

    def kept(self, model: LlavaForConditionalGeneration, pixel_values: Tensor) -> Tensor | None:
        """Patches that a model with this method applied keeps, raster indices [B, <= M], int64, ascending.

        `None` where no patch is kept as it is, or where the choice depends on the prompt.
        """
        return None


class Encoded(threading.local):
    """What a method with `attention_bias` reads and merges in a forward pass, in the thread that makes the pass.

    Attributes:
        ids: of the pass, int64 [B, T].
        tokens: of the images that were encoded last, [images, M, H].
        sizes: patches of each of these tokens, float32 [images, M].
    """

    ids: Tensor | None = None
    tokens: Tensor | None = None
    sizes: Tensor | None = None

    def __reduce__(self) -> tuple[type[Encoded], tuple[()]]:
        """A copy of the model is in no pass."""
        return Encoded, ()


@dataclass
class Reduction:
    """A method without weights and its budget, as it stands on the inner model under `reduction`."""

    method: Method
    patches: int
    vision_tokens: int
    seed: int
    encoded: Encoded = field(default_factory=Encoded)

    @property
    def prompt_tokens(self) -> int:
        """Placeholders that an image takes in the prompt."""
        return self.method.prompt_tokens(self.patches, self.vision_tokens)

    def mean_tokens(self, num_layers: int) -> float:
        """As `Method.mean_tokens`, of an LLM of that many layers."""
        return self.method.mean_tokens(num_layers, self.patches, self.vision_tokens)


def refuse_to_save(method: Method) -> None:
    """Refuse to save a reduced model: such a method has no weights, and a checkpoint has no place for it.

    Raises:
        FusionError: always.
    """
    raise FusionError(
        f"This model is reduced by '{method.name}', which no checkpoint can hold; call remove_reduction, save, and "
        "apply it again after loading."
    )


def _no_hooks(model: LlavaForConditionalGeneration) -> list[RemovableHandle]:
    return []


@dataclass(frozen=True, kw_only=True)
class Change:
    """Everything that differs between a plain model with its processor and a changed one.

    Attributes:
        model_class: class that the model gets.
        inner_class: class that `model.model` gets.
        config: in place of the model's.
        tower_layers: hidden states that are read; no block above them is run.
        processor_class: class that the processor gets.
        processor_fields: attributes of the processor.
        projector: in place of the model's; `None` keeps that.
        reduction: what `model.model` gets under that name.
        hooks: puts forward hooks on the changed model.
    """

    model_class: type[LlavaForConditionalGeneration]
    inner_class: type[LlavaModel]
    config: LlavaConfig
    tower_layers: Sequence[int]
    processor_class: type[LlavaProcessor]
    processor_fields: Mapping[str, Any]
    projector: nn.Module | None = None
    reduction: Reduction | None = None
    hooks: Callable[[LlavaForConditionalGeneration], list[RemovableHandle]] = field(default=_no_hooks)
