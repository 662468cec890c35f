"""Encoders inside checkpoints: found by their names, and renamed between the official layouts and `ViTModel`'s.

Two layouts are known. timm's, which PatchMix, MGC, MoCo v3, DINO, iBOT, MAE and Mugs write, and APS's:

    timm                         APS                           ViTModel
    cls_token                    cls_token                     embeddings.cls_token
    pos_embed                    pos_embedding                 embeddings.position_embeddings
    patch_embed.proj.*           patchify.*                    embeddings.patch_embeddings.projection.*
    blocks.i.norm1.*             transformer.i.norm1.*         layers.i.layernorm_before.*
    blocks.i.attn.qkv.*          transformer.i.attn.qkv.*      layers.i.attention.{q,k,v}_proj.*, in thirds of the rows
    blocks.i.attn.proj.*         transformer.i.attn.proj.*     layers.i.attention.o_proj.*
    blocks.i.norm2.*             transformer.i.norm2.*         layers.i.layernorm_after.*
    blocks.i.mlp.fc{1,2}.*       transformer.i.mlp.fc{1,2}.*   layers.i.mlp.fc{1,2}.*
    norm.*                       layer_norm.*                  layernorm.*

A position table without a row for the class token, as APS's [N, 1, D], gets a zero row in front.
"""

from __future__ import annotations

import argparse
import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from llava_stf.errors import CheckpointError, ModelNotFoundError
from llava_stf.io.weights import Reader, read_index, read_pickle

Layout = Literal["timm", "aps"]
Select = Literal["momentum", "query"]

# Layout -> (patch projection, position table, blocks, final LayerNorm).
_NAMES: dict[Layout, tuple[str, str, str, str]] = {
    "timm": ("patch_embed.proj", "pos_embed", "blocks", "norm"),
    "aps": ("patchify", "pos_embedding", "transformer", "layer_norm"),
}
_IN_BLOCK = {
    "norm1": "layernorm_before",
    "attn.proj": "attention.o_proj",
    "norm2": "layernorm_after",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}
_QKV = [f"attention.{letter}_proj" for letter in "qkv"]
_POSITIONS = "embeddings.position_embeddings"
# What stands inside an encoder beside the ViT: classifiers and projectors, and what masked training needs.
_HEADS = re.compile(r"(head|head_dist|fc|fc_norm|pre_logits)\.|mask_token$|masked_embed$|decoder_")
_ROLES: dict[str, Select] = {
    "momentum_encoder": "momentum", "teacher": "momentum", "base_encoder": "query", "student": "query",
}  # fmt: skip
_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".tar")


@dataclass(frozen=True)
class Encoder:
    """One encoder of a checkpoint.

    Args:
        prefix: what its names begin with in the file.
        layout: how its tensors are named.
        tensors: by official name, without the prefix.
        role: "momentum" or "query" where the file says which of two it is.
    """

    prefix: str
    layout: Layout
    tensors: dict[str, Tensor]
    role: Select | None


def read_tensors(file: Path) -> dict[str, Tensor]:
    """Every tensor of a .safetensors file or of a pickle, nested dicts joined by dots. No code of a pickle is run.

    Raises:
        ModelNotFoundError: there is no such file.
        CheckpointError: it is damaged or of another kind.
    """
    if file.is_dir():
        raise CheckpointError(
            f"Expected a checkpoint file of a pre-training method, found the folder {file}; an encoder of transformers "
            "is taken as it is."
        )
    if not file.is_file():
        raise ModelNotFoundError(f"No checkpoint file at {file}; give a {' or '.join(_SUFFIXES[:2])} file.")
    if file.suffix not in _SUFFIXES:
        raise CheckpointError(f"{file}: expected weights in one of {', '.join(_SUFFIXES)}.")
    if file.suffix == ".safetensors":
        reader = Reader()
        return {name: reader.read(stored) for name, stored in read_index([file]).items()}
    # The options of a run stand in many training files; a Namespace only holds them.
    return _flatten(read_pickle(file, known=[argparse.Namespace]))


def _flatten(content: Any, prefix: str = "") -> dict[str, Tensor]:
    if isinstance(content, Tensor):
        return {prefix.removesuffix("."): content}
    if not isinstance(content, dict):
        return {}
    flat: dict[str, Tensor] = {}
    for name, value in content.items():
        flat |= _flatten(value, f"{prefix}{name}.")
    return flat


