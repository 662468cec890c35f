"""Pre-training methods of vision encoders: one file per method, its mathematics first."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llava_stf.encoders.objectives.base import Objective

METHODS = {"patchmix": "PatchMix", "aps": "APS", "mgc": "MGC", "mos": "MOS", "mocov3": "MoCoV3"}


def objective_class(method: str) -> type[Objective]:
    """The class of a method of `METHODS`."""
    return getattr(importlib.import_module(f"{__name__}.{method}"), METHODS[method])
