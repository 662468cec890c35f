"""Tile sizes of the joined products: which are tried, and how a product is launched over its sources."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import triton
from torch import Tensor

from ..dispatch import is_interpreting
from ..tuning import TunedKernel


def _config(m: int, n: int, k: int, warps: int, stages: int) -> triton.Config:
    return triton.Config({"BLOCK_M": m, "BLOCK_N": n, "BLOCK_K": k}, num_warps=warps, num_stages=stages)


# Shared memory holds `stages` pairs of tiles (227 KiB on sm_90 and sm_100, 163 on sm_80; what does not fit is passed
# over). 16-bit tiles go to the tensor cores; float32 ones through multiply-adds on registers, and must be small.
HALF_CONFIGS = [
    _config(128, 256, 64, 8, 3),
    _config(128, 256, 64, 8, 4),
    _config(128, 128, 64, 8, 3),
    _config(128, 128, 64, 8, 4),
    _config(64, 256, 64, 8, 3),
    _config(64, 128, 64, 4, 4),
    _config(64, 64, 64, 4, 4),
]
HALF_GRADIENT_CONFIGS = [
    _config(128, 256, 64, 8, 3),
    _config(128, 128, 64, 8, 3),
    _config(128, 64, 64, 8, 3),
    _config(64, 64, 64, 4, 4),
]
FLOAT_CONFIGS = [_config(64, 64, 32, 8, 3), _config(32, 64, 16, 4, 3)]
WIDEST_K = 64  # the largest BLOCK_K: what it divides, every tile divides
INTERPRETED_CONFIGS = [_config(32, 32, 32, 4, 1)]


def configs_for(half_configs: list[triton.Config], element_size: int, backward: bool = False) -> list[triton.Config]:
    """Tiles to try for elements of that many bytes; the slope of GELU leaves no registers for the widest ones."""
    configs = half_configs if element_size == 2 else FLOAT_CONFIGS
    return [config for config in configs if not backward or config.kwargs["BLOCK_N"] <= 128]


def tuned(kernel: triton.JITFunction, half_configs: list[triton.Config]) -> TunedKernel:
    """The kernel with the tiles for its element type; a size is rows by powers of two, outputs, channels, sources."""
    key = ["rows_bucket", "outputs", "channels", "SOURCES", *({"BACKWARD"} & set(kernel.arg_names))]
    if is_interpreting():
        return TunedKernel(kernel, INTERPRETED_CONFIGS, key)

    def prune(configs: list[triton.Config], positional: dict, **arguments: Any) -> list[triton.Config]:
        element_size = next(value for value in arguments.values() if isinstance(value, Tensor)).element_size()
        return configs_for(half_configs, element_size, arguments.get("BACKWARD", False))

    return TunedKernel(kernel, half_configs + FLOAT_CONFIGS, key, prune)


def launch(
    kernel: TunedKernel, programs: Callable[[dict[str, int]], int], sources: Sequence[Tensor], **rest: Any
) -> None:
    """Run over `sources` in as many programs as `programs` says for the block sizes; `rest` goes to the kernel.

    The sources are [B, N, C], alike in shape and strides, with contiguous channels.
    """
    batch, patches, channels = sources[0].shape
    stride_b, stride_n, _ = sources[0].stride()
    kernel.launch(
        lambda blocks: (programs(blocks),),
        sources[0],
        tensors=tuple(sources),
        rows=batch * patches,
        rows_bucket=triton.next_power_of_2(batch * patches),  # sizes of one bucket share their tiles
        patches=patches,
        channels=channels,
        stride_b=stride_b,
        stride_n=stride_n,
        **rest,
        SOURCES=len(sources),
        # float32 tiles are multiplied exactly, or in tf32 where torch's own products may be.
        PRECISION="tf32" if torch.backends.cuda.matmul.fp32_precision == "tf32" else "ieee",
    )
