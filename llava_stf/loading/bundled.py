"""The models in the wheel. Nothing heavy is imported here, so that a command can look at a name before it starts."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from llava_stf.conversion.locate import is_hub_id, locate
from llava_stf.errors import ModelNotFoundError

# And the vision tokens they are loaded with unless told otherwise.
BUNDLED: dict[str, Literal["all"] | None] = {"tiny": None, "tiny-full": "all"}


def is_bundled(name: str | Path) -> bool:
    """Whether a name is that of a `BUNDLED` model; a path never is, whatever it is called."""
    return isinstance(name, str) and name in BUNDLED


def bundled_folder(name: str) -> Path:
    """The folder of one of the `BUNDLED` models.

    Raises:
        ModelNotFoundError: the installation came without it.
    """
    path = Path(__file__).parents[1] / "assets" / name
    if not path.is_dir():
        raise ModelNotFoundError(f"The bundled model '{name}' is not part of this installation; install the wheel.")
    return path


def check_name(name: str | Path) -> None:
    """Check that `name` is bundled, a local path, or has the form of a hub id.

    Raises:
        ModelNotFoundError: it is none of them.
    """
    if not is_bundled(name) and not is_hub_id(str(name)):
        locate(name)
