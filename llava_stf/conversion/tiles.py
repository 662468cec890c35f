"""LLaVA-NeXT and LLaVA-OneVision in the original format: what their config.json says beyond LLaVA-1.5's.

A tower of CLIP tells LLaVA-NeXT, one of SigLIP LLaVA-OneVision, whose tower lacks its last block.
"""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from typing import Any

from transformers import LlavaNextConfig, LlavaOnevisionConfig
from transformers.image_processing_utils import BaseImageProcessor
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil
from transformers.models.llava_onevision.image_processing_pil_llava_onevision import LlavaOnevisionImageProcessorPil

from llava_stf.errors import CheckpointError

SIGLIP = "siglip_vision_model"
# Model type of a config.json and that of its language model.
LANGUAGE_MODELS = {"llava_llama": "llama", "llava": "llama", "llava_mistral": "mistral", "llava_qwen": "qwen2"}
VIDEO_TOKEN = "<video>"
_MERGE = "spatial_unpad"


def is_tiled(config: dict[str, Any]) -> bool:
    """Whether an original config is of a model that cuts images into tiles.

    Raises:
        CheckpointError: it is a LLaVA that nothing here reads: it joins tiles in another way, or resamples videos.
    """
    aspect, merge = str(config.get("image_aspect_ratio")), str(config.get("mm_patch_merge_type"))
    if "anyres" not in aspect and "spatial" not in merge:
        return False
    if "anyres" not in aspect or merge != _MERGE:
        raise CheckpointError(
            f"LLaVAs with tiles are read with image_aspect_ratio 'anyres' and mm_patch_merge_type '{_MERGE}', found "
            f"'{aspect}' and '{merge}'."
        )
    if config.get("mm_resampler_type"):
        raise CheckpointError(
            f"This LLaVA resamples what it sees (mm_resampler_type {config['mm_resampler_type']!r}); of the original "
            "format LLaVA-1.5, LLaVA-NeXT and LLaVA-OneVision are read."
        )
    return True


def config_class(tower_type: str) -> type[LlavaNextConfig] | type[LlavaOnevisionConfig]:
    """The config of a model with tiles on a tower of that model type."""
    return LlavaOnevisionConfig if tower_type == SIGLIP else LlavaNextConfig


def tiled_fields(file: Path, config: dict[str, Any], tower_type: str, tile_side: int) -> dict[str, Any]:
    """Fields of the Hugging Face config that tell how images are cut.

    Args:
        file: config.json, for messages.
        config: what it says.
        tower_type: model type of the tower.
        tile_side: in pixels.

    Raises:
        CheckpointError: they make no sense.
    """
    fields: dict[str, Any] = {"image_grid_pinpoints": _pinpoints(file, config.get("image_grid_pinpoints"), tile_side)}
    aspect = config["image_aspect_ratio"]
    if tower_type == SIGLIP:
        if not re.fullmatch(r"anyres_max_[1-9]\d*", aspect):
            raise CheckpointError(f"{file}: image_aspect_ratio of a LLaVA-OneVision is anyres_max_N, found {aspect!r}.")
        return {
            **fields,
            "vision_aspect_ratio": aspect,
            "vision_feature_layer": -1,
            "vision_feature_select_strategy": "full",
        }
    if aspect != "anyres":
        raise CheckpointError(f"{file}: image_aspect_ratio of a LLaVA-NeXT is 'anyres', found {aspect!r}.")
    return fields


def original_fields(config: LlavaNextConfig | LlavaOnevisionConfig) -> dict[str, Any]:
    """What the original config.json says of tiles."""
    return {
        "image_aspect_ratio": getattr(config, "vision_aspect_ratio", "anyres"),
        "image_grid_pinpoints": [list(sides) for sides in config.image_grid_pinpoints],
        "mm_patch_merge_type": _MERGE,
        "mm_vision_select_feature": "patch",
        **({"mm_vision_select_layer": -2} if isinstance(config, LlavaOnevisionConfig) else {}),
    }


def tiled_image_processor(
    config: LlavaNextConfig | LlavaOnevisionConfig, preprocessor: dict[str, Any]
) -> BaseImageProcessor:
    """The image processor of a model with tiles, with the statistics of the tower's preprocessor_config.json."""
    side = config.vision_config.image_size
    square = {"height": side, "width": side}
    names = ("resample", "image_mean", "image_std")
    fields: dict[str, Any] = {name: preprocessor[name] for name in names if preprocessor.get(name) is not None}
    fields["image_grid_pinpoints"] = config.image_grid_pinpoints
    if isinstance(config, LlavaOnevisionConfig):
        half = [0.5, 0.5, 0.5]
        return LlavaOnevisionImageProcessorPil(size=square, **{"image_mean": half, "image_std": half, **fields})
    return LlavaNextImageProcessorPil(size={"shortest_edge": side}, crop_size=square, **fields)


def _pinpoints(file: Path, said: Any, tile_side: int) -> list[list[int]]:
    """The resolutions; a text such as "(1x1),...,(6x6)" gives them in tiles, from the first to the last."""
    if isinstance(said, str):
        pairs = [(int(rows), int(columns)) for rows, columns in re.findall(r"(\d+)x(\d+)", said)]
        if pairs and "..." in said:
            (first, other), (last, end) = pairs[0], pairs[-1]
            pairs = list(itertools.product(range(first, last + 1), range(other, end + 1)))
        said = [[tile_side * rows, tile_side * columns] for rows, columns in pairs]
    whole = isinstance(said, list) and said and all(
        isinstance(sides, list) and len(sides) == 2 and all(type(one) is int and one > 0 for one in sides)
        for sides in said
    )  # fmt: skip
    if not whole or any(one % tile_side for sides in said for one in sides):
        raise CheckpointError(
            f"{file}: image_grid_pinpoints must be heights and widths that are multiples of {tile_side} pixels, found "
            f"{said!r:.200}."
        )
    return said
