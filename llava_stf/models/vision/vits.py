"""The Vision Transformers of the pre-training methods, as configs of transformers' own `ViTModel`.

The methods share one pre-norm ViT and differ in head counts, in the bias of queries, keys and values, in the epsilon of
LayerNorm, and in the statistics that their images are normalised with. A head count cannot be read from weights.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional
from transformers import ViTConfig

from llava_stf.errors import LlavaStfError, nearest

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CIFAR_MEAN, CIFAR_STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
CIFAR_SIZE = 32
SIZES = {"tiny": 192, "small": 384, "base": 768}
DEPTH = 12


@dataclass(frozen=True)
class Architecture:
    """How one method builds its ViT.

    Args:
        heads: attention heads by width.
        qkv_bias: whether queries, keys and values have a bias.
        layer_norm_eps: of every LayerNorm.
        cifar_statistics: whether images of CIFAR's size are normalised with CIFAR's statistics, not ImageNet's.
    """

    heads: Mapping[int, int]
    qkv_bias: bool = True
    layer_norm_eps: float = 1e-6
    cifar_statistics: bool = False


# MGC has no ViT-T and MOS's counts are not known: three heads, and PatchMix's counts, are this package's choice.
ARCHITECTURES = {
    "patchmix": Architecture({192: 3, 384: 12, 768: 12}),
    "aps": Architecture({192: 3, 384: 6, 768: 12}, qkv_bias=False, layer_norm_eps=1e-5, cifar_statistics=True),
    "mgc": Architecture({192: 3, 384: 8, 768: 12}),
    "mos": Architecture({192: 3, 384: 12, 768: 12}),
    "mocov3": Architecture({192: 3, 384: 12, 768: 12}),
}


def architecture(method: str) -> Architecture:
    """How `method` builds its ViT.

    Raises:
        LlavaStfError: an unknown method; it names the nearest.
    """
    known(method, ARCHITECTURES, "method")
    return ARCHITECTURES[method]


def known(name: str, names: Iterable[str], kind: str) -> None:
    """Check that `name` is one of `names`.

    Raises:
        LlavaStfError: it is not; it names the nearest.
    """
    names = list(names)
    if name not in names:
        raise LlavaStfError(f"Unknown {kind} '{name}': {nearest(name, names)}")


def vit_config(method: str, size: str, *, image_size: int, patch_size: int) -> ViTConfig:
    """The config of a method's ViT: 12 blocks, exact GELU, no dropout.

    Args:
        method: "patchmix", "aps", "mgc", "mos" or "mocov3".
        size: "tiny" (192 wide), "small" (384) or "base" (768).
        image_size: side of the image in pixels.
        patch_size: side of a patch in pixels.

    Raises:
        LlavaStfError: an unknown name, and if the patches do not fill the image.
    """
    built = architecture(method)
    known(size, SIZES, "size")
    check_patches(image_size, patch_size)
    width = SIZES[size]
    return ViTConfig(
        hidden_size=width,
        num_hidden_layers=DEPTH,
        num_attention_heads=built.heads[width],
        intermediate_size=4 * width,
        hidden_act="gelu",
        layer_norm_eps=built.layer_norm_eps,
        qkv_bias=built.qkv_bias,
        image_size=image_size,
        patch_size=patch_size,
    )


def check_patches(image_size: int, patch_size: int) -> None:
    """Check that an image of `image_size` pixels a side is cut into whole patches.

    Raises:
        LlavaStfError: it is not.
    """
    if patch_size < 1 or image_size < patch_size or image_size % patch_size:
        lower = max(image_size // max(patch_size, 1), 1) * patch_size
        raise LlavaStfError(
            f"Patches of {patch_size} px do not divide an image of {image_size} px; take a multiple of the patch, "
            f"{lower} or {lower + patch_size} say."
        )


def statistics(method: str, image_size: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel, of values in [0, 1], that the method normalises its images with.

    `method` may be "timm" too: ImageNet's, as MoCo v3, DINO, iBOT, MAE and Mugs take them.
    """
    if method in ARCHITECTURES and ARCHITECTURES[method].cifar_statistics and image_size == CIFAR_SIZE:
        return CIFAR_MEAN, CIFAR_STD
    return IMAGENET_MEAN, IMAGENET_STD


def resize_positions(table: Tensor, grid: tuple[int, int]) -> Tensor:
    """A position table for another grid of patches, as the methods' released code resizes it.

    Bicubic, without antialiasing, by the scale factor (side + 0.1) / sqrt(N) along each axis, so that samples lie
    slightly elsewhere than when resizing to a target size, as transformers does.

    Args:
        table: [1, 1 + N, D], N a square number; row 0 is the class token's and stays.
        grid: rows and columns of patches wanted.

    Returns:
        [1, 1 + rows * columns, D] in the dtype of `table`; `table` itself where it has that grid.
    """
    side = math.isqrt(table.shape[1] - 1)
    if grid == (side, side):
        return table
    patches = table[:, 1:].float().unflatten(1, (side, side)).permute(0, 3, 1, 2)
    factors = tuple((length + 0.1) / side for length in grid)
    resized = functional.interpolate(patches, scale_factor=factors, mode="bicubic", align_corners=False)
    return torch.cat([table[:, :1], resized.flatten(2).transpose(1, 2).to(table.dtype)], dim=1)
