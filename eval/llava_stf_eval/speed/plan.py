"""What is to be measured, and whether it can be, before any weight is made or read."""

from __future__ import annotations

import itertools
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import LlavaConfig

from llava_stf.errors import LlavaStfError, PromptError
from llava_stf.io.exports import is_export
from llava_stf.loading.options import from_pretrained_options
from llava_stf.models.registry import is_plain_config
from llava_stf_eval.speed.measuring import Case, Clock
from llava_stf_eval.speed.shapes import MODEL_TYPES, build_model, shape_config
from llava_stf_eval.speed.shown import Shown
from llava_stf_eval.speed.variants import FULL, Setting, export_setting, settings_of

Precision = Literal["auto", "stored", "float32", "bfloat16", "float16"]
# Fields of a plan that are for weights in PyTorch and not for an export, which has its own.
_OF_WEIGHTS = ("methods", "vision_tokens", "options", "dtype", "quantization", "attention", "device")


@dataclass(frozen=True)
class Plan:
    """What to measure. Lists are combined, each with each; the first row is what the others are compared with.

    Attributes:
        shape: of random weights, a key of `SHAPES`; or
        models: plain LLaVAs that `load_model` finds, and exports.
        model_type: of the shape, one of `MODEL_TYPES`.
        image_size: height and width in pixels of the random image that each prompt shows, or of the frames.
        frames: of the video that each prompt shows in place of an image.
        methods: `"full"`, `"stf"`, or of `llava_stf.reduction`; an export is what it was made.
        vision_tokens: budgets; `None` is a quarter of the patches.
        options: of the methods that have them, such as `{"full_layers": "3"}`.
        text_tokens: of a prompt, beside its one image.
        new_tokens: of an answer, which never ends earlier.
        attention: implementations, as transformers names them.
        dtype: precisions in which PyTorch computes.
        repeats: timed requests of a variant in a case, after `warm_up` that are not.
        clock: `"cpu"` counts the seconds of computing, on a CPU that is shared with other programs.
    """

    shape: str | None = "tiny"
    models: list[str] = field(default_factory=list)
    model_type: str = "llava"
    image_size: list[int] = field(default_factory=lambda: [480, 640])
    frames: int | None = None
    methods: list[str] = field(default_factory=lambda: [FULL, "stf"])
    vision_tokens: list[int] | None = None
    options: dict[str, Any] = field(default_factory=dict)
    batch_sizes: list[int] = field(default_factory=lambda: [1])
    text_tokens: list[int] = field(default_factory=lambda: [64])
    new_tokens: list[int] = field(default_factory=lambda: [32])
    attention: list[str] = field(default_factory=lambda: ["sdpa"])
    dtype: list[Precision] = field(default_factory=lambda: ["auto"])
    quantization: Literal["8bit", "4bit"] | None = None
    device: str | None = None
    repeats: int = 5
    warm_up: int = 1
    clock: Clock = "wall"
    seed: int = 0

    @property
    def shown(self) -> Shown:
        """What each prompt shows."""
        height, width = self.image_size
        return Shown((height, width), self.frames)

    def cases(self) -> list[Case]:
        """Every combination of attention, batch size, text length and answer length."""
        return [
            Case(*values)
            for values in itertools.product(self.attention, self.batch_sizes, self.text_tokens, self.new_tokens)
        ]

    def subjects(self) -> list[Subject]:
        """What is loaded: the weights in each precision, and every export.

        Raises:
            LlavaStfError: a model cannot be read, or is none that this measures; or a method or budget is none.
        """
        found: list[Subject] = []
        for name in [self.shape] if self.shape else self.models:
            if not self.shape and is_export(Path(str(name))):
                config, setting = export_setting(Path(str(name)))
                self.shown.check(config)
                found.append(Subject(str(name), None, config, [setting]))
                continue
            config = shape_config(str(name), self.model_type) if self.shape else _read_config(str(name))
            self.shown.check(config)
            settings = settings_of(config, self.methods, self.vision_tokens, self.options, self.shown)
            found += [Subject(str(name), dtype, config, settings) for dtype in self.dtype]
        return found


@dataclass(frozen=True)
class Subject:
    """Weights in one precision with all their settings, or an export, which has one setting and no `dtype`."""

    name: str
    dtype: Precision | None
    config: LlavaConfig
    settings: list[Setting]


def check_plan(plan: Plan) -> list[Subject]:
    """What the plan measures.

    Raises:
        LlavaStfError: the plan is at fault, or the device, a dtype or an implementation of attention is not here.
    """
    if (plan.shape is None) == (not plan.models):
        raise LlavaStfError("Expected a shape or a model to measure, and not both.")
    if plan.model_type not in MODEL_TYPES or (plan.models and plan.model_type != "llava"):
        raise LlavaStfError(
            f"model_type is of a shape, one of {', '.join(MODEL_TYPES)}, found '{plan.model_type}' for "
            f"{plan.shape or ', '.join(plan.models)}."
        )
    for name, least in (("batch_sizes", 1), ("text_tokens", 2), ("new_tokens", 1), ("repeats", 1), ("warm_up", 0)):
        values = getattr(plan, name)
        for value in values if isinstance(values, list) else [values]:
            if value < least:
                raise LlavaStfError(f"{name} must be at least {least}, found {value}.")
    if len(set(plan.models)) < len(plan.models):
        raise LlavaStfError("A model is named twice, and would be compared with itself.")
    devices = [device_of(plan, dtype) for dtype in plan.dtype]
    if plan.clock == "cpu" and devices[0].type != "cpu":
        raise LlavaStfError(f"clock 'cpu' is of computing on a CPU, and the device is {devices[0]}.")
    subjects = plan.subjects()
    if all(subject.dtype is None for subject in subjects):
        given, default = asdict(plan), asdict(Plan())
        for name in _OF_WEIGHTS:
            if given[name] != default[name]:
                raise LlavaStfError(f"{name} is for weights in PyTorch, and {plan.models[0]} is an export without any.")
    else:
        _check_attention(plan.attention, devices[0])
    for case, subject in itertools.product(plan.cases(), subjects):
        _check_length(case, max(setting.places for setting in subject.settings), subject.config)
    return subjects


def device_of(plan: Plan, dtype: Precision) -> torch.device:
    """The device that `load_model` takes. Raises as it does for what is not here: device, dtype or quantization."""
    options = from_pretrained_options(plan.device, dtype, plan.quantization, None)
    return options["device_map"][""]


def _check_length(case: Case, places: int, config: LlavaConfig) -> None:
    positions = config.text_config.max_position_embeddings
    length = places + case.text_tokens + case.new_tokens
    if length > positions:
        raise PromptError(
            f"{places} vision, {case.text_tokens} text and {case.new_tokens} new tokens are {length}, and the model "
            f"has positions for {positions}: ask for fewer."
        )


def _check_attention(names: list[str], device: torch.device) -> None:
    """Tried on a small model, which takes no time."""
    small = build_model("tiny", device=device, dtype=torch.bfloat16)
    for name in names:
        try:
            small.set_attn_implementation(name)
        except (ImportError, ValueError) as error:
            raise LlavaStfError(f"Attention '{name}' cannot run here: {error}") from error


def _read_config(model: str) -> LlavaConfig:
    from llava_stf.loading import read_config

    config = read_config(model)
    if not is_plain_config(config):
        raise LlavaStfError(
            f"{model} is fused already, and fused and plain are compared on one set of weights: give a plain LLaVA, "
            "--shape, or an export of it; times do not depend on what was trained."
        )
    return config
