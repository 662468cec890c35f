"""What is trained, and at which learning rate: by part of the model, told from parameter names."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Literal

from torch import nn

from llava_stf.errors import LlavaStfError

Part = Literal["vision_tower", "projector", "language_model"]


def part_of(parameter_name: str) -> Part:
    """The part a parameter of a LLaVA belongs to.

    The head and the embeddings count as language model, and the newline behind rows of tiles as projector.
    """
    levels = parameter_name.split(".")
    if "vision_tower" in levels:
        return "vision_tower"
    if "multi_modal_projector" in levels or levels[-1] == "image_newline":
        return "projector"
    return "language_model"


def train_only(model: nn.Module, parts: Collection[str]) -> None:
    """Freeze every parameter outside `parts`. A frozen vision tower runs without gradient: its input needs none.

    Raises:
        LlavaStfError: nothing is left to train.
    """
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(part_of(name) in parts)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise LlavaStfError(f"the model has no parameter in {', '.join(parts)}: nothing would be trained")


def keep_newline(model: nn.Module) -> None:
    """Freeze the newline behind rows of tiles, in distillation, where teacher and student have it together."""
    for name, parameter in model.named_parameters():
        if name.endswith("image_newline"):
            parameter.requires_grad_(False)


def parameter_groups(
    model: nn.Module, learning_rates: Mapping[str, float], *, weight_decay: float = 0.0
) -> list[dict[str, Any]]:
    """AdamW parameter groups, one per part and decay: each part has its own learning rate, only matrices decay.

    Every group carries `part` beside `params`, `lr` and `weight_decay`; frozen parameters are in none.
    """
    groups: dict[tuple[str, float], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        part, decay = part_of(name), weight_decay if parameter.ndim >= 2 else 0.0
        empty: dict[str, Any] = {"part": part, "params": [], "lr": learning_rates[part], "weight_decay": decay}
        groups.setdefault((part, decay), empty)["params"].append(parameter)
    return list(groups.values())
