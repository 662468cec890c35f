"""What a training run starts from: its base is looked at before anything heavy is loaded, then loaded and reduced."""

from __future__ import annotations

import logging
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from llava_stf.errors import CheckpointError, FusionError, LlavaStfError, MissingDependencyError

if TYPE_CHECKING:
    import torch
    from transformers import LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor

    from llava_stf.data.templates import Template
    from llava_stf.training.config import FinetuneConfig

logger = logging.getLogger(__name__)


def check_start(config: FinetuneConfig) -> None:
    """Check that the run can start from its base as the options say; reads configs, no weights.

    Raises:
        LlavaStfError: it cannot.
    """
    _check_packages(config)
    if config.overwrite:
        output = Path(config.output).resolve()
        if output in (Path(config.base).resolve(), *Path(config.base).resolve().parents):
            raise LlavaStfError(f"the base {config.base} lies in the output {config.output}, which overwrite replaces")
    if starts_from_language_model(config):
        if config.vision_tower is None:
            raise LlavaStfError(
                f"the base {config.base} is a language model without a vision tower: give one with --vision-tower"
            )
        if config.lora_rank is not None:
            raise LlavaStfError(
                f"LoRA needs a base with a projector, and {config.base} is a language model: run stage align first"
            )
        if config.stage == "distill":
            raise LlavaStfError(
                f"stage distill needs a base that can teach, a LLaVA, and {config.base} is a language model"
            )
        if config.vision_tokens == "all" and config.init not in ("pool", "random"):
            raise LlavaStfError(
                f"vision_tokens all has a plain projector, and {config.init} is for a fused one: drop one"
            )
        return
    from llava_stf.loading import read_config

    base = read_config(config.base, vision_tower=config.vision_tower)
    if base.model_type in ("video_llava", "video_llava_stf"):
        raise FusionError(f"Training is for models of one vision tower, and a {base.model_type} is none.")
    _check_tokens(config, base)


def _check_packages(config: FinetuneConfig) -> None:
    """Raise `MissingDependencyError` for an option whose package is not here."""
    needed = {
        ("lora_rank", config.lora_rank is not None): ("peft", "'llava-stf[train]'"),
        ("quantization", config.quantization is not None): ("bitsandbytes", "'llava-stf[quantization]'"),
        ("report_to", config.report_to == "tensorboard"): ("tensorboard", "'llava-stf[train]'"),
        ("report_to", config.report_to == "wandb"): ("wandb", "wandb"),
        ("attn_implementation", config.attn_implementation == "flash_attention_2"): (
            *("flash_attn", "flash-attn --no-build-isolation"),
        ),
    }
    for (option, asked), (package, wheel) in needed.items():
        if asked and find_spec(package) is None:
            raise MissingDependencyError(
                f"{option} {getattr(config, option)} needs the package {package}: pip install {wheel}"
            )


def adopt_prompt(processor: LlavaProcessor) -> Template:
    """How conversations are written in training; what cannot be trained on is given the v1 template, see `template_of`.

    What is asked later is then what was trained, whatever prompt the base was asked by; the log says so.
    """
    from llava_stf.data.templates import gives_v1, template_of
    from llava_stf.models.llava_stf.conversation import CHAT_TEMPLATE

    template = template_of(processor)
    if template == "v1" and not gives_v1(processor):
        logger.info(
            "training is on LLaVA's v1 prompt, and the base has %s: the trained model gets the v1 template",
            "a chat template that cannot be trained on" if processor.chat_template else "no chat template",
        )
        processor.chat_template = CHAT_TEMPLATE
    return template


def _check_tokens(config: FinetuneConfig, base: LlavaConfig) -> None:
    from llava_stf.loading.checkpoint import own_vision_tokens
    from llava_stf.models.fusion.budget import resolve_window, resolve_windows
    from llava_stf.models.fusion.config import FusionConfig
    from llava_stf.models.fusion.tiles import refuse_tiles
    from llava_stf.models.llava_stf.adapter import load_adapter

    if not isinstance(base, FusionConfig):
        resolve_windows(base, config.vision_tokens)
        if config.reduction not in ("stf", "pool"):
            refuse_tiles(base, f"reduction {config.reduction}")
        whole = config.vision_tokens == "all" or (
            config.vision_tokens is None and config.reduction == "stf" and own_vision_tokens(base, config.base) == "all"
        )
        if whole and config.stage == "distill":
            raise FusionError(
                f"stage distill is for fewer vision tokens, and {config.base} has all its own: say how many"
            )
        if whole and config.init != "pool":
            raise FusionError(f"vision_tokens all keeps the base's own projector: leave out init {config.init}")
        if config.reduction == "stf" and config.init not in ("pool", "random"):
            load_adapter(config.init).check(base)
    elif config.reduction != "stf" or config.init != "pool":
        raise FusionError(f"{config.base} has a fused projector of its own: leave out reduction and init")
    elif config.stage == "distill":
        raise FusionError(
            f"stage distill starts from a plain LLaVA, which is its own teacher, and {config.base} is fused already"
        )
    elif config.vision_tokens is not None:
        for count in config.vision_tokens if isinstance(config.vision_tokens, tuple) else (config.vision_tokens,):
            resolve_window(base, count)


