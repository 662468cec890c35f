"""The precision that a model computes in: that of its files, or float32 on a CPU that is slow at it.

A CPU without instructions for products of 16-bit floats makes float32 of both factors, at every product anew: a prompt
then takes four to six times as long as in float32. `load_model` therefore takes float32 there, if memory has room.
"""

from __future__ import annotations

import logging
from pathlib import Path

import torch

from llava_stf.conversion.sources import Source

logger = logging.getLogger(__name__)

# Names that torch has for the instructions of x86 and ARM.
_INSTRUCTIONS = {
    torch.bfloat16: ("amx_bf16", "avx512_bf16", "bf16", "sve_bf16"),
    torch.float16: ("amx_fp16", "avx512_fp16", "fp16"),
}
# What a model takes of memory, in its weights: activations, a KV cache and the tensor that is being read come beside.
_ROOM = 1.25


def cpu_multiplies(dtype: torch.dtype) -> bool:
    """Whether the CPU has instructions for products of this precision."""
    capabilities = torch.cpu.get_capabilities()
    return dtype not in _INSTRUCTIONS or any(capabilities.get(name) for name in _INSTRUCTIONS[dtype])


def dtype_on_cpu(stored: torch.dtype, elements: int) -> torch.dtype:
    """The precision that a CPU computes in, which the log says in one line where it is not that of the files.

    Args:
        stored: of the weights in their files.
        elements: weights of the model.
    """
    if cpu_multiplies(stored):
        return stored
    name, needed, free = str(stored).removeprefix("torch."), 4 * elements, available_memory()
    if free is not None and _ROOM * needed > free:
        logger.warning(
            "This CPU has no instructions for %s and computes it several times slower than float32, for which the "
            "weights would take %.1f GiB of the %.1f GiB that are free: they stay in %s.",
            *(name, needed / 2**30, free / 2**30, name),
        )
        return stored
    logger.info("This CPU has no instructions for %s: computing in float32 (dtype='stored' keeps %s).", name, name)
    return torch.float32


def stored_dtype(source: Source) -> torch.dtype:
    """The precision that a checkpoint says it has; of one that does not say it, that of its first weight."""
    named = source.config.get("dtype") or source.config.get("torch_dtype")
    if isinstance(named, str) and isinstance(getattr(torch, named, None), torch.dtype):
        return getattr(torch, named)
    floats = (stored.dtype for stored in source.index().values() if stored.dtype.is_floating_point)
    return next(floats, torch.float32)


def available_memory() -> int | None:
    """Bytes that this process can have more without swapping; `None` where the system does not tell (only Linux does).

    A container's own limit counts, too.
    """
    information = Path("/proc/meminfo")
    if not information.is_file():
        return None
    lines = information.read_text().splitlines()
    free = next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
    return min(free, _left_in_container(free))


def _left_in_container(free: int) -> int:
    """What a control group, of version 2 or 1, leaves; `free` where there is no bound."""
    root = Path("/sys/fs/cgroup")
    for limit, used, statistics, cached in (
        ("memory.max", "memory.current", "memory.stat", "inactive_file"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat", "total_inactive_file"),
    ):
        try:
            bound = int((root / limit).read_text())  # "max" where there is none
            stat = dict(line.split() for line in (root / statistics).read_text().splitlines())
            return bound - int((root / used).read_text()) + int(stat[cached])
        except (OSError, ValueError, KeyError):
            continue
    return free
