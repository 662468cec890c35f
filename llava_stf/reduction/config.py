"""The config of a changed model, from that of the plain one."""

from __future__ import annotations

import dataclasses
from typing import Any, TypeVar

from transformers import LlavaConfig

Config = TypeVar("Config", bound=LlavaConfig)


def derive_config(config: LlavaConfig, config_class: type[Config], **fields: Any) -> Config:
    """A config of another class with other fields, sharing the vision and text configs, and how they attend.

    Fields that no class knows, a user's own, are taken over.

    Raises:
        FusionError: as the class does for these fields.
    """
    shared = [config.vision_config, config.text_config]
    attention = [part._attn_implementation_internal for part in shared]
    values = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    try:
        derived = config_class(**values | fields)
    finally:
        # A new config resets the attention implementation of the parts it is given.
        for part, implementation in zip(shared, attention, strict=True):
            part._attn_implementation_internal = implementation
    derived._attn_implementation_internal = config._attn_implementation_internal
    known = vars(type(config)()).keys() | {"auto_map"}  # which would name the code of the other class
    for name, value in vars(config).items():
        if name not in known and not name.startswith("_"):
            setattr(derived, name, value)
    return derived
