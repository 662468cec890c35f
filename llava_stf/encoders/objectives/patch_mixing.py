"""Images mixed patch by patch, and what mixed images share with whole and with mixed ones.

Letters: B images of this process, N of all processes, M images per mix, T patches of a view.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from llava_stf.encoders.objectives.contrast import shared_targets
from llava_stf.errors import LlavaStfError


def mix(images: Tensor, patch_size: int, images_per_mix: int, permutation: Tensor) -> Tensor:
    """Image i with the patches of group j taken from image (i + j) mod B, at the same places.

    See docs/encoders/methods.md, PatchMix, Mixing.

    Args:
        images: [B, 3, H, W].
        patch_size: side of a patch in pixels.
        images_per_mix: M.
        permutation: int64 [T], raster numbers of the patches; its first T // M entries are group 0, which stays, the
            next T // M group 1, and so on; what is left over stays, too.

    Raises:
        LlavaStfError: the patch does not divide the image.
    """
    height, width = images.shape[-2:]
    if height % patch_size or width % patch_size:
        raise LlavaStfError(f"patches of {patch_size} pixels do not divide images of {height} x {width}")
    rows, columns = height // patch_size, width // patch_size
    group_size = rows * columns // images_per_mix
    group = torch.zeros(rows * columns, dtype=torch.long, device=images.device)
    group[permutation[: group_size * images_per_mix]] = torch.arange(
        images_per_mix, device=images.device
    ).repeat_interleave(group_size)
    per_pixel = group.view(rows, columns).repeat_interleave(patch_size, 0).repeat_interleave(patch_size, 1)
    mixed = images
    for offset in range(1, images_per_mix):
        mixed = torch.where(per_pixel == offset, images.roll(-offset, dims=0), mixed)
    return mixed


def mix_targets(batch: int, images_per_mix: int, smoothing: float = 0.0, **place: Any) -> Tensor:
    """Mixed against whole images: 1 / M at columns i .. i + M - 1; float [B, N]. `place` as in `shared_targets`."""
    shares = dict.fromkeys(range(images_per_mix), 1 / images_per_mix)
    return shared_targets(shares, batch, smoothing, **place)


def mix_to_mix_targets(batch: int, images_per_mix: int, smoothing: float = 0.0, **place: Any) -> Tensor:
    """Mixed against mixed images: (M - |d|) / M^2 at columns i + d, |d| < M; float [B, N]."""
    shares = {
        offset: (images_per_mix - abs(offset)) / images_per_mix**2
        for offset in range(1 - images_per_mix, images_per_mix)
    }
    return shared_targets(shares, batch, smoothing, **place)
