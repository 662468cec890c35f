"""The precision that a model computes in: that of its files, or float32 on a CPU that is slow at it.

A CPU without instructions for products of 16-bit floats makes float32 of both factors, at every product anew: a prompt
then takes four to six times as long as in float32. Having the instructions does not say that they are quick: an Intel
Xeon with `avx512_bf16` and no AMX multiplied at 0.55 of float32's rate, an AMD EPYC with the same flag at over four
times (torch 2.13). So one product is timed, and `load_model` takes float32 where it wins, if there is room for it.
"""

from __future__ import annotations

import functools
import logging
import time

import torch

from llava_stf.conversion.sources import Source
from llava_stf.io.memory import available_memory

logger = logging.getLogger(__name__)

# What a model takes of memory, by its weights: activations, a KV cache and the tensor being read come beside them.
_ROOM = 1.25
# 16 bits take half the memory, and half the reading for each further token: float32 has to win by more than this.
_LEAD = 1.25


def seconds_of_product(dtype: torch.dtype) -> float:
    """The shortest of five times that the CPU takes for a small linear layer, [128, 1024] by [1024, 1024].

    They are seconds that one thread computes: those that pass count other programs too, so that on a busy machine
    one model would have now this precision and now that.
    """
    hidden, weight = torch.ones(128, 1024, dtype=dtype), torch.ones(1024, 1024, dtype=dtype)
    seconds = []
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.inference_mode():
            for _ in range(6):
                start = time.thread_time()
                torch.nn.functional.linear(hidden, weight)
                seconds.append(time.thread_time() - start)
    finally:
        torch.set_num_threads(threads)
    return min(seconds[1:])  # the first one makes torch ready


@functools.cache
def slow_on_cpu(dtype: torch.dtype) -> bool:
    """Whether this CPU multiplies matrices of a 16-bit precision more slowly than float32, as one product shows."""
    if dtype not in (torch.bfloat16, torch.float16):
        return False
    return seconds_of_product(dtype) > _LEAD * seconds_of_product(torch.float32)


def dtype_on_cpu(stored: torch.dtype, elements: int) -> torch.dtype:
    """The precision that a CPU computes in, which the log says in one line where it is not that of the files.

    Args:
        stored: of the weights in their files.
        elements: weights of the model.
    """
    if not slow_on_cpu(stored):
        return stored
    name, needed, free = str(stored).removeprefix("torch."), 4 * elements, available_memory()
    if free is not None and _ROOM * needed > free:
        logger.warning(
            "This CPU computes %s more slowly than float32, for which the weights would take %.1f GiB of the %.1f GiB "
            "that are free: they stay in %s.",
            *(name, needed / 2**30, free / 2**30, name),
        )
        return stored
    logger.info(
        "This CPU computes %s more slowly than float32: computing in float32 (dtype='stored' keeps %s).", name, name
    )
    return torch.float32


def stored_dtype(source: Source) -> torch.dtype:
    """The precision that a checkpoint says it has; of one that does not say it, that of its first weight."""
    named = source.config.get("dtype") or source.config.get("torch_dtype")
    if isinstance(named, str) and isinstance(getattr(torch, named, None), torch.dtype):
        return getattr(torch, named)
    floats = (stored.dtype for stored in source.index().values() if stored.dtype.is_floating_point)
    return next(floats, torch.float32)
