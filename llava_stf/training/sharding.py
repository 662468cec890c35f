"""Weights, gradients and optimizer shared out over processes, by FSDP2 or DeepSpeed, as `accelerate launch` says.

What is sharded is a whole only while a module runs. A unit is what is gathered at once: a block of the vision tower or
the LLM, or the projector, whose parts read each other's weights.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llava_stf.errors import LlavaStfError

if TYPE_CHECKING:
    from accelerate import FullyShardedDataParallelPlugin
    from torch import nn
    from transformers import TrainingArguments

    from llava_stf.training.config import FinetuneConfig

FSDP2 = "FSDP2"

logger = logging.getLogger(__name__)


def sharding() -> str | None:
    """What `accelerate launch` set for this process: "FSDP2", "DeepSpeed ZeRO-3", or `None` for a whole model in each.

    Raises:
        LlavaStfError: it is FSDP of the first version, or a DeepSpeed configuration that cannot be read.
    """
    if _is_set("ACCELERATE_USE_DEEPSPEED"):
        return f"DeepSpeed ZeRO-{_zero_stage()}"
    if not _is_set("ACCELERATE_USE_FSDP"):
        return None
    if os.environ.get("FSDP_VERSION", "1") != "2":
        raise LlavaStfError("FSDP shards training by its second version alone: set fsdp_version: 2 for accelerate")
    return FSDP2


def check_sharding(config: FinetuneConfig) -> None:
    """Check that a run's options go together with how `accelerate launch` shards it, if at all.

    Raises:
        LlavaStfError: they do not.
    """
    kind = sharding()
    if kind is None:
        return
    if config.quantization is not None:
        raise LlavaStfError(f"4-bit weights cannot be shared out by {kind}: leave out quantization, or take DDP")
    if config.compile:
        raise LlavaStfError(f"compile is for whole weights in every process, and {kind} shards them: drop one")
    if kind != FSDP2 and config.vision_tokens_schedule == "all" and isinstance(config.vision_tokens, tuple):
        raise LlavaStfError(f"{kind} updates weights after every pass, and schedule all has several: take random")
    if kind == FSDP2 and _is_set("FSDP_CPU_RAM_EFFICIENT_LOADING"):
        raise LlavaStfError(
            "every process reads the base for itself: set fsdp_cpu_ram_efficient_loading: false for accelerate"
        )


def check_processes(arguments: TrainingArguments) -> None:
    """Check that the processes that were started train together, and share out the weights if they are to.

    Accelerate neither shards on CPUs nor says so: there it copies the model, or lets every process train alone.

    Raises:
        LlavaStfError: they do not.
    """
    started, kind = int(os.environ.get("WORLD_SIZE", "1")), sharding()
    instead = "start them with scripts/accelerate/ddp.yaml or torchrun, which copy the model"
    if kind is not None and arguments.use_cpu:
        raise LlavaStfError(f"{kind} shares out weights over GPUs, and there is none: {instead}")
    if started != arguments.world_size:
        raise LlavaStfError(f"{started} processes were started, and each would train alone: {instead}")


@contextmanager
def whole_weights() -> Iterator[None]:
    """Let models be loaded and changed whole meanwhile, where transformers would cut them up for ZeRO-3 at once."""
    if _is_set("ACCELERATE_USE_DEEPSPEED"):
        from transformers.integrations import deepspeed

        reference = deepspeed._hf_deepspeed_config_weak_ref
        deepspeed.unset_hf_deepspeed_config()
        try:
            yield
        finally:
            deepspeed._hf_deepspeed_config_weak_ref = reference
    else:
        yield


def prepare_plugin(plugin: FullyShardedDataParallelPlugin, model: nn.Module) -> None:
    """Say what FSDP2's units are in this model, and that gradients are added in float32, as in one process."""
    import torch
    from torch.distributed.fsdp import MixedPrecisionPolicy
    from torch.distributed.fsdp.fully_sharded_data_parallel import StateDictType
    from torch.distributed.fsdp.wrap import transformer_auto_wrap_policy

    plugin.auto_wrap_policy = transformer_auto_wrap_policy
    plugin.transformer_cls_names_to_wrap = unit_names(model)
    plugin.state_dict_type = StateDictType.SHARDED_STATE_DICT
    policy = plugin.mixed_precision_policy
    if policy is not None and policy.param_dtype is not None:
        plugin.mixed_precision_policy = MixedPrecisionPolicy(
            param_dtype=policy.param_dtype, reduce_dtype=torch.float32, output_dtype=policy.output_dtype
        )
    logger.info("sharded by FSDP2, gathered one %s at a time", " or ".join(plugin.transformer_cls_names_to_wrap))


def unit_names(model: nn.Module) -> list[str]:
    """Class names of the modules that are gathered as one, sorted.

    Args:
        model: a LLaVA, with or without adapters.
    """
    root: Any = model
    llava = root.get_base_model() if hasattr(root, "peft_config") else root
    projector = llava.model.multi_modal_projector
    projector = getattr(projector, "original_module", projector)  # PEFT keeps it beside the one that is trained
    there = {type(module).__name__ for module in model.modules()}
    return sorted({*llava._no_split_modules, type(projector).__name__} & there)


def forward_of(model: nn.Module, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` run as a forward pass of `model`, which it calls parts of, so that FSDP2 gathers what it needs.

    Args:
        model: FSDP2's root, or any other.
        name: of an attribute of `model` that the function gets.
        function: takes and returns what it likes.
    """
    from torch.distributed.fsdp import register_fsdp_forward_method

    setattr(model, name, function)
    register_fsdp_forward_method(model, name)
    return getattr(model, name)


def gathered(model: nn.Module, *, trained_only: bool) -> dict[str, Any]:
    """The whole weights of an FSDP2 model on the CPU of the first process, nothing in others; all have to call it."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    options = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=trained_only)
    return get_model_state_dict(model, options=options)


def _is_set(name: str) -> bool:
    return os.environ.get(name, "").lower() in ("true", "1")


def _zero_stage() -> int:
    path = os.environ.get("ACCELERATE_DEEPSPEED_CONFIG_FILE")
    if path is None:
        return int(os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", "2"))
    try:
        return int(json.loads(Path(path).read_text(encoding="utf-8"))["zero_optimization"]["stage"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise LlavaStfError(f"{path} is no DeepSpeed configuration with zero_optimization.stage: {error!r}") from error
