"""Launching a kernel whose tiles were measured on the device at hand, without searching for them again."""

from collections.abc import Callable
from typing import Any

import torch
import triton
from torch import Tensor


class TunedKernel:
    """A kernel whose configuration is measured on the user's device at the first call of a size, and kept on disk.

    Later calls of that size launch without the autotuner: at batch 1 the time that a launch takes on the host is of the
    order of the kernel's own.

    Args:
        kernel: the Triton function.
        configs: the configurations to try; with one there is nothing to measure.
        key: names of the arguments that make up a size, beside dtype and device.
        prune: narrows the configurations down by a call's arguments, as Triton's `early_config_prune`.
    """

    def __init__(
        self,
        kernel: triton.JITFunction,
        configs: list[triton.Config],
        key: list[str],
        prune: Callable[..., list[triton.Config]] | None = None,
    ) -> None:
        self.kernel = kernel
        pruning = None if prune is None else {"early_config_prune": prune}
        self.tuner = triton.autotune(configs, key, prune_configs_by=pruning, cache_results=True)(kernel)
        self._key = key
        self._best: dict[tuple[Any, ...], triton.Config] = {}

    def launch(self, grid: Callable[[dict[str, int]], tuple[int, ...]], like: Tensor, **arguments: Any) -> None:
        """Run in the programs that `grid` gives for the block sizes, on the device and for the dtype of `like`."""
        size = (like.dtype, like.device, *[arguments[name] for name in self._key])
        best = self._best.get(size)
        with torch.cuda.device_of(like):  # Triton launches on the current device
            if best is None:
                self.tuner[grid](**arguments)
                self._best[size] = self.tuner.best_config
            else:
                self.kernel[grid(best.kwargs)](**arguments, **best.all_kwargs())
