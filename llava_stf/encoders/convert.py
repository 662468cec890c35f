"""Released checkpoints of the pre-training methods, and timm's ViTs, into ordinary Vision Transformers of transformers.

What a file holds is told by its names; depth, widths, patch and grid by its shapes. Head counts stand in no tensor:
they are the method's for that width, or given.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor
from transformers import CLIPImageProcessorPil, ViTConfig, ViTModel

from llava_stf.encoders.checkpoints import Encoder, Select, choose_encoder, dropped, find_encoders, read_tensors, to_vit
from llava_stf.errors import CheckpointError
from llava_stf.io.publish import publish, refuse_existing
from llava_stf.models.vision.vits import ARCHITECTURES, Architecture, check_patches, known, resize_positions, statistics

logger = logging.getLogger(__name__)

# Head counts of timm's ViTs, 64 channels to a head but in ViT-H. MoCo v3's ViT-S alone has others.
TIMM = Architecture({192: 3, 384: 6, 768: 12, 1024: 16, 1280: 16})
CONVERTIBLE = ("patchmix", "aps", "mgc", "mos", "timm")
_TABLE = "embeddings.position_embeddings"
_PROJECTION = "embeddings.patch_embeddings.projection.weight"


def convert_encoder(
    src: str | Path,
    dst: str | Path,
    *,
    encoder: str,
    heads: int | None = None,
    select: Select | None = None,
    image_size: int | None = None,
) -> Path:
    """Write the encoder of the checkpoint file `src` to the new folder `dst`, for `AutoModel.from_pretrained`.

    What is left out or decided on the way is said in the log, one sentence each.

    Args:
        src: a .pth or .safetensors file: a bare encoder, or a training checkpoint with a query and a momentum encoder
            and their heads.
        dst: folder to write, with a preprocessor of the method's mean, standard deviation and size.
        encoder: "patchmix", "aps", "mgc" or "mos"; "timm" for MoCo v3, DINO, iBOT, MAE, Mugs and others in its layout.
        heads: attention heads, where the method has none for that width or others were trained.
        select: which encoder of a training checkpoint; by default the momentum encoder where there is one.
        image_size: side in pixels; another than the checkpoint's resizes the position table as the methods do.

    Raises:
        ModelNotFoundError: there is no such file.
        CheckpointError: it is damaged, or not of a known layout, or the head count does not fit.
        LlavaStfError: the patch does not divide `image_size`, or `dst` exists.
    """
    known(encoder, CONVERTIBLE, "encoder")
    dst = Path(dst).expanduser()
    refuse_existing(dst)
    model, notes = read_encoder(src, encoder=encoder, heads=heads, select=select, image_size=image_size)
    side = model.config.image_size
    mean, std = statistics(encoder, side)
    processor = CLIPImageProcessorPil(
        size={"shortest_edge": side},
        crop_size={"height": side, "width": side},
        image_mean=list(mean),
        image_std=list(std),
    )
    with publish(dst) as folder:
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
    for note in notes:
        logger.warning("%s", note)
    return dst


def read_encoder(
    src: str | Path,
    *,
    encoder: str,
    heads: int | None = None,
    select: Select | None = None,
    image_size: int | tuple[int, int] | None = None,
) -> tuple[ViTModel, list[str]]:
    """The `ViTModel` (without pooling layer, in evaluation mode) in a checkpoint file, and sentences about the way.

    Arguments and errors as `convert_encoder`; `image_size` may be (height, width).
    """
    known(encoder, CONVERTIBLE, "encoder")
    file = Path(src).expanduser()
    tensors = read_tensors(file)
    try:
        chosen = choose_encoder(find_encoders(tensors), select)
        _check_layout(chosen, encoder)
        state = to_vit(chosen.tensors)
        built = ARCHITECTURES.get(encoder, TIMM)
        config, notes = _config(state, encoder, built, heads)
    except CheckpointError as error:
        raise CheckpointError(f"{file}: {error}") from error
    notes = _left_out(tensors, chosen, file) + notes
    if image_size is not None:
        notes += _resize(state, config, image_size)
    with torch.device("meta"):
        model = ViTModel(config, add_pooling_layer=False)
    _check_shapes(state, model.state_dict(), file)
    model.load_state_dict(state, assign=True)
    return model.eval(), notes


def _check_layout(chosen: Encoder, encoder: str) -> None:
    if (chosen.layout == "aps") != (encoder == "aps"):
        fitting = "--encoder aps" if chosen.layout == "aps" else "--encoder patchmix, mgc, mos or timm"
        raise CheckpointError(
            f"expected the layout of '{encoder}', found {chosen.layout}'s by the name of its patch projection; take "
            f"{fitting}."
        )


def _config(
    state: Mapping[str, Tensor], encoder: str, built: Architecture, heads: int | None
) -> tuple[ViTConfig, list[str]]:
    """Config of a state dict by `ViTModel`'s names; shapes that make no sense raise `CheckpointError`."""
    parts = {"class token": "embeddings.cls_token", "position table": _TABLE, "final LayerNorm": "layernorm.weight"}
    if missing := [name for name, key in parts.items() if key not in state]:
        raise CheckpointError(
            f"expected a class token, a position table and a final LayerNorm, found no {' and no '.join(missing)}; a "
            "ViT that was trained on the mean of its patches is another model: take its pre-training checkpoint."
        )
    table, projection = state[_TABLE], state[_PROJECTION]
    if projection.dim() != 4 or table.dim() != 3 or projection.shape[2] != projection.shape[3]:
        raise CheckpointError(
            f"expected square patches and a position table of three dimensions, found {tuple(projection.shape)} and "
            f"{tuple(table.shape)}."
        )
    width, channels, patch = projection.shape[:3]
    grid = math.isqrt(table.shape[1] - 1)
    if grid**2 != table.shape[1] - 1:
        raise CheckpointError(f"expected positions of a square of patches, found {table.shape[1] - 1}.")
    blocks = {int(name.split(".")[1]) for name in state if name.startswith("layers.")}
    mlp = state.get("layers.0.mlp.fc1.weight")
    if mlp is None or blocks != set(range(len(blocks))):
        raise CheckpointError(f"expected blocks 0 to {max(blocks, default=0)}, found {sorted(blocks) or 'none'}.")
    notes = []
    if heads is None:
        heads = built.heads.get(width)
        if heads is None:
            raise CheckpointError(
                f"the head count of a {encoder} of width {width} is not known and stands in no tensor; give it with "
                f"heads (--heads), a divisor of {width}."
            )
        if encoder == "timm":
            notes.append(
                f"Took {heads} attention heads, timm's for width {width}; weights do not tell. MoCo v3's ViT-S has 12 "
                "(--heads 12)."
            )
    if heads < 1 or width % heads:
        raise CheckpointError(f"{heads} heads do not divide the width {width}; give a divisor of it (--heads).")
    config = ViTConfig(
        hidden_size=width,
        num_hidden_layers=len(blocks),
        num_attention_heads=heads,
        intermediate_size=len(mlp),
        hidden_act="gelu",
        layer_norm_eps=built.layer_norm_eps,
        qkv_bias="layers.0.attention.q_proj.bias" in state,
        image_size=grid * patch,
        patch_size=patch,
        num_channels=channels,
    )
    return config, notes


