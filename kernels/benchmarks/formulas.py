"""The operations in plain torch, as the paper's authors and transformers write them: what ours are measured against.

Shapes: B images, N patches, C tower width, M tokens, H LLM width, k window side; states are views [B, N, C].
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def gather(x: Tensor, window: int) -> Tensor:
    """[B, N, C] -> [B, M, C * k * k], channel-major: the paper's regrouping, which copies."""
    batch, patches, channels = x.shape
    side = math.isqrt(patches) // window
    x = x.reshape(batch, side, window, side, window, channels).permute(0, 1, 3, 5, 2, 4)
    return x.reshape(batch, side * side, channels * window * window)


def pool_tokens(states: Tensor, window: int) -> Tensor:
    """[B, N, C] -> [B, M, C]."""
    side = math.isqrt(states.shape[1]) // window
    return states.unflatten(1, (side, window, side, window)).mean((2, 4)).flatten(1, 2)


def fuse_blocks(states: Sequence[Tensor], weight: Tensor, bias: Tensor) -> Tensor:
    """K states [B, N, C] -> [B, N, O]."""
    return F.gelu(F.linear(torch.cat(list(states), dim=-1), weight, bias))


def fuse_windows(x: Tensor, weight: Tensor, bias: Tensor, window: int) -> Tensor:
    """[B, N, C] -> [B, M, O]."""
    return F.gelu(F.linear(gather(x, window), weight, bias))


def conv_fuse_windows(x: Tensor, weight: Tensor, bias: Tensor, window: int) -> Tensor:
    """The same by a convolution of stride k on the patches as a channels-last picture; weight [O, C, k, k]."""
    picture = x.unflatten(1, (math.isqrt(x.shape[1]), -1)).permute(0, 3, 1, 2)
    return F.gelu(F.conv2d(picture, weight, bias, stride=window).flatten(2).transpose(1, 2))


def place_tokens(embeddings: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
    """As transformers' LLaVA: the count is checked on the host; a compiled graph goes without the check."""
    if not torch.compiler.is_compiling() and int(mask.sum()) != tokens.shape[0]:
        raise ValueError(f"found {int(mask.sum())} places for {tokens.shape[0]} tokens")
    return embeddings.masked_scatter(mask[..., None], tokens)


def as_convolution(weight: Tensor, window: int) -> Tensor:
    """A checkpoint's columns c*k*k + dy*k + dx as the weight of a convolution: [O, C, k, k], channels-last."""
    return weight.unflatten(1, (-1, window, window)).contiguous(memory_format=torch.channels_last)


def projector(blocks: Callable[..., Tensor], windows: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """MBTF and STF on fused first layers; `parameters` are weight and bias of the four layers, and the window."""

    def project(states: Sequence[Tensor], *parameters: Any) -> Tensor:
        first, first_bias, second, second_bias, third, third_bias, fourth, fourth_bias, window = parameters
        x = F.linear(blocks(states, first, first_bias), second, second_bias)
        return F.linear(windows(x, third, third_bias, window), fourth, fourth_bias)

    return project
