"""Projector weights on their own, as stage 1 writes them: `mm_projector.bin` of the authors, or a safetensors file."""

from __future__ import annotations

import math
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import LlavaConfig

from llava_stf.errors import CheckpointError
from llava_stf.io.weights import Reader, read_index
from llava_stf.models.fusion.projector import LlavaStfProjector
from llava_stf.models.llava_stf.configuration_llava_stf import LlavaStfConfig
from llava_stf.models.llava_stf.keys import PROJECTOR, STF_PROJECTOR, adapter_name, rename

_KEYS = [f"{layer.removeprefix(PROJECTOR)}.{kind}" for layer in STF_PROJECTOR.values() for kind in ("weight", "bias")]


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

    def check(self, config: LlavaConfig) -> None:
        """Check that the weights fit a plain LLaVA of this config.

        Raises:
            CheckpointError: they are of other shapes.
            FusionError: its grid has no such windows.
        """
        fused = LlavaStfConfig.from_dict(config.to_dict() | {"fusion_layers": None} | self.config_values(config))
        with torch.device("meta"):
            self._check_shapes(LlavaStfProjector(fused))

    def load_into(self, projector: LlavaStfProjector) -> None:
        """Copy the weights into `projector`.

        Raises:
            CheckpointError: a tensor has another shape; it names the first.
        """
        self._check_shapes(projector)
        projector.load_state_dict(self.state)

    def _check_shapes(self, projector: LlavaStfProjector) -> None:
        for name, parameter in projector.named_parameters():
            if self.state[name].shape != parameter.shape:
                raise CheckpointError(
                    f"{self.path}: {name} has shape {list(self.state[name].shape)}, this model needs "
                    f"{list(parameter.shape)}; it was trained for another tower, language model or fusion."
                )


def load_adapter(path: str | Path) -> Adapter:
    """Read an adapter file: safetensors, or a torch pickle of plain tensors, under the authors' names or ours.

    Raises:
        CheckpointError: the file is absent, damaged, or does not hold exactly the eight tensors.
    """
    if not isinstance(path, (str, PathLike)) or not Path(path).is_file():
        raise CheckpointError(f"init must be 'pool', 'random' or an adapter file; there is no file '{path}'.")
    path = Path(path)
    reader = Reader()
    state = {}
    for name, stored in read_index([path]).items():
        public = rename(adapter_name(name), STF_PROJECTOR) or name
        state[public.removeprefix(PROJECTOR)] = reader.read(stored.require_float())
    missing, unknown = sorted(set(_KEYS) - set(state)), sorted(set(state) - set(_KEYS))
    if missing or unknown:
        raise CheckpointError(
            f"{path}: expected the eight projector tensors; missing {', '.join(missing[:3]) or 'none'}, "
            f"unknown {', '.join(unknown[:3]) or 'none'}."
        )
    return Adapter(path, state)
