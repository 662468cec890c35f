"""llava_stf: LLaVA on a quarter of its vision tokens (Spatial and Multi-Block Token Fusion, arXiv 2506.07138).

Importing this package is cheap: torch and transformers are imported when something is used. From then on the Auto
classes of transformers know the model type `llava_stf`, in whichever order the two packages are imported.
"""

from __future__ import annotations

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

from ._auto import register_auto_classes

if TYPE_CHECKING:
    from .configuration_llava_stf import LlavaStfConfig
    from .conversion import convert_checkpoint
    from .errors import LlavaStfError
    from .inference import LlavaStf
    from .loading import load_model
    from .modeling_llava_stf import LlavaStfForConditionalGeneration, LlavaStfModel
    from .patch import apply_pooling, apply_stf, remove_stf
    from .processing_llava_stf import LlavaStfProcessor
    from .projector import LlavaStfProjector, MultiBlockTokenFusion, SpatialTokenFusion

__version__ = "0.1.0"

_HOMES = {
    "LlavaStf": "inference",
    "LlavaStfConfig": "configuration_llava_stf",
    "LlavaStfError": "errors",
    "LlavaStfForConditionalGeneration": "modeling_llava_stf",
    "LlavaStfModel": "modeling_llava_stf",
    "LlavaStfProcessor": "processing_llava_stf",
    "LlavaStfProjector": "projector",
    "MultiBlockTokenFusion": "projector",
    "SpatialTokenFusion": "projector",
    "apply_pooling": "patch",
    "apply_stf": "patch",
    "convert_checkpoint": "conversion",
    "load_model": "loading",
    "remove_stf": "patch",
}

__all__ = [
    "LlavaStf",
    "LlavaStfConfig",
    "LlavaStfError",
    "LlavaStfForConditionalGeneration",
    "LlavaStfModel",
    "LlavaStfProcessor",
    "LlavaStfProjector",
    "MultiBlockTokenFusion",
    "SpatialTokenFusion",
    "apply_pooling",
    "apply_stf",
    "convert_checkpoint",
    "load_model",
    "remove_stf",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])


register_auto_classes(sys.modules[__name__])
