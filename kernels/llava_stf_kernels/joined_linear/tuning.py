"""Tile sizes of the joined products: which are tried, and a launch that remembers which was best."""

from collections.abc import Callable
from typing import Any

import torch
import triton
from torch import Tensor

from ..dispatch import is_interpreting
from .sources import Sources


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


class TunedKernel:
    """A kernel whose tiles are measured on the user's device at the first call of a size, and kept on disk.

    A size is channels, outputs, sources and the rows by powers of two. Later calls of it launch without a search: at
    batch 1 the time that a launch takes on the host is of the order of the kernel's own.
    """

    def __init__(self, kernel: triton.JITFunction, half_configs: list[triton.Config]) -> None:
        self.kernel = kernel
        self.half_configs = half_configs
        configs = INTERPRETED_CONFIGS if is_interpreting() else half_configs + FLOAT_CONFIGS
        key = ["rows_bucket", "outputs", "channels", "SOURCES", *({"BACKWARD"} & set(kernel.arg_names))]
        prune = None if is_interpreting() else {"early_config_prune": self._prune}
        self.tuner = triton.autotune(configs, key, prune_configs_by=prune, cache_results=True)(kernel)
        self._best: dict[tuple[Any, ...], triton.Config] = {}

    def launch(
        self, programs: Callable[[dict[str, int]], int], sources: Sources, backward: bool = False, **rest: Any
    ) -> None:
        """Run over `sources` in as many programs as `programs` says for the block sizes; `rest` goes to the kernel."""
        tensor = sources.tensors[0]
        size = (sources.numbers["rows_bucket"], sources.channels, sources.count, rest["outputs"])
        key = (*size, backward, tensor.dtype, tensor.device)
        arguments = {
            "tensors": sources.tensors,
            **sources.numbers,
            **rest,
            "SOURCES": sources.count,
            "WINDOW": sources.window,
            "PRECISION": "tf32" if torch.backends.cuda.matmul.fp32_precision == "tf32" else "ieee",
        }
        best = self._best.get(key)
        if best is None:
            self.tuner[lambda blocks: (programs(blocks),)](**arguments)
            self._best[key] = self.tuner.best_config
        else:
            self.kernel[(programs(best.kwargs),)](**arguments, **best.all_kwargs())

    def _prune(self, configs: list[triton.Config], positional: dict, **arguments: Any) -> list[triton.Config]:
        element_size = next(value for value in arguments.values() if isinstance(value, Tensor)).element_size()
        return configs_for(self.half_configs, element_size, arguments.get("BACKWARD", False))
