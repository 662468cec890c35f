"""What lmms-eval finds by the entry point group `lmms_eval.models`: the model `llava_stf`."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lmms_eval.models.registry_v2 import ModelManifest

MODEL_ID = "llava_stf"


def manifest() -> ModelManifest:
    """The manifest of `llava_stf_eval.benchmarks.lmms_model.LlavaStfLmms`, for `lmms_eval --model llava_stf`."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(model_id=MODEL_ID, chat_class_path="llava_stf_eval.benchmarks.lmms_model.LlavaStfLmms")