def computes_in_bfloat16(config: FinetuneConfig) -> bool:
    """Whether the run computes in bfloat16: as it says, or with `auto` where the device is quick at it.

    A CPU that is not, one with AVX2 only for instance, computes it by way of float32 and is many times slower.
    """
    import torch

    from llava_stf.loading.precision import slow_on_cpu

    if config.bf16 != "auto":
        return config.bf16
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.accelerator.is_available() or not slow_on_cpu(torch.bfloat16)


def starts_from_language_model(config: FinetuneConfig) -> bool:
    """Whether the base is a language model alone.

    Raises:
        LlavaStfError: it is the result of a LoRA run.
    """
    from llava_stf.conversion.locate import locate
    from llava_stf.loading import BUNDLED, is_llava
    from llava_stf.loading.lora import is_lora_folder

    if config.base in BUNDLED:
        return False
    folder = locate(config.base, weights=False)
    if is_lora_folder(folder):
        raise LlavaStfError(
            f"the base {config.base} holds LoRA weights: merge them into their base first (llava-stf merge)"
        )
    return (folder / "config.json").is_file() and not is_llava(folder)


def load_start(
    config: FinetuneConfig, checkpoint: Path | None, device: str | torch.device = "cpu"
) -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    """Model and processor that training starts from: the checkpoint, or the base, reduced.

    What is trained is in float32, what stays frozen in the dtype that is computed in, if it is not saved in another.
    All is on the CPU but 4-bit weights, which are loaded straight to `device`. With LoRA the model is the base in any
    case, and in distillation it has the checkpoint's projector.

    Raises:
        FusionError: the base cannot be brought to the vision tokens asked for.
        CheckpointError: it has no tokenizer or no image processor.
    """
    from llava_stf.loading import load_model
    from llava_stf.models.registry import TRAINED_PLAIN, is_plain

    lora = config.lora_rank is not None
    load = partial(
        load_model,
        device="cpu" if config.quantization is None else device,
        dtype="bfloat16" if lora and computes_in_bfloat16(config) else "float32",
        attn_implementation=config.attn_implementation,
    )
    if checkpoint is not None and not lora and config.stage != "distill":
        model, processor = load(checkpoint, vision_tokens="all" if config.vision_tokens == "all" else None)
    elif starts_from_language_model(config):
        from llava_stf.training.assemble import build_model

        assert config.vision_tower is not None  # checked before
        model, processor = build_model(
            config.vision_tower, config.base, attn_implementation=config.attn_implementation, seed=config.seed
        )
        _reduce(config, model, processor)
    elif config.reduction != "stf":
        model, processor = load(
            config.base, vision_tokens="all", vision_tower=config.vision_tower, quantization=config.quantization
        )
        _reduce(config, model, processor)
    else:
        model, processor = load(
            config.base,
            vision_tokens=config.vision_tokens,
            init=config.init,
            vision_tower=config.vision_tower,
            quantization=config.quantization,
        )
    if processor is None:
        raise CheckpointError(f"{config.base} has no tokenizer or no processor_config.json to train with.")
    if checkpoint is not None and config.stage == "distill" and not lora:
        trained, _ = load(checkpoint)
        model.model.multi_modal_projector.load_state_dict(trained.model.multi_modal_projector.state_dict())
    model.model.multi_modal_projector.float()
    if config.stage != "instruct" and computes_in_bfloat16(config) and config.save_dtype == "bfloat16":
        for part in (model.model.vision_tower, model.model.language_model, model.lm_head):
            if config.quantization is None:
                part.bfloat16()
    if is_plain(model):
        setattr(model.config, TRAINED_PLAIN, True)
    elif hasattr(model.config, TRAINED_PLAIN):
        delattr(model.config, TRAINED_PLAIN)
    logger.info("starting from %s, a %s", checkpoint or config.base, type(model).__name__)
    return model, processor


def _reduce(config: FinetuneConfig, model: LlavaForConditionalGeneration, processor: LlavaProcessor) -> None:
    """Bring a plain LLaVA to the vision tokens asked for, in place."""
    from llava_stf.models.fusion.budget import resolve_windows
    from llava_stf.reduction.apply import apply_fusing, apply_stf
    from llava_stf.training.assemble import keep_all_patches

    if config.vision_tokens == "all":
        keep_all_patches(model, processor)
        return
    window = resolve_windows(model.config, config.vision_tokens)
    if config.reduction == "stf":
        apply_stf(model, processor, window=window, init=config.init, seed=config.seed)
    else:
        apply_fusing(model, processor, config.reduction, window=window, seed=config.seed)
