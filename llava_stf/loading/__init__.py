"""Load a LLaVA or LLaVA-STF from wherever it is and in whatever format."""

from llava_stf.loading.load import (
    BUNDLED,
    bundled_folder,
    is_bundled,
    is_llava,
    load_model,
    load_processor,
    read_config,
)

__all__ = [
    "BUNDLED",
    "bundled_folder",
    "is_bundled",
    "is_llava",
    "load_model",
    "load_processor",
    "read_config",
]
