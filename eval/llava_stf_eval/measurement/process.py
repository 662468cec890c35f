"""What a process has taken so far, read from Linux' /proc."""

from __future__ import annotations

import os
from pathlib import Path


def computed(process: int) -> float:
    """Seconds that a process has computed, in all its threads."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def memory(process: int, *fields: str) -> list[int]:
    """Bytes of memory by the fields of /proc/PID/status: `VmRSS` is what a process holds, `RssAnon` without files."""
    lines = dict(line.split(":", 1) for line in Path(f"/proc/{process}/status").read_text().splitlines())
    return [1024 * int(lines[field].split()[0]) for field in fields]