def find_encoders(tensors: Mapping[str, Tensor]) -> list[Encoder]:
    """Every ViT among the tensors of a checkpoint, told by its patch projection.

    Raises:
        CheckpointError: there is none; it says what was found and what is known.
    """
    found = []
    for layout, (projection, *_) in _NAMES.items():
        ending = f"{projection}.weight"
        for name in tensors:
            if name == ending or name.endswith(f".{ending}"):
                prefix = name.removesuffix(ending)
                inside = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
                role = next((role for word, role in _ROLES.items() if word in prefix.split(".")), None)
                found.append(Encoder(prefix, layout, inside, role))
    if not found:
        known = "; ".join(
            f"{layout}'s ({projection}.weight, {positions}, {blocks}.0.attn.qkv.weight, ...)"
            for layout, (projection, positions, blocks, _) in _NAMES.items()
        )
        names = ", ".join(list(tensors)[:5]) or "no tensors"
        raise CheckpointError(f"No Vision Transformer of a known layout: found {names}; known are {known}.")
    return found


def choose_encoder(encoders: list[Encoder], select: Select | None) -> Encoder:
    """The encoder to use: the only one, or of two that `select` names, by default the momentum encoder.

    Raises:
        CheckpointError: the one asked for is not there, or names do not tell which is which.
    """
    roles = {encoder.role: encoder for encoder in encoders}
    if len(encoders) == 1 and (select is None or encoders[0].role in (None, select)):
        return encoders[0]
    chosen = roles.get(select or "momentum")
    if chosen is None or len(roles) < len(encoders):
        prefixes = ", ".join(f"'{encoder.prefix}'" + f" ({encoder.role})" * bool(encoder.role) for encoder in encoders)
        raise CheckpointError(
            f"Expected one {select or 'momentum'} encoder, found encoders under {prefixes}; "
            "choose with select (--select momentum or query)."
        )
    return chosen


def dropped(tensors: Mapping[str, Tensor], encoder: Encoder) -> Counter[str]:
    """How many tensors beside the ViT's own stand in the checkpoint, by the first part of their names that tells."""
    counts: Counter[str] = Counter()
    for name in tensors:
        inside = name.removeprefix(encoder.prefix) if name.startswith(encoder.prefix) else None
        if inside is None:
            words = [word for word in name.split(".") if word not in ("module", "state_dict", "model")]
            counts[words[0] if words else name] += 1
        elif _HEADS.match(inside):
            counts[inside.split(".")[0]] += 1
    return counts


def to_vit(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """An encoder's tensors under the names of a `ViTModel` without pooling layer; heads are left out.

    Args:
        state_dict: by official name in timm's or APS's layout, without a prefix before `cls_token`.

    Raises:
        CheckpointError: a tensor has no place in a `ViTModel`; it names the first.
    """
    layout: Layout = "aps" if f"{_NAMES['aps'][0]}.weight" in state_dict else "timm"
    projection, positions, blocks, norm = _NAMES[layout]
    whole = {projection: "embeddings.patch_embeddings.projection", norm: "layernorm"}
    renamed: dict[str, Tensor] = {}
    unknown = []
    for name, tensor in state_dict.items():
        stem, _, kind = name.rpartition(".")
        block = re.fullmatch(rf"{blocks}\.(\d+)\.(.+)", stem)
        if name == "cls_token":
            renamed["embeddings.cls_token"] = tensor
        elif name == positions:
            renamed[_POSITIONS] = _positions(tensor, layout)
        elif stem in whole and kind in ("weight", "bias"):
            renamed[f"{whole[stem]}.{kind}"] = tensor
        elif block and block[2] == "attn.qkv" and kind in ("weight", "bias") and len(tensor) % 3 == 0:
            for part, third in zip(_QKV, tensor.chunk(3), strict=True):
                renamed[f"layers.{block[1]}.{part}.{kind}"] = third.contiguous()
        elif block and block[2] in _IN_BLOCK and kind in ("weight", "bias"):
            renamed[f"layers.{block[1]}.{_IN_BLOCK[block[2]]}.{kind}"] = tensor
        elif not _HEADS.match(name):
            unknown.append(name)
    if unknown:
        raise CheckpointError(
            f"{len(unknown)} tensors have no place in a plain ViT, the first are {', '.join(unknown[:3])}: layer "
            "scale, register tokens, normalised queries and the like are other models; take those from transformers as "
            "they are (DINOv2, SigLIP, ...)."
        )
    return renamed


def _positions(table: Tensor, layout: Layout) -> Tensor:
    """[1, 1 + N, D] of a position table in either layout, with a zero row in front where the class token has none."""
    table = table.transpose(0, 1) if layout == "aps" else table
    rows = table.shape[1]
    if layout == "aps" or math.isqrt(rows) ** 2 == rows:
        return torch.cat([torch.zeros_like(table[:, :1]), table], dim=1)
    return table
