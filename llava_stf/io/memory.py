"""How much memory a machine has left."""

from __future__ import annotations

from pathlib import Path


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
