"""The protocols of fine-tuning, PatchMix's and APS's, as options (docs/encoders/methods.md, Fine-tuning)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from llava_stf.errors import LlavaStfError
from llava_stf.io.options import check_ranges, read_values
from llava_stf.models.vision.vits import known

# For a batch of 256, by width: ViT-T, S and B. APS gives its rates for 512.
_RATES = {"patchmix": {192: 1e-3, 384: 5e-4, 768: 5e-4}, "aps": {192: 1e-3, 384: 5e-4, 768: 2.5e-4}}


_RANGES = {
    "at least 1": ("epochs", "batch_size"),
    "at least 0": (
        *("learning_rate", "first_learning_rate", "final_learning_rate", "weight_decay", "mixup", "cutmix"),
        "magnitude",
    ),
}


@dataclass(frozen=True)
class FinetuneOptions:
    """The protocol; the defaults are PatchMix's for ViT-S and B.

    Attributes:
        epochs: passes over the training part.
        batch_size: images in a step.
        learning_rate: the classifier's peak for a batch of 256, growing in proportion.
        layer_decay: a block learns at this share of the rate of the one above it, the embeddings below the first.
        weight_decay: AdamW's, of all but biases and one-dimensional parameters.
        warmup_epochs: in which the rate rises to its peak.
        first_learning_rate: where the warm-up begins.
        final_learning_rate: where the cosine behind the peak ends.
        drop_path: stochastic depth, rising from 0 in the first block to this in the last.
        augment: crops, flips, RandAugment, erasing and mixing; without, images as they are tested.
        crop: "resized" takes 8 % to 100 % of an image, "padded" shifts it by up to 4 pixels; default: padded for
            encoders of at most 32 pixels.
        magnitude: of RandAugment, of 10; 0: not done.
        erasing: probability of random erasing.
        mixup: as in `mixing.mix_batch`.
        cutmix: as in `mixing.mix_batch`.
        switch: as in `mixing.mix_batch`.
        smoothing: of the labels.
        statistics: what images are normalised with, the encoder's own or ImageNet's.
        mixed_precision: dtype to compute in; weights stay float32.

    Raises:
        LlavaStfError: values that cannot be.
    """

    epochs: int = 100
    batch_size: int = 256
    learning_rate: float = 5e-4
    layer_decay: float = 0.75
    weight_decay: float = 0.05
    warmup_epochs: int = 10
    first_learning_rate: float = 1e-6
    final_learning_rate: float = 1e-5
    drop_path: float = 0.1
    augment: bool = True
    crop: Literal["resized", "padded"] | None = None
    magnitude: float = 9.0
    erasing: float = 0.25
    mixup: float = 0.8
    cutmix: float = 1.0
    switch: float = 0.5
    smoothing: float = 0.1
    statistics: Literal["encoder", "imagenet"] = "encoder"
    mixed_precision: Literal["no", "bf16"] = "no"

    def __post_init__(self) -> None:
        check_ranges(self, _RANGES)
        if not 0 <= self.warmup_epochs < self.epochs:
            raise LlavaStfError(
                f"warmup_epochs must be at least 0 and below epochs, found {self.warmup_epochs} of {self.epochs}"
            )
        for name in ("drop_path", "erasing", "switch", "smoothing"):
            if not 0 <= getattr(self, name) <= 1:
                raise LlavaStfError(f"{name} must be between 0 and 1, found {getattr(self, name)}")
        if not 0 < self.layer_decay <= 1 or self.drop_path == 1:
            raise LlavaStfError(
                f"layer_decay must be above 0 and at most 1, drop_path below 1, found {self.layer_decay} and "
                f"{self.drop_path}"
            )


def recipe_options(recipe: str, width: int, values: Mapping[str, Any]) -> FinetuneOptions:
    """The protocol of a paper, "patchmix" or "aps", for an encoder of that width, with `values` over it.

    Raises:
        LlavaStfError: an unknown recipe or option (with the nearest known one), or a value of the wrong kind.
    """
    known(recipe, _RATES, "recipe")
    paper: dict[str, Any] = {"learning_rate": _RATES[recipe].get(width, 5e-4)}
    if recipe == "aps":
        paper |= {"batch_size": 128, "warmup_epochs": 5, "layer_decay": 1.0, "drop_path": 0.0, "statistics": "imagenet"}
    return FinetuneOptions(**paper | read_values(FinetuneOptions, values))
