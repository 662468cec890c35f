"""How many threads a command computes with: no more than a container lets run at a time.

torch takes one for each core that it sees, which in a container are those of the whole machine: of the threads beyond
the container's share every operation waits for the slowest.
"""

import os
from pathlib import Path

_CONTROL_GROUPS = Path("/sys/fs/cgroup")


def bound_threads(root: Path = _CONTROL_GROUPS) -> None:
    """Sets `OMP_NUM_THREADS` for what is imported next, where a container has fewer cores than the machine.

    A number that is set already stays.
    """
    share = _share(root)
    if share is not None and share < (os.cpu_count() or 1):
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, int(share))))


def _share(root: Path) -> float | None:
    """Cores that control groups, of version 2 or 1, allow; `None` where there is no bound."""
    try:
        quota, period = (root / "cpu.max").read_text().split()
    except (OSError, ValueError):
        try:
            quota, period = ((root / "cpu" / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        except OSError:
            return None
    try:
        return int(quota) / int(period) if int(quota) > 0 else None
    except ValueError:  # "max"
        return None
