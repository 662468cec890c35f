"""The measurement as a whole: every case, its variants taking turns in one process on the same images and text.

The result is a dictionary that JSON holds as it is: `complete`, `machine`, `model`, `plan`, and `rows`, one for each
variant in each case, with its raw seconds, the median and the spread (interquartile range) of every stage, and how many
times faster than the first variant it was. That ratio is the median of the ratios of runs that stood side by side, so
that a machine that slows down meanwhile slows both.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from transformers import LlavaConfig, LlavaForConditionalGeneration

from llava_stf.analysis.counting import llm_parameters
from llava_stf.errors import LlavaStfError, PromptError
from llava_stf.loading.options import from_pretrained_options
from llava_stf.models.registry import is_plain_config
from llava_stf_eval.measurement.result import begin_or_resume
from llava_stf_eval.speed.machine import describe_machine, load_average
from llava_stf_eval.speed.measuring import STAGES, Case, Measured, Request, measure_once
from llava_stf_eval.speed.shapes import MODEL_TYPES, SHAPES, build_model, shape_config, shape_image_processor
from llava_stf_eval.speed.shown import Shown
from llava_stf_eval.speed.variants import FULL, Variant, build_variants, settings_of

ROW_FIELDS = ("case", "method", "vision_tokens", "mean_tokens", "error")  # of every row, a failed one too


@dataclass(frozen=True)
class Plan:
    """What to measure. Lists are combined, each with each; the first method is what the others are compared with.

    Attributes:
        shape: of random weights, a key of `SHAPES`; or
        model: a plain LLaVA that `load_model` finds.
        model_type: of the shape, one of `MODEL_TYPES`.
        image_size: height and width in pixels of the random image that each prompt shows, or of the frames.
        frames: of the video that each prompt shows in place of an image.
        methods: `"full"`, `"stf"`, or of `llava_stf.reduction`.
        vision_tokens: budgets; `None` is a quarter of the patches.
        options: of the methods that have them, such as `{"full_layers": "3"}`.
        text_tokens: of a prompt, beside its one image.
        new_tokens: of an answer, which never ends earlier.
        attention: implementations, as transformers names them.
        repeats: timed requests of a variant in a case, after `warm_up` that are not.
    """

    shape: str | None = "tiny"
    model: str | None = None
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
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    quantization: Literal["8bit", "4bit"] | None = None
    device: str | None = None
    repeats: int = 5
    warm_up: int = 1
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


def measure(
    plan: Plan,
    *,
    before: dict[str, Any] | None = None,
    on_row: Callable[[dict[str, Any]], object] = lambda result: None,
    progress: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Measures the plan.

    `before` is the result of the same plan that was broken off: cases that it has are not measured again. `on_row` is
    called with the result so far, before the first case and after each, `progress` with a line about what comes next.

    Raises:
        LlavaStfError: a case cannot be measured; where the plan itself is at fault, before any weight is made or read.
    """
    _check(plan)
    device = _device(plan)
    config = shape_config(plan.shape, plan.model_type) if plan.shape else _read_config(str(plan.model))
    plan.shown.check(config)
    settings = settings_of(config, plan.methods, plan.vision_tokens, plan.options, plan.shown)
    for case in plan.cases():
        _check_length(case, max(setting.places for setting in settings), config)
    _check_attention(plan.attention, device)
    progress(f"Making the weights of shape {plan.shape}" if plan.shape else f"Loading {plan.model}")
    model, image_processor = _model(plan, device)
    variants = build_variants(model, settings, seed=plan.seed)
    fresh: dict[str, Any] = {
        "machine": describe_machine(model.device),
        "model": {
            "name": plan.shape or plan.model,
            "type": config.model_type,
            "weights": "random" if plan.shape else "trained",
            "dtype": str(model.dtype).removeprefix("torch."),
            "weights_bytes": sum(parameter.nbytes for parameter in model.parameters()),
            "llm_parameters": llm_parameters(config),
        },
        "plan": asdict(plan),
        "rows": [],
    }
    result = begin_or_resume(fresh, before, row_fields=ROW_FIELDS)
    on_row(result)
    measured = [row["case"] for row in result["rows"]]
    for case in plan.cases():
        if asdict(case) in measured:
            continue
        progress(f"batch {case.batch_size}, {case.text_tokens} text and {case.new_tokens} new tokens, {case.attention}")
        result["rows"] += _measure_case(case, plan, variants, image_processor)
        result["machine"]["load_average_after"] = load_average()
        on_row(result)
    result["complete"] = True
    return result


