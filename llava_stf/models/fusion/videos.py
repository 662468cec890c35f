"""Videos: how many tokens their frames take in each class that takes videos.

Every frame is one square, as a tile is, and its windows are fused in the same way. What a class does to frames besides
stays: LLaVA-OneVision and LLaVA-NeXT-Video pool them, by two along each side, and Video-LLaVA keeps the class token.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import isqrt
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from llava_stf.errors import FusionError
from llava_stf.models.fusion.tiles import cells_of, takes_videos

VIDEO_CLASSES = "LLaVA-OneVision, LLaVA-NeXT-Video and Video-LLaVA"
POOLED = 2  # LLaVA-OneVision's pooling, along each side of a frame


def onevision_tokens(frames: int, grid: int, window: int, pools: bool) -> int:
    """Tokens of a video in LLaVA-OneVision: those of its frames, pooled behind the projector, and one newline.

    Args:
        frames: of the video.
        grid: of a frame, in patches.
        window: side of the windows that are fused, in patches.
        pools: whether frames are pooled besides.
    """
    cells = cells_of(grid, window)
    return frames * (cells_of(cells, POOLED) if pools else cells) ** 2 + 1


def pooled_frames(tokens: Tensor) -> Tensor:
    """LLaVA-OneVision's pooling of frames: [frames, M, H], M a square, to half the rows and columns, bilinear."""
    side = isqrt(tokens.shape[1])
    grid = tokens.unflatten(1, (side, side)).movedim(-1, 1)
    return functional.interpolate(grid, [cells_of(side, POOLED)] * 2, mode="bilinear").flatten(2).transpose(1, 2)


def onevision_videos(tokens: Tensor, frames: Sequence[int], newline: Tensor, pools: bool) -> list[Tensor]:
    """What LLaVA-OneVision makes of the fused tokens of frames: for each video those of its frames, and a newline.

    Args:
        tokens: [all frames, M, H].
        frames: how many each video has.
        newline: [H].
        pools: whether frames are pooled besides.

    Returns:
        For each video [tokens, H], as many as `onevision_tokens` says.
    """
    if pools:
        tokens = pooled_frames(tokens)
    end = newline.to(tokens)[None]
    return [torch.cat([video.flatten(0, 1), end]) for video in tokens.split(list(frames))]


def next_video_tokens(frames: int, grid: int, window: int, stride: int | None) -> int:
    """Tokens of a video in LLaVA-NeXT-Video, whose patches are pooled in windows of `stride` before they are fused.

    Args:
        frames: as in `onevision_tokens`.
        grid: as there.
        window: as there.
        stride: of the pooling; `None` for none.
    """
    return frames * ((grid // (stride or 1)) // window) ** 2


def video_llava_tokens(frames: int, grid: int, window: int) -> int:
    """Tokens of a video in Video-LLaVA: those of its windows and the class token of each frame."""
    return frames * (cells_of(grid, window) ** 2 + 1)


def tokens_of_frames(config: Any, frames: Sequence[int], grid: int, window: int) -> list[int]:
    """Tokens of each video, given by its number of frames, in a model of this config, plain or fused."""
    pools = getattr(config, "fusion_pool_frames", True)
    if hasattr(config, "spatial_pool_stride"):
        stride = config.spatial_pool_stride if pools else None
        return [next_video_tokens(count, grid, window, stride) for count in frames]
    if hasattr(config, "vision_aspect_ratio"):
        return [onevision_tokens(count, grid, window, pools) for count in frames]
    return [video_llava_tokens(count, grid, window) for count in frames]


def frame_fields(config: Any) -> dict[str, Any]:
    """What a config says of the pooling of frames and its processor has to know, too; nothing where there is none."""
    names = ("fusion_pool_frames", "spatial_pool_stride")
    return {name: getattr(config, name) for name in names if hasattr(config, name)}


def require_videos(config: Any) -> None:
    """Check that a model of this config takes videos.

    Raises:
        FusionError: it does not.
    """
    if not takes_videos(config):
        raise FusionError(f"A {config.model_type} takes images alone; videos are for {VIDEO_CLASSES}.")