def _left_out(tensors: Mapping[str, Tensor], chosen: Encoder, file: Path) -> list[str]:
    notes = []
    if chosen.role is not None:
        notes.append(f"Took the {chosen.role} encoder of {file.name} ('{chosen.prefix}').")
    counts = dropped(tensors, chosen)
    if counts:
        parts = ", ".join(f"{name} ({count})" for name, count in counts.items())
        notes.append(f"Left out what is no part of the encoder, by number of tensors: {parts}.")
    return notes


def _resize(state: dict[str, Tensor], config: ViTConfig, image_size: int | tuple[int, int]) -> list[str]:
    """Resize the position table in place for images of `image_size`; the sentence about it."""
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    for side in (height, width):
        check_patches(side, config.patch_size)
    grid = height // config.patch_size, width // config.patch_size
    own = config.image_size // config.patch_size
    config.image_size = image_size
    if grid == (own, own):
        return []
    state[_TABLE] = resize_positions(state[_TABLE], grid)
    return [
        f"Resized the position table from {own}x{own} to {grid[0]}x{grid[1]} patches: bicubic, by the scale factor "
        "(side + 0.1) / old side of the released code."
    ]


def _check_shapes(state: Mapping[str, Tensor], expected: Mapping[str, Tensor], file: Path) -> None:
    missing = [name for name in expected if name not in state]
    unknown = [name for name in state if name not in expected]
    if missing or unknown:
        problem, names = ("lacks", missing) if missing else ("has no place for", unknown)
        raise CheckpointError(f"{file}: the encoder {problem} {len(names)} tensors, the first is {names[0]}.")
    for name, tensor in state.items():
        if tensor.shape != expected[name].shape:
            raise CheckpointError(
                f"{file}: {name} has shape {list(tensor.shape)}, expected {list(expected[name].shape)} from the others."
            )
