"""llava_stf: LLaVA on a quarter of its vision tokens (Spatial and Multi-Block Token Fusion, arXiv 2506.07138).

Importing this package is cheap: torch and transformers are imported when something is used. From then on the Auto
classes of transformers know its model types, `llava_stf` for one, in whichever order the two packages are imported.
"""

from __future__ import annotations

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

from llava_stf.io.requirements import __version__ as __version__
from llava_stf.io.requirements import check_requirements
from llava_stf.models.auto_classes import register_auto_classes

if TYPE_CHECKING:
    from llava_stf.conversion import convert_checkpoint
    from llava_stf.errors import LlavaStfError
    from llava_stf.images.frames import Video
    from llava_stf.inference import LlavaStf
    from llava_stf.loading import load_model
    from llava_stf.models.fusion.projector import LlavaStfProjector, MultiBlockTokenFusion, SpatialTokenFusion
    from llava_stf.models.llava_next.configuration_llava_next_stf import LlavaNextStfConfig
    from llava_stf.models.llava_next.modeling_llava_next_stf import (
        LlavaNextStfForConditionalGeneration,
        LlavaNextStfModel,
    )
    from llava_stf.models.llava_next.processing_llava_next_stf import LlavaNextStfProcessor
    from llava_stf.models.llava_next_video.configuration_llava_next_video_stf import LlavaNextVideoStfConfig
    from llava_stf.models.llava_next_video.modeling_llava_next_video_stf import (
        LlavaNextVideoStfForConditionalGeneration,
        LlavaNextVideoStfModel,
    )
    from llava_stf.models.llava_next_video.processing_llava_next_video_stf import LlavaNextVideoStfProcessor
    from llava_stf.models.llava_onevision.configuration_llava_onevision_stf import LlavaOnevisionStfConfig
    from llava_stf.models.llava_onevision.modeling_llava_onevision_stf import (
        LlavaOnevisionStfForConditionalGeneration,
        LlavaOnevisionStfModel,
    )
    from llava_stf.models.llava_onevision.processing_llava_onevision_stf import LlavaOnevisionStfProcessor
    from llava_stf.models.llava_stf.configuration_llava_stf import LlavaStfConfig
    from llava_stf.models.llava_stf.modeling_llava_stf import LlavaStfForConditionalGeneration, LlavaStfModel
    from llava_stf.models.llava_stf.processing_llava_stf import LlavaStfProcessor
    from llava_stf.models.video_llava.configuration_video_llava_stf import VideoLlavaStfConfig
    from llava_stf.models.video_llava.modeling_video_llava_stf import (
        VideoLlavaStfForConditionalGeneration,
        VideoLlavaStfModel,
    )
    from llava_stf.models.video_llava.processing_video_llava_stf import VideoLlavaStfProcessor
    from llava_stf.models.vipllava.configuration_vipllava_stf import VipLlavaStfConfig
    from llava_stf.models.vipllava.modeling_vipllava_stf import VipLlavaStfForConditionalGeneration, VipLlavaStfModel
    from llava_stf.models.vipllava.processing_vipllava_stf import VipLlavaStfProcessor
    from llava_stf.reduction.apply import apply_pooling, apply_stf, remove_stf


_HOMES = {
    "LlavaNextStfConfig": "models.llava_next.configuration_llava_next_stf",
    "LlavaNextStfForConditionalGeneration": "models.llava_next.modeling_llava_next_stf",
    "LlavaNextStfModel": "models.llava_next.modeling_llava_next_stf",
    "LlavaNextStfProcessor": "models.llava_next.processing_llava_next_stf",
    "LlavaNextVideoStfConfig": "models.llava_next_video.configuration_llava_next_video_stf",
    "LlavaNextVideoStfForConditionalGeneration": "models.llava_next_video.modeling_llava_next_video_stf",
    "LlavaNextVideoStfModel": "models.llava_next_video.modeling_llava_next_video_stf",
    "LlavaNextVideoStfProcessor": "models.llava_next_video.processing_llava_next_video_stf",
    "LlavaOnevisionStfConfig": "models.llava_onevision.configuration_llava_onevision_stf",
    "LlavaOnevisionStfForConditionalGeneration": "models.llava_onevision.modeling_llava_onevision_stf",
    "LlavaOnevisionStfModel": "models.llava_onevision.modeling_llava_onevision_stf",
    "LlavaOnevisionStfProcessor": "models.llava_onevision.processing_llava_onevision_stf",
    "LlavaStf": "inference",
    "LlavaStfConfig": "models.llava_stf.configuration_llava_stf",
    "LlavaStfError": "errors",
    "LlavaStfForConditionalGeneration": "models.llava_stf.modeling_llava_stf",
    "LlavaStfModel": "models.llava_stf.modeling_llava_stf",
    "LlavaStfProcessor": "models.llava_stf.processing_llava_stf",
    "LlavaStfProjector": "models.fusion.projector",
    "MultiBlockTokenFusion": "models.fusion.projector",
    "SpatialTokenFusion": "models.fusion.projector",
    "Video": "images.frames",
    "VideoLlavaStfConfig": "models.video_llava.configuration_video_llava_stf",
    "VideoLlavaStfForConditionalGeneration": "models.video_llava.modeling_video_llava_stf",
    "VideoLlavaStfModel": "models.video_llava.modeling_video_llava_stf",
    "VideoLlavaStfProcessor": "models.video_llava.processing_video_llava_stf",
    "VipLlavaStfConfig": "models.vipllava.configuration_vipllava_stf",
    "VipLlavaStfForConditionalGeneration": "models.vipllava.modeling_vipllava_stf",
    "VipLlavaStfModel": "models.vipllava.modeling_vipllava_stf",
    "VipLlavaStfProcessor": "models.vipllava.processing_vipllava_stf",
    "apply_pooling": "reduction.apply",
    "apply_stf": "reduction.apply",
    "convert_checkpoint": "conversion",
    "load_model": "loading",
    "remove_stf": "reduction.apply",
}

__all__ = [
    "LlavaNextStfConfig",
    "LlavaNextStfForConditionalGeneration",
    "LlavaNextStfModel",
    "LlavaNextStfProcessor",
    "LlavaNextVideoStfConfig",
    "LlavaNextVideoStfForConditionalGeneration",
    "LlavaNextVideoStfModel",
    "LlavaNextVideoStfProcessor",
    "LlavaOnevisionStfConfig",
    "LlavaOnevisionStfForConditionalGeneration",
    "LlavaOnevisionStfModel",
    "LlavaOnevisionStfProcessor",
    "LlavaStf",
    "LlavaStfConfig",
    "LlavaStfError",
    "LlavaStfForConditionalGeneration",
    "LlavaStfModel",
    "LlavaStfProcessor",
    "LlavaStfProjector",
    "MultiBlockTokenFusion",
    "SpatialTokenFusion",
    "Video",
    "VideoLlavaStfConfig",
    "VideoLlavaStfForConditionalGeneration",
    "VideoLlavaStfModel",
    "VideoLlavaStfProcessor",
    "VipLlavaStfConfig",
    "VipLlavaStfForConditionalGeneration",
    "VipLlavaStfModel",
    "VipLlavaStfProcessor",
    "apply_pooling",
    "apply_stf",
    "convert_checkpoint",
    "load_model",
    "remove_stf",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])


check_requirements()
register_auto_classes(sys.modules[__name__])
