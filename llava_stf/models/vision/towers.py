"""Any Vision Transformer of transformers as the tower of a LLaVA: loaded, brought to a size, and looked at.

What stands before the patches in a tower's states differs: a class token (CLIP, ViT), a class token and registers
(DINOv2 with registers), nothing (SigLIP). It is counted on the tower itself.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel

from llava_stf.errors import CheckpointError, one_line
from llava_stf.io.json import read_json
from llava_stf.models.vision.states import select_hidden_states
from llava_stf.models.vision.vits import check_patches


def load_tower(
    folder: Path, options: dict[str, Any], *, image_size: int | None = None
) -> tuple[PreTrainedModel, dict[str, Any]]:
    """The vision tower in a folder, in evaluation mode, and the fields of its preprocessor, both at one image size.

    Args:
        folder: a vision model, or a whole model with a `vision_config`, such as a CLIP or SigLIP.
        options: for `from_pretrained`.
        image_size: side in pixels; by default what the folder's preprocessor cuts images to, else the config's. A
            tower made for another gets its position table resized by its own rule.

    Raises:
        CheckpointError: it cannot be loaded, or is no plain Vision Transformer for square images.
        LlavaStfError: the patch does not divide `image_size`.
    """
    if not folder.is_dir():
        raise CheckpointError(
            f"Expected the folder of a vision tower, found the file {folder}; a checkpoint of a pre-training method is "
            "converted first (llava-stf convert FILE FOLDER --encoder NAME)."
        )
    file = folder / "preprocessor_config.json"
    preprocessor = read_json(file) if file.is_file() else {}
    tower = _load(folder, options)
    side, patch = (getattr(tower.config, name, None) for name in ("image_size", "patch_size"))
    if not isinstance(side, int) or not isinstance(patch, int):
        raise CheckpointError(f"{folder} is no vision tower for square images of one size (image_size, patch_size).")
    if image_size is not None and image_size != side:
        check_patches(image_size, patch)
    wanted = image_size or _cut_to(preprocessor) or side
    if wanted != side:
        tower = resized(tower, wanted)
    try:
        special_tokens(tower)
    except (CheckpointError, RuntimeError, ValueError, TypeError) as error:
        raise CheckpointError(f"{folder} cannot be a vision tower: {one_line(error)}") from error
    # The whole square that LLaVA pads an image to is shown; cutting its border off would lose what lies there.
    whole = {"size": {"shortest_edge": wanted}, "crop_size": {"height": wanted, "width": wanted}}
    return tower, {**preprocessor, **whole, "do_resize": True, "do_center_crop": True}


def _load(folder: Path, options: dict[str, Any]) -> PreTrainedModel:
    read_json(folder / "config.json")  # names the file if it is absent or broken
    try:
        config = AutoConfig.from_pretrained(folder)
        vision = getattr(config, "vision_config", config)
        tower, report = AutoModel.from_pretrained(folder, config=vision, output_loading_info=True, **options)
    except (OSError, RuntimeError, ValueError, TypeError, KeyError) as error:
        raise CheckpointError(f"{folder} cannot be loaded: {one_line(error)}") from error
    # Checkpoints of ViTs often have no pooling layer, which the class adds; LLaVA reads the states below it.
    missing = sorted(name for name in report["missing_keys"] if not name.startswith("pooler."))
    if missing:
        raise CheckpointError(
            f"{folder} lacks {len(missing)} tensors of a {type(tower).__name__}, the first is {missing[0]}."
        )
    return tower.eval()


def _cut_to(preprocessor: dict[str, Any]) -> int | None:
    """Side of the square images that a preprocessor_config.json asks for."""
    cut = preprocessor.get("crop_size") if preprocessor.get("do_center_crop", True) else None
    size = cut or preprocessor.get("size")
    if isinstance(size, dict):
        size = size.get("height", size.get("shortest_edge"))
    return size if isinstance(size, int) else None


def one_block(config: PreTrainedConfig) -> PreTrainedModel:
    """A tower of this config cut down to one block, without weights (device meta), to read sizes from."""
    config = copy.deepcopy(config)
    config.num_hidden_layers = 1
    with torch.device("meta"):
        return AutoModel.from_config(config)


def special_tokens_of(config: PreTrainedConfig) -> int:
    """How many tokens stand before the patches in the states of a tower of this config; needs no weights."""
    side = config.image_size
    (state,) = select_hidden_states(one_block(config), torch.empty(1, 3, side, side, device="meta"), [0])
    return state.shape[1] - (side // config.patch_size) ** 2


def special_tokens(tower: PreTrainedModel) -> int:
    """How many tokens stand before the patches in the tower's hidden states: seen, not told by its kind.

    Raises:
        CheckpointError: the N patches do not follow them in raster order to the end, in all states alike.
    """
    side, patch = tower.config.image_size, tower.config.patch_size
    grid = side // patch
    pixels = torch.zeros(2, 3, side, side, dtype=tower.dtype, device=tower.device)
    pixels[1, :, :patch, :patch] = 1
    last = slice((grid - 1) * patch, grid * patch)
    pixels[1, :, last, last] = 1
    with torch.inference_mode():
        states = select_hidden_states(tower, pixels, range(tower.config.num_hidden_layers + 1))
    shapes = {tuple(state.shape[1:]) for state in states}
    tokens = states[0].shape[1]
    touched = (states[0][0] != states[0][1]).any(-1).nonzero().flatten().tolist()
    expected = sorted({tokens - grid**2, tokens - 1})
    if shapes != {(tokens, tower.config.hidden_size)} or touched != expected or tokens < grid**2:
        raise CheckpointError(
            f"expected states that end with the {grid}x{grid} patches of an image in raster order, found states of "
            f"{sorted(shapes)}, in the first of which the first and the last patch touch {touched[:5]}."
        )
    return tokens - grid**2


def resized(tower: PreTrainedModel, image_size: int) -> PreTrainedModel:
    """A copy of the tower for images of `image_size` pixels a side, its position table resized by its own rule.

    Raises:
        CheckpointError: it has a table and no rule.
    """
    config = copy.deepcopy(tower.config)
    config.image_size = image_size
    with torch.random.fork_rng(devices=[]):
        fresh = type(tower)(config).to(tower.dtype)
    state = tower.state_dict()
    for name, wanted in fresh.state_dict().items():
        if state[name].shape == wanted.shape:
            continue
        owner = tower.get_submodule(name.split(".position_embedding")[0])
        resize = getattr(owner, "interpolate_pos_encoding", None)
        if resize is None:
            raise CheckpointError(
                f"A {type(tower).__name__} for {tower.config.image_size} px cannot be brought to {image_size} px: its "
                f"{name} has no rule for that; take a checkpoint of that size."
            )
        rows, width = wanted.shape[-2:]
        with torch.no_grad():
            table = resize(torch.zeros(1, rows, width, dtype=tower.dtype), image_size, image_size)
        state[name] = table.reshape(wanted.shape)
    fresh.load_state_dict(state)
    return fresh.eval()
