"""Make transformers' Auto classes know the model type `llava_stf` without importing transformers.

The Auto classes keep tables of names and import `transformers.models.<model type>` when a name is looked up. The names
are entered as soon as a table's module is imported (or now, if it already is), and this package stands in for the
module. Registering classes instead would import them in the middle of transformers' own imports, which are circular.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

from wrapt import when_imported

MODEL_TYPE = "llava_stf"
CONFIG = "LlavaStfConfig"


def register_auto_classes(package: ModuleType) -> None:
    """Enter the model type `llava_stf`; `package` gives the classes by name."""
    sys.modules[f"transformers.models.{MODEL_TYPE}"] = package


def _enter(mapping: Any, class_name: str) -> None:
    mapping._model_mapping[MODEL_TYPE] = class_name
    # Built from the config names when the table was made, which may have been before this package was imported.
    mapping._reverse_config_mapping[CONFIG] = MODEL_TYPE


@when_imported("transformers.models.auto.configuration_auto")
def _enter_config(module: Any) -> None:
    module.CONFIG_MAPPING_NAMES[MODEL_TYPE] = CONFIG


@when_imported("transformers.models.auto.modeling_auto")
def _enter_models(module: Any) -> None:
    _enter(module.MODEL_MAPPING, "LlavaStfModel")
    _enter(module.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING, "LlavaStfForConditionalGeneration")


@when_imported("transformers.models.auto.processing_auto")
def _enter_processor(module: Any) -> None:
    _enter(module.PROCESSOR_MAPPING, "LlavaStfProcessor")
