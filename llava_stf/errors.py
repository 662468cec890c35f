"""Errors that a user can cause, each with one sentence that says what was expected, what was found and what to do."""

from collections.abc import Iterable
from difflib import get_close_matches

LISTED = 20  # known names that a sentence can hold


class LlavaStfError(Exception):
    """Base of every error this package raises for a cause outside it; the command line prints it and exits with 2."""


class CheckpointError(LlavaStfError, ValueError):
    """A checkpoint has missing, unknown or mis-shaped tensors, is damaged, or is no LLaVA at all."""


class ModelNotFoundError(LlavaStfError, OSError):
    """No model stands under that name or path, or it cannot be fetched from here."""


class DeviceMemoryError(LlavaStfError, MemoryError):
    """A model does not fit into the memory of the device that it was to be loaded to."""


class ImageError(LlavaStfError, ValueError):
    """An image cannot be read: broken, too large, of an unknown kind, or not allowed to be fetched."""


class VideoError(LlavaStfError, ValueError):
    """A video cannot be read: broken, empty, or of an unknown kind."""


class PromptError(LlavaStfError, ValueError):
    """A prompt cannot be answered: empty, too long, or with another number of images than markers."""


class FusionError(LlavaStfError, ValueError):
    """The requested fusion does not fit the model: grid and window, widths, or fusion layers."""


class KernelError(LlavaStfError, ValueError):
    """Triton kernels were asked for where they cannot run, or kernels of an unknown name."""


class DataError(LlavaStfError, ValueError):
    """A training sample or data file does not have the LLaVA format."""


class ExportError(LlavaStfError, ValueError):
    """A model cannot be exported in that form, or an export cannot be run or does not do what was asked of it."""


class MissingDependencyError(LlavaStfError, ImportError):
    """An optional dependency is not installed; the message carries the pip line."""


def one_line(error: BaseException) -> str:
    """What a library's error says, as the end of a sentence: without its line breaks."""
    return " ".join(str(error).split())


def nearest(name: str, known: Iterable[str]) -> str:
    """The end of a sentence about an unknown `name`: "expected one of pool, tome; did you mean 'tome'?".

    Args:
        name: what was given.
        known: what there is; where these are too many to list, the nearest is named alone, however far it is.
    """
    names = {one.lower(): one for one in known}
    listed = len(names) <= LISTED
    close = get_close_matches(name.lower(), names, n=1, cutoff=0.5 if listed else 0)
    guess = f"did you mean '{names[close[0]]}'?" if close else ""
    if not listed:
        return guess
    return f"expected one of {', '.join(names.values())}{f'; {guess}' if guess else '.'}"
