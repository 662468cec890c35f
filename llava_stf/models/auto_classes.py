"""Make transformers' Auto classes know this package's model types without importing transformers.

The Auto classes keep tables of names and import `transformers.models.<model type>` when a name is looked up. The names
are entered as soon as a table's module is imported (or now, if it already is), and this package stands in for the
module. Registering classes instead would import them in the middle of transformers' own imports, which are circular.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

from wrapt import when_imported

# Model types and what the names of their classes begin with.
MODEL_TYPES = {
    "llava_stf": "LlavaStf",
    "llava_next_stf": "LlavaNextStf",
    "llava_next_video_stf": "LlavaNextVideoStf",
    "llava_onevision_stf": "LlavaOnevisionStf",
    "video_llava_stf": "VideoLlavaStf",
    "vipllava_stf": "VipLlavaStf",
}


def register_auto_classes(package: ModuleType) -> None:
    """Enter the model types; `package` gives the classes by name."""
    for model_type in MODEL_TYPES:
        sys.modules[f"transformers.models.{model_type}"] = package


def _enter(mapping: Any, kind: str) -> None:
    for model_type, name in MODEL_TYPES.items():
        mapping._model_mapping[model_type] = f"{name}{kind}"
        # Built from the config names when the table was made, which may have been before this package was imported.
        mapping._reverse_config_mapping[f"{name}Config"] = model_type


@when_imported("transformers.models.auto.configuration_auto")
def _enter_config(module: Any) -> None:
    module.CONFIG_MAPPING_NAMES.update({model_type: f"{name}Config" for model_type, name in MODEL_TYPES.items()})


@when_imported("transformers.models.auto.modeling_auto")
def _enter_models(module: Any) -> None:
    _enter(module.MODEL_MAPPING, "Model")
    _enter(module.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING, "ForConditionalGeneration")


@when_imported("transformers.models.auto.processing_auto")
def _enter_processor(module: Any) -> None:
    _enter(module.PROCESSOR_MAPPING, "Processor")
