"""How much memory a machine has left."""

from __future__ import annotations

from pathlib import Path


def available_memory() -> int | None:
    """Bytes that a new process can have without swapping; `None` where the system does not tell (other than Linux)."""
    information = Path("/proc/meminfo")
    if not information.is_file():
        return None
    lines = information.read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
