"""Time, memory and rates of a CUDA device, and the description of the machine they belong to.

Times are medians of CUDA events. Calls take turns over as many copies of their inputs as are needed to exceed twice
the L2 cache, so that none is read from it. Inputs are random normal: zeros draw less power and run faster.
"""

from __future__ import annotations

import hashlib
import math
import platform
import statistics
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import import_module
from importlib.util import find_spec
from itertools import cycle
from pathlib import Path
from typing import Any

import torch
from shapes import Rates
from torch import Tensor

ROOT = Path(__file__).resolve().parents[2]
# What a figure depends on. Where one of these changes, earlier rows count as measured on other code.
SOURCES = (
    "llava_stf/models/**/*.py",
    "llava_stf/inference/*.py",
    "kernels/llava_stf_kernels/**/*.py",
    "kernels/benchmarks/[!t]*.py",
)

Call = Callable[..., Any]


@dataclass(frozen=True)
class Machine:
    """Where and with what a result was measured. `sources` is a digest of the measured code."""

    gpu: str
    capability: str
    driver: str
    cuda: str
    torch: str
    triton: str
    transformers: str
    python: str
    commit: str
    sources: str


@dataclass(frozen=True)
class Timing:
    """Median milliseconds of one call, the spread (interquartile range) of its `repeats`, and launches in each."""

    ms: float
    spread_ms: float
    repeats: int
    launches: int


def describe_machine() -> Machine:
    """The first CUDA device, the software and the commit. What cannot be found out is "unknown"."""
    major, minor = torch.cuda.get_device_capability()
    driver = _output_of("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader", "--id=0")
    return Machine(
        gpu=torch.cuda.get_device_name(),
        capability=f"{major}.{minor}",
        driver=driver,
        cuda=str(torch.version.cuda),
        torch=torch.__version__,
        triton=_version_of("triton"),
        transformers=_version_of("transformers"),
        python=platform.python_version(),
        commit=_output_of("git", "-C", str(ROOT), "describe", "--always", "--dirty"),
        sources=digest_sources(),
    )


def digest_sources() -> str:
    """Twelve digits that change with the code that is measured, committed or not."""
    digest = hashlib.sha256()
    for path in sorted({path for pattern in SOURCES for path in ROOT.glob(pattern)}):
        digest.update(str(path.relative_to(ROOT)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:12]


def today() -> str:
    return datetime.now(UTC).date().isoformat()


def _version_of(package: str) -> str:
    return str(import_module(package).__version__) if find_spec(package) else "not installed"


def _output_of(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def measure_rates(dtype: torch.dtype) -> Rates:
    """The device's own ceilings: a copy of 1 GiB, and a product of two random 8192 x 8192 matrices in `dtype`."""
    source = torch.randn(2**28, device="cuda")
    copy = time_calls(torch.empty_like(source).copy_, [(source,)], seconds=0.3)
    moved = 2 * source.numel() * source.itemsize
    del source
    size = 8192
    left, right = (torch.randn(size, size, device="cuda", dtype=dtype) for _ in range(2))
    product = time_calls(torch.mm, [(left, right)], seconds=0.5)
    return Rates(copy_tb_s=moved / copy.ms / 1e9, matmul_tflop_s=2 * size**3 / product.ms / 1e9)


def rotation(changing_bytes: int) -> int:
    """Copies of inputs of that many bytes which together exceed twice the L2 cache; at least two."""
    return max(2, math.ceil(2 * torch.cuda.get_device_properties().L2_cache_size / max(1, changing_bytes)) + 1)


def time_calls(call: Call, sets: Sequence[tuple[Any, ...]], *, seconds: float, latency: bool = False) -> Timing:
    """Median time of `call(*arguments)` on the device, `arguments` taking turns over `sets`.

    Launches are queued many at a time, at least 5 ms of them between two events; with `latency` each call starts on an
    idle device, so that the time to launch its kernels counts, as it does for someone who waits for the answer.
    `seconds` is about how long to measure.
    """
    for arguments in (*sets, *sets[:1], *sets[:1]):
        call(*arguments)
    turns = cycle(sets)
    trial = len(sets)
    once = _span_ms(call, turns, trial) / trial
    launches = 1 if latency else max(1, math.ceil(5 / once))
    repeats = min(200, max(7, int(1e3 * seconds / (launches * once))))
    times = [_span_ms(call, turns, launches) / launches for _ in range(repeats)]
    low, _, high = statistics.quantiles(times, n=4)
    return Timing(statistics.median(times), high - low, repeats, launches)


def _span_ms(call: Call, turns: Any, launches: int) -> float:
    torch.cuda.synchronize()
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(launches):
        call(*next(turns))
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end))


def time_replays(call: Call, sets: Sequence[tuple[Any, ...]], *, seconds: float) -> float:
    """Median milliseconds of a call inside a CUDA graph of one call on each set: without the time to launch."""
    warm = torch.cuda.Stream()
    warm.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(warm):
        for arguments in sets:
            call(*arguments)
    torch.cuda.current_stream().wait_stream(warm)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for arguments in sets:
            call(*arguments)
    return time_calls(graph.replay, [()], seconds=seconds).ms / len(sets)


def peak_bytes(call: Call, arguments: tuple[Any, ...]) -> int:
    """Most memory that a call holds at once beyond what was allocated before it: neither its inputs nor weights."""
    call(*arguments)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    result = call(*arguments)
    torch.cuda.synchronize()
    peak = torch.cuda.max_memory_allocated() - before
    del result
    return peak


def relative_error(found: Tensor, expected: Tensor) -> float:
    """Norm of the difference over the norm of `expected`, in float32; NaN anywhere gives NaN."""
    expected = expected.float()
    return float((found.float() - expected).norm() / expected.norm())
