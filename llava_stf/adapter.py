"""Projector weights on their own, as stage 1 writes them: `mm_projector.bin` of the authors, or a safetensors file."""

from __future__ import annotations

import math
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import LlavaConfig

from .errors import CheckpointError

# The authors' names of the four layers and ours. Segments are matched whole: one name is a prefix of another.
_LAYERS = {
    "mm_projector_crosslayer.0": "block_fusion.linear_1",
    "mm_projector_crosslayer.2": "block_fusion.linear_2",
    "mm_projector.0": "spatial_fusion.linear_1",
    "mm_projector.2": "spatial_fusion.linear_2",
}
_KEYS = [f"{layer}.{kind}" for layer in _LAYERS.values() for kind in ("weight", "bias")]


@dataclass(frozen=True)
class Adapter:
    """The eight tensors of one `LlavaStfProjector`, under its own names, and the file they came from."""

    path: Path
    state: dict[str, Tensor]

    def config_values(self, config: LlavaConfig) -> dict[str, Any]:
        """The fusion fields of a `LlavaStfConfig` that the shapes tell: widths and window.

        The list of fusion layers is in no file; its default must have as many states as the shapes say.
        """
        width = config.vision_config.hidden_size
        window = math.isqrt(self.state["spatial_fusion.linear_1.weight"].shape[1] // width)
        return {
            "fusion_window": window,
            "fusion_block_hidden_size": self.state["block_fusion.linear_1.weight"].shape[0],
            "fusion_hidden_size": self.state["spatial_fusion.linear_1.weight"].shape[0],
        }

    def load_into(self, projector: nn.Module) -> None:
        """Copy the weights into `projector`; raises `CheckpointError` naming the first tensor of another shape."""
        for name, parameter in projector.named_parameters():
            if self.state[name].shape != parameter.shape:
                raise CheckpointError(
                    f"{self.path}: {name} has shape {list(self.state[name].shape)}, this model needs "
                    f"{list(parameter.shape)}; it was trained for another tower, language model or fusion."
                )
        projector.load_state_dict(self.state)


def load_adapter(path: str | Path) -> Adapter:
    """Read an adapter file: safetensors, or a torch pickle of plain tensors.

    Raises `CheckpointError` if the file is absent, damaged, or does not hold exactly the eight tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"init must be 'pool', 'random' or an adapter file, found '{path}', which does not exist.")
    try:
        if path.suffix == ".safetensors":
            tensors = load_file(path)
        else:
            tensors = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        raise CheckpointError(f"{path}: not a readable adapter file ({error}).") from error
    if not isinstance(tensors, dict):
        raise CheckpointError(f"{path}: expected a dict of tensors, found {type(tensors).__name__}.")
    state = {_our_name(name): tensor for name, tensor in tensors.items()}
    missing, unknown = sorted(set(_KEYS) - set(state)), sorted(set(state) - set(_KEYS))
    if missing or unknown:
        raise CheckpointError(
            f"{path}: expected the eight projector tensors; missing {missing[:3] or 'none'}, unknown {unknown[:3] or 'none'}."
        )
    return Adapter(path, state)


def _our_name(name: str) -> str:
    """`model.mm_projector_crosslayer.0.weight` or `multi_modal_projector.block_fusion...` as the projector names it."""
    name = name.rpartition("multi_modal_projector.")[2]
    segments = name.split(".")
    layer = _LAYERS.get(".".join(segments[-3:-1]))
    return f"{layer}.{segments[-1]}" if layer else name
