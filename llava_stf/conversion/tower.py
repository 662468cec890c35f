"""The vision tower of an original checkpoint, whose config.json names it but does not describe it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llava_stf.conversion.locate import is_hub_id, locate
from llava_stf.errors import CheckpointError, ModelNotFoundError
from llava_stf.io.json import read_json
from llava_stf.io.weights import StoredTensor, read_index, weight_files
from llava_stf.models.llava_stf.keys import TOWER_FOLDER, is_unused, rename

# The tower of LLaVA-1.5 and of the authors' release, described here so that a checkpoint which holds its weights
# converts without another download.
CLIP_L_336 = "openai/clip-vit-large-patch14-336"
CLIP_L_336_CONFIG: dict[str, Any] = {
    "model_type": "clip_vision_model",
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 336,
    "patch_size": 14,
    "projection_dim": 768,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
}
# That of LLaVA-OneVision.
SIGLIP_SO400M = "google/siglip-so400m-patch14-384"
SIGLIP_SO400M_CONFIG: dict[str, Any] = {
    "model_type": "siglip_vision_model",
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_hidden_layers": 27,
    "num_attention_heads": 16,
    "image_size": 384,
    "patch_size": 14,
    "hidden_act": "gelu_pytorch_tanh",
    "layer_norm_eps": 1e-6,
}
KNOWN = {CLIP_L_336: CLIP_L_336_CONFIG, SIGLIP_SO400M: SIGLIP_SO400M_CONFIG}


@dataclass(frozen=True)
class Tower:
    """A vision tower: fields of its config and preprocessor_config.json (may be none), and its folder."""

    config: dict[str, Any]
    preprocessor: dict[str, Any]
    folder: Path | None

    def tensors(self) -> dict[str, StoredTensor]:
        """Its weights by public name; of a whole CLIP, the vision part.

        Raises:
            CheckpointError: the folder holds none.
        """
        files = weight_files(self.folder) if self.folder else []
        if not files:
            raise CheckpointError(f"The vision tower's folder {self.folder} holds no weights.")
        index = read_index(files).values()
        named = ((rename(stored.name, TOWER_FOLDER), stored) for stored in index if not is_unused(stored.name))
        return {name: stored.require_float() for name, stored in named if name is not None}


def find_tower(config: dict[str, Any], folder: Path, given: str | Path | None, *, weights_inside: bool) -> Tower:
    """The tower that `given` or else the checkpoint's `config` names.

    Args:
        config: the checkpoint's config.json, with `mm_vision_tower`: a folder (absolute, or relative to the
            checkpoint or the working directory) or a hub id.
        folder: the checkpoint's folder.
        given: the user's choice of tower, a folder or hub id; wins over the config.
        weights_inside: the checkpoint holds the tower's weights, so that its config is enough.

    Raises:
        ModelNotFoundError: the tower cannot be reached.
        CheckpointError: it is no vision tower of CLIP or SigLIP.
    """
    name = given or config.get("mm_vision_tower")
    if isinstance(name, list) and name:
        name = name[0]
    if not isinstance(name, str | Path):
        raise CheckpointError(
            f"{folder / 'config.json'} names no vision tower ('mm_vision_tower'); give its folder or hub id as "
            "vision_tower (--vision-tower)."
        )
    if str(name) in KNOWN and weights_inside and not Path(name).exists():
        return Tower(KNOWN[str(name)], {}, None)
    path = next((path for path in (folder / name, Path(name).expanduser()) if path.is_dir()), None)
    if path is None:
        path = _fetch(str(name), folder, weights=not weights_inside)
    preprocessor = path / "preprocessor_config.json"
    return Tower(_vision_config(path / "config.json"), read_json(preprocessor) if preprocessor.is_file() else {}, path)


def _fetch(name: str, folder: Path, *, weights: bool) -> Path:
    if not is_hub_id(name):
        raise ModelNotFoundError(
            f"{folder} names the vision tower '{name}', which is no folder there nor here ({Path.cwd()}); give its "
            "folder or hub id as vision_tower (--vision-tower)."
        )
    try:
        return locate(name, weights=weights)
    except ModelNotFoundError as error:
        raise ModelNotFoundError(
            f"{folder} needs the vision tower '{name}', which is neither a folder nor reachable on the hub; give its "
            "folder as vision_tower (--vision-tower)."
        ) from error


def _vision_config(file: Path) -> dict[str, Any]:
    """The vision part of a CLIP or SigLIP config, whether it stands alone or inside a whole one's."""
    config = read_json(file)
    if config.get("model_type") in ("clip", "siglip"):
        config = {**config.get("vision_config", {}), "model_type": f"{config['model_type']}_vision_model"}
    if config.get("model_type") not in ("clip_vision_model", "siglip_vision_model"):
        raise CheckpointError(
            f"{file}: expected a CLIP or SigLIP vision tower, found model type {config.get('model_type')!r}."
        )
    sizes = config.get("image_size"), config.get("patch_size")
    if not all(isinstance(size, int) and size > 0 for size in sizes):
        raise CheckpointError(f"{file}: expected image_size and patch_size as positive integers, found {sizes}.")
    return config
