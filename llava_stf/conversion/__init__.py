"""Checkpoint conversion between the authors' format, haotian-liu's LLaVA-1.5 and Hugging Face's layout."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llava_stf.conversion.convert import convert_checkpoint

__all__ = ["convert_checkpoint"]


def __getattr__(name: str) -> Any:
    """What needs torch and transformers, when it is asked for."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module("llava_stf.conversion.convert"), name)
