"""Options of a pre-training run: one dataclass, filled from a YAML file and from flags. Nothing heavy is imported."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from llava_stf.errors import LlavaStfError
from llava_stf.io.options import check_ranges, parse_options, read_values

# A run that goes on from a checkpoint may change these: they do not decide what comes out.
FREE = frozenset(
    (
        *("output", "stop_after", "num_workers", "cpu_threads", "logging_steps", "save_steps", "save_total_limit"),
        *("resume", "overwrite", "max_bad_images"),
    )
)


_RANGES = {
    "at least 1": (
        *("image_size", "patch_size", "epochs", "per_device_batch_size", "gradient_accumulation", "logging_steps"),
        *("save_steps", "save_total_limit", "depth", "source_size", "cpu_threads", "stop_after"),
    ),
    "at least 0": (
        *("base_learning_rate", "final_learning_rate", "weight_decay", "final_weight_decay", "num_workers"),
    ),
    "at least 0 and below 2**32": ("seed",),
    "in [0, 1)": ("max_bad_images",),
}


def _option(default: Any, text: str) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """Everything that decides a pre-training run; `--help` prints each field's meaning.

    Raises:
        LlavaStfError: a required field without value, or values that cannot be.
    """

    method: Literal["patchmix", "aps", "mgc", "mos", "mocov3"] | None = _option(None, "pre-training method (required)")
    data: str = _option(
        "", "images: an npz file with train_images, a folder, or a Hugging Face data set: path, hub id (required)"
    )
    output: str = _option("", "folder for checkpoints and the trained encoder (required)")
    image_column: str = _option("image", "column of the images in a Hugging Face data set")
    source_size: int | None = _option(
        None,
        "side in pixels of the square that every image is brought to (short side resized, middle cut out) before the "
        "views are cropped; default: 8/7 of image_size, and the arrays of an npz as they are",
    )

    size: Literal["tiny", "small", "base"] = _option("small", "width of the ViT: 192, 384 or 768")
    depth: int | None = _option(None, "blocks of the ViT; default: 12, as in the papers")
    image_size: int = _option(224, "side of a view in pixels")
    patch_size: int = _option(16, "side of a patch in pixels")

    preset: Literal["released", "corrected"] = _option(
        "released", "the method's options: as the released code behaves, or with what it evidently meant to do"
    )
    options: Mapping[str, Any] = field(
        default_factory=dict,
        metadata={"help": "NAME=VALUE, an option of the method, over the preset's", "flag": "--option"},
    )
    augmentation: Literal["method", "common"] = _option(
        "method", "the method's own crops and colours, or the same for all methods, to compare them"
    )

    epochs: int = _option(100, "passes over the images")
    warmup_epochs: int = _option(10, "epochs in which the learning rate rises")
    per_device_batch_size: int = _option(64, "images per process and forward pass; the negatives come from these")
    gradient_accumulation: int = _option(1, "forward passes per optimizer step; they share no negatives")
    base_learning_rate: float = _option(5e-4, "peak learning rate for 256 images per step; it grows in proportion")
    final_learning_rate: float = _option(1e-6, "learning rate at the end")
    schedule: Literal["step", "epoch"] = _option(
        "step", "learning rate after warm-up: cosine by step, or by epoch and without a floor (as APS)"
    )
    weight_decay: float = _option(0.05, "AdamW's at the start")
    final_weight_decay: float | None = _option(None, "weight decay at the end of a cosine; default: constant")
    seed: int = _option(7, "seed of weights, order and augmentation")

    mixed_precision: Literal["no", "bf16", "fp16"] = _option("no", "dtype to compute in; weights stay float32")
    attn_implementation: Literal["sdpa", "eager"] = _option("sdpa", "attention; eager is the faster one on a CPU")
    num_workers: int = _option(1, "processes that read images, per device; 0: none beside the trainer")
    cpu_threads: int | None = _option(None, "threads that compute on a CPU; default: torch's choice")
    max_bad_images: float = _option(0.01, "share of images that may be unreadable, and are replaced, at most")

    logging_steps: int = _option(50, "steps between two lines of the log")
    save_steps: int = _option(1000, "steps between two checkpoints")
    save_total_limit: int = _option(1, "checkpoints that are kept")
    stop_after: int | None = _option(None, "stop with a checkpoint after so many steps of this call; --resume goes on")
    resume: bool = _option(False, "go on from the newest complete checkpoint in output, if there is one")
    overwrite: bool = _option(False, "replace the run that output holds")

    def __post_init__(self) -> None:
        for name in ("method", "data", "output"):
            if not getattr(self, name):
                raise LlavaStfError(f"--{name} is required: give it as a flag or in the config file")
        check_ranges(self, _RANGES)
        if self.image_size % self.patch_size:
            raise LlavaStfError(
                f"patch_size must divide image_size, found {self.patch_size} and {self.image_size}: "
                f"{max(self.image_size // self.patch_size, 1) * self.patch_size} would do"
            )
        if self.per_device_batch_size < 2:
            raise LlavaStfError("per_device_batch_size must be at least 2, found 1: a contrast needs other images")
        if not 0 <= self.warmup_epochs < self.epochs:
            raise LlavaStfError(
                f"warmup_epochs must be at least 0 and below epochs, found {self.warmup_epochs} of {self.epochs}"
            )
        if self.resume and self.overwrite:
            raise LlavaStfError("resume goes on with the run in output, overwrite replaces it: leave out one of them")

    def identity(self) -> dict[str, Any]:
        """The fields that a run must keep when it is resumed, as JSON has them."""
        values = dataclasses.asdict(self)
        return {name: value for name, value in values.items() if name not in FREE}


def parse(argv: Sequence[str]) -> PretrainConfig:
    """The configuration that `--config FILE`, `--field value` and `--option NAME=VALUE` describe.

    Flags win over the file.

    Raises:
        LlavaStfError: as `parse_options`.
    """
    return parse_options(PretrainConfig, argv, prog="llava_stf.encoders.pretrain", description=__doc__)


def from_values(values: Mapping[str, Any]) -> PretrainConfig:
    """The configuration with these field values.

    Raises:
        LlavaStfError: as `read_values`.
    """
    return PretrainConfig(**read_values(PretrainConfig, values))


def method_options(options_type: type[Any], preset: str, values: Mapping[str, Any]) -> Any:
    """An instance of a method's `options_type`: the preset with `values` over it.

    Raises:
        LlavaStfError: an unknown option (with the nearest known one) or a value of the wrong kind.
    """
    converted = read_values(options_type, values)
    options = options_type(**converted) if preset == "released" else options_type.corrected(**converted)
    for name, value in dataclasses.asdict(options).items():
        _check_range(name, value)
    return options


def _check_range(name: str, value: Any) -> None:
    """Raise `LlavaStfError` for a value that an option of this name, whatever the method, cannot have."""
    if name.endswith("_scale") and not (0 < value[0] <= value[1] <= 1):
        raise LlavaStfError(f"option {name} must rise from above 0 to at most 1, found {list(value)}")
    if name in ("hidden", "out") and value < 1:
        raise LlavaStfError(f"option {name} must be at least 1, found {value}")
    if name == "local_crops" and value < 0:
        raise LlavaStfError(f"option {name} must be at least 0, found {value}")
    if name == "temperature" and not value > 0:
        raise LlavaStfError(f"option {name} must be above 0, found {value}")
    if name == "drop_path" and not 0 <= value < 1:
        raise LlavaStfError(f"option {name} must be at least 0 and below 1, found {value}")
    if (name == "momentum" or name.endswith("_smoothing")) and value is not None and not 0 <= value <= 1:
        raise LlavaStfError(f"option {name} must be between 0 and 1, found {value}")
