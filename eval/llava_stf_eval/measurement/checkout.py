"""Another checkout of this package, which is measured beside this one."""

from __future__ import annotations

from pathlib import Path

from llava_stf.errors import LlavaStfError


def checkout(folder: Path) -> Path:
    """The absolute path of a checkout. Where it has no package, Python would take the one that is installed.

    Raises:
        LlavaStfError: it is none.
    """
    if not (folder / "llava_stf" / "__init__.py").is_file():
        raise LlavaStfError(f"Expected a checkout of llava_stf in {folder}, found no llava_stf/__init__.py.")
    return folder.resolve()
