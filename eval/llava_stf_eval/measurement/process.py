"""What a process has taken so far, read from Linux' /proc."""

from __future__ import annotations

import os
import re
from pathlib import Path


def computed(process: int) -> float:
    """Seconds that a process has computed, in all its threads."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def memory(process: int) -> float:
    """MiB of memory that a process holds."""
    found = re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{process}/status").read_text())
    assert found is not None, "the process has ended"
    return int(found[1]) / 1024
