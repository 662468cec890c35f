"""Groups of commands from other packages, such as `llava-stf bench` of llava_stf_eval."""

from collections.abc import Iterable
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec

GROUP = "llava_stf.commands"
_BENCH = EntryPoint("bench", "llava_stf_eval.cli:bench", GROUP)


def command_groups() -> Iterable[EntryPoint]:
    """Those of the entry points `llava_stf.commands`, or the checkout's own where the package is not installed."""
    return entry_points(group=GROUP) or ([_BENCH] if find_spec("llava_stf_eval") else [])
