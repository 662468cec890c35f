"""`fuse_windows`: the regrouping in plain torch, then the operation of `fuse_blocks` on its result."""

from __future__ import annotations

from torch import Tensor

from ..fuse_blocks import fuse_blocks
from ..windows import gather_windows


def fuse_windows(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, window: int = 2, *, backend: str | None = None
) -> Tensor:
    """STF's first layer: GELU of a linear layer on each k x k window of patches (arXiv 2506.07138, STF).

    Args:
        x: [B, N, C] patches in raster order on a square grid.
        weight: [O, C * k**2] in the checkpoint's layout, channel-major: column `c*k*k + dy*k + dx`.
        bias: [O] or `None`.
        window: side k of a window.
        backend: `"triton"`, `"torch"`, or `None` for `LLAVA_STF_KERNELS`, else the best that the device has.

    Returns:
        [B, N / k**2, O] in the dtype of the inputs (float32, bfloat16 or float16; under autocast, autocast's), windows
        in raster order. The patches are regrouped, which is small beside the weight; the weight is read as it lies. The
        Triton path keeps only the windows for the backward pass, which computes the layer again.

    Raises:
        ValueError: shapes do not fit, or Triton was asked for where it cannot run (`BackendError`).
    """
    if x.dim() != 3:
        raise ValueError(f"Expected patches [B, N, C], found {tuple(x.shape)}.")
    windows = gather_windows(x, window)
    if weight.shape[1:] != windows.shape[2:]:
        raise ValueError(
            f"Expected a weight [O, {windows.shape[2]}] for windows of {window}x{window} and {x.shape[2]} channels, "
            f"found {tuple(weight.shape)}."
        )
    return fuse_blocks([windows], weight, bias, backend=backend)
