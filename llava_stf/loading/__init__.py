"""Load a LLaVA or LLaVA-STF from wherever it is and in whatever format."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from llava_stf.loading.bundled import BUNDLED, bundled_folder, check_name, is_bundled

if TYPE_CHECKING:
    from llava_stf.loading.checkpoint import is_llava, read_config, read_config_to_ask
    from llava_stf.loading.load import device_and_dtype, load_model
    from llava_stf.loading.processor import load_processor

_MODULES = {
    "device_and_dtype": "load",
    "is_llava": "checkpoint",
    "load_model": "load",
    "load_processor": "processor",
    "read_config": "checkpoint",
    "read_config_to_ask": "checkpoint",
}

__all__ = [
    "BUNDLED",
    "bundled_folder",
    "check_name",
    "device_and_dtype",
    "is_bundled",
    "is_llava",
    "load_model",
    "load_processor",
    "read_config",
    "read_config_to_ask",
]


def __getattr__(name: str) -> Any:
    """What needs torch and transformers, when it is asked for."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"llava_stf.loading.{_MODULES[name]}"), name)
