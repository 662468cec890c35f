"""Load a LLaVA or LLaVA-STF from wherever it is and in whatever format."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from llava_stf.loading.bundled import BUNDLED, bundled_folder, check_name, is_bundled

if TYPE_CHECKING:
    from llava_stf.loading.load import is_llava, load_model, load_processor, read_config, read_config_to_ask

__all__ = [
    "BUNDLED",
    "bundled_folder",
    "check_name",
    "is_bundled",
    "is_llava",
    "load_model",
    "load_processor",
    "read_config",
    "read_config_to_ask",
]


def __getattr__(name: str) -> Any:
    """What needs torch and transformers, when it is asked for."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module("llava_stf.loading.load"), name)