def _check(plan: Plan) -> None:
    if (plan.shape is None) == (plan.model is None):
        raise LlavaStfError("Expected a shape or a model to measure, and not both.")
    if plan.shape is not None and plan.shape not in SHAPES:
        raise LlavaStfError(f"shape must be one of {', '.join(SHAPES)}, found '{plan.shape}'.")
    if plan.model_type not in MODEL_TYPES or (plan.model is not None and plan.model_type != "llava"):
        raise LlavaStfError(
            f"model_type is of a shape, one of {', '.join(MODEL_TYPES)}, found '{plan.model_type}' for "
            f"{plan.shape or plan.model}."
        )
    for name, least in (("batch_sizes", 1), ("text_tokens", 2), ("new_tokens", 1), ("repeats", 1), ("warm_up", 0)):
        values = getattr(plan, name)
        for value in values if isinstance(values, list) else [values]:
            if value < least:
                raise LlavaStfError(f"{name} must be at least {least}, found {value}.")


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
            f"{model} is fused already, and fused and plain are compared on one set of weights: give a plain LLaVA or "
            "--shape, times do not depend on what was trained."
        )
    return config


def _device(plan: Plan) -> torch.device:
    """The device that `load_model` takes. Raises as it does for what is not here: device, dtype or quantization."""
    options = from_pretrained_options(plan.device, plan.dtype, plan.quantization, None)
    return options["device_map"][""]


def _model(plan: Plan, device: torch.device) -> tuple[LlavaForConditionalGeneration, Any]:
    if plan.shape is None:
        from llava_stf.loading import load_model

        model, processor = load_model(
            str(plan.model), vision_tokens="all", dtype=plan.dtype, quantization=plan.quantization, device=device
        )
        if processor is not None:
            return model, processor.image_processor
    else:
        dtype = None if plan.dtype == "auto" else getattr(torch, plan.dtype)
        model = build_model(
            plan.shape, device=device, dtype=dtype, quantization=plan.quantization, model_type=plan.model_type
        )
    return model, shape_image_processor(model.config)


def _measure_case(case: Case, plan: Plan, variants: list[Variant], image_processor: Any) -> list[dict[str, Any]]:
    """A row for each variant; where memory runs out, rows that say so."""
    request = _request(case, plan, variants[0].model.config, image_processor)
    for variant in variants:
        variant.model.set_attn_implementation(case.attention)
    try:
        for _ in range(plan.warm_up):
            for variant in variants:
                measure_once(variant, request, case)
        runs: list[list[Measured]] = [[] for _ in variants]
        for repeat in range(plan.repeats):
            turns = list(zip(variants, runs, strict=True))
            for variant, kept in turns if repeat % 2 == 0 else reversed(turns):
                kept.append(measure_once(variant, request, case))
    except torch.OutOfMemoryError:
        torch.cuda.empty_cache()
        return [_empty_row(case, variant, "out of memory") for variant in variants]
    return [_row(case, plan, variant, own, runs[0]) for variant, own in zip(variants, runs, strict=True)]


def _request(case: Case, plan: Plan, config: LlavaConfig, image_processor: Any) -> Request:
    generator = np.random.default_rng(plan.seed)
    images = plan.shown.draw(generator, case.batch_size)
    ids = torch.from_numpy(generator.integers(3, config.image_token_id, (case.batch_size, case.text_tokens)))
    return Request(images, ids, image_processor, plan.shown)


def _row(case: Case, plan: Plan, variant: Variant, runs: list[Measured], base: list[Measured]) -> dict[str, Any]:
    counted = variant.count(plan.shown, text_tokens=case.text_tokens, itemsize=variant.model.dtype.itemsize)
    stages: dict[str, dict[str, Any]] = {}
    for stage in STAGES:
        seconds = [run.seconds[stage] for run in runs]
        pairs = [(first.seconds[stage], run.seconds[stage]) for first, run in zip(base, runs, strict=True)]
        ratios = [first / own for first, own in pairs if first > 0 and own > 0]
        stages[stage] = {
            "median": statistics.median(seconds),
            "spread": _spread(seconds),
            "seconds": seconds,
            "times_faster": statistics.median(ratios) if ratios else None,
        }
    peaks = [run.peak_bytes for run in runs if run.peak_bytes is not None]
    return {
        **_empty_row(case, variant, None),
        "stages": stages,
        "tokens_per_second": case.batch_size * case.new_tokens / stages["end_to_end"]["median"],
        "peak_bytes": max(peaks) if peaks else None,
        "kv_bytes": runs[-1].kv_bytes,
        "llm_tokens": list(runs[-1].llm_tokens),
        "counted": {
            "llm_tokens": list(counted.llm_tokens),
            "kv_bytes": counted.kv_bytes,
            "tower_flops": counted.tower_flops,
            "projector_flops": counted.projector_flops,
            "prefill_flops": counted.prefill_flops,
            "decode_flops": counted.decode_flops,
        },
    }


def _empty_row(case: Case, variant: Variant, error: str | None) -> dict[str, Any]:
    setting = variant.setting
    return {
        "case": asdict(case),
        "method": setting.method,
        "method_options": dict(setting.options),
        "vision_tokens": setting.vision_tokens,
        "mean_tokens": setting.mean_tokens,
        "error": error,
    }


def _spread(seconds: list[float]) -> float:
    """Interquartile range; 0 of a single run."""
    if len(seconds) < 2:
        return 0.0
    low, _, high = statistics.quantiles(seconds, n=4, method="inclusive")
    return high - low
