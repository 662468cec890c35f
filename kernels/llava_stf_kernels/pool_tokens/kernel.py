"""`pool_tokens` on Triton: every patch is read once and every token written once.

Names: T tokens (B * M, the rows), C channels; `o_` offsets, `p_` pointers, `b_` tiles [BT tokens, BC channels].
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..dispatch import is_interpreting
from ..tuning import TunedKernel
from ..windows import grid_side


def _config(tokens: int, channels: int, warps: int) -> triton.Config:
    return triton.Config({"BLOCK_T": tokens, "BLOCK_C": channels}, num_warps=warps)


# A thread moves 16 bytes of each patch of a window, or twice that; how many tokens a program takes decides how many
# such loads are in flight.
CONFIGS = [_config(1, 1024, 4), _config(2, 512, 4), _config(2, 1024, 4), _config(4, 1024, 8), _config(8, 256, 4)]
INTERPRETED_CONFIGS = [_config(4, 128, 4)]


@triton.jit
def _window_rows(o_t, side, window, stride_b, stride_n):
    """Where the first patch of each token's window begins, in elements."""
    tokens = side * side
    first = (o_t % tokens // side) * (window * window * side) + (o_t % side) * window
    return (o_t // tokens).to(tl.int64) * stride_b + first.to(tl.int64) * stride_n


@triton.jit
def pool_kernel(
    x,
    out,
    rows,
    rows_bucket,
    side,
    window: tl.constexpr,
    channels,
    stride_b,
    stride_n,
    BLOCK_T: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Output [T, C] = mean over each window of x [B, N, C]; `side` windows a side."""
    o_t = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    o_c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    inside = (o_t < rows)[:, None] & (o_c < channels)[None, :]
    p_window = x + _window_rows(o_t, side, window, stride_b, stride_n)[:, None] + o_c[None, :]
    total = tl.zeros((BLOCK_T, BLOCK_C), dtype=tl.float32)
    for dy in tl.static_range(window):
        for dx in tl.static_range(window):
            place = (dy * window * side + dx) * stride_n
            total += tl.load(p_window + place, mask=inside, other=0.0).to(tl.float32)
    o_out = o_t.to(tl.int64)[:, None] * channels + o_c[None, :]
    tl.store(out + o_out, total / (window * window), mask=inside)


@triton.jit
def spread_kernel(
    grad,
    out,
    rows,
    rows_bucket,
    side,
    window: tl.constexpr,
    channels,
    stride_b,
    stride_n,
    BLOCK_T: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """The gradient: each token's grad [T, C], shared out equally, to the patches of out [B, N, C]."""
    o_t = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    o_c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    inside = (o_t < rows)[:, None] & (o_c < channels)[None, :]
    o_grad = o_t.to(tl.int64)[:, None] * channels + o_c[None, :]
    share = tl.load(grad + o_grad, mask=inside, other=0.0).to(tl.float32) / (window * window)
    p_window = out + _window_rows(o_t, side, window, stride_b, stride_n)[:, None] + o_c[None, :]
    for dy in tl.static_range(window):
        for dx in tl.static_range(window):
            tl.store(p_window + (dy * window * side + dx) * stride_n, share, mask=inside)


def _tuned(kernel: triton.JITFunction) -> TunedKernel:
    return TunedKernel(
        kernel, INTERPRETED_CONFIGS if is_interpreting() else CONFIGS, ["rows_bucket", "channels", "window"]
    )


POOL, SPREAD = _tuned(pool_kernel), _tuned(spread_kernel)


def forward(x: Tensor, window: int) -> Tensor:
    """Means of windows: x [B, N, C] -> [B, N / k**2, C]."""
    if x.stride(-1) != 1:
        x = x.contiguous()
    batch, patches, channels = x.shape
    out = torch.empty(batch, patches // window**2, channels, dtype=x.dtype, device=x.device)
    _launch(POOL, x, window, x=x, out=out)
    return out


def backward(grad: Tensor, window: int) -> Tensor:
    """Their gradient: grad [B, N / k**2, C] -> [B, N, C]."""
    batch, tokens, channels = grad.shape
    out = torch.empty(batch, tokens * window**2, channels, dtype=grad.dtype, device=grad.device)
    _launch(SPREAD, out, window, grad=grad.contiguous(), out=out)
    return out


def _launch(kernel: TunedKernel, patches: Tensor, window: int, **tensors: Tensor) -> None:
    batch, count, channels = patches.shape
    side = grid_side(count, window) // window
    rows = batch * side * side
    kernel.launch(
        lambda blocks: (triton.cdiv(rows, blocks["BLOCK_T"]), triton.cdiv(channels, blocks["BLOCK_C"])),
        patches,
        **tensors,
        rows=rows,
        rows_bucket=triton.next_power_of_2(rows),
        side=side,
        window=window,
        channels=channels,
        stride_b=patches.stride(0),
        stride_n=patches.stride(1),
    )
