"""Where a result was measured: the machine, and the version of everything that has a say in an answer."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

_PACKAGES = (
    *("llava-stf", "torch", "transformers", "tokenizers", "accelerate", "lmms-eval", "datasets", "pillow", "numpy"),
    *("bitsandbytes", "peft", "triton"),
)


def machine() -> dict[str, Any]:
    """CPU, usable cores, memory in GiB, and the GPUs or `None`."""
    import torch

    names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return {
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "gpu": ", ".join(names) or None,
    }


def versions() -> dict[str, str]:
    """Versions of Python and of every package that is installed and takes part."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
