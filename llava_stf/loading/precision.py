"""The precision that a model computes in: that of its files, or float32 on a CPU that is slow at it.

A CPU without instructions for products of 16-bit floats makes float32 of both factors, at every product anew: a prompt
then takes four to six times as long as in float32. `load_model` therefore takes float32 there, if there is room for it.
"""

from __future__ import annotations

import logging

import torch

from llava_stf.conversion.sources import Source
from llava_stf.io.memory import available_memory

logger = logging.getLogger(__name__)

# Names that torch has for the instructions of x86 and ARM.
_INSTRUCTIONS = {
    torch.bfloat16: ("amx_bf16", "avx512_bf16", "bf16", "sve_bf16"),
    torch.float16: ("amx_fp16", "avx512_fp16", "fp16"),
}
# What a model takes of memory, by its weights: activations, a KV cache and the tensor being read come beside them.
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
