"""The version of this package, and what it cannot work without, told in a sentence before anything is imported."""

from __future__ import annotations

import re
from importlib.metadata import PackageNotFoundError, version

from llava_stf.errors import MissingDependencyError

__version__ = "0.1.0"  # as in pyproject.toml
# As there, which an installation by hand or with --no-deps passes by.
MINIMUM = {"torch": (2, 11), "transformers": (5, 17)}


def release_of(found: str) -> tuple[int, int] | None:
    """The first two numbers of a version, `None` where it does not begin with them."""
    numbers = re.match(r"(\d+)\.(\d+)", found)
    return None if numbers is None else (int(numbers[1]), int(numbers[2]))


def check_requirements() -> None:
    """Look at the installed versions; imports nothing.

    Raises:
        MissingDependencyError: one is too old.
    """
    for name, needed in MINIMUM.items():
        try:
            found = version(name)
        except PackageNotFoundError:
            continue  # its import says so
        release = release_of(found)
        if release is not None and release < needed:
            least = ".".join(map(str, needed))
            raise MissingDependencyError(
                f"llava_stf needs {name} {least} or newer, found {found}: pip install --upgrade '{name}>={least}'"
            )
