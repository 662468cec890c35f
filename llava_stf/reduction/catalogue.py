"""The methods by name."""

from __future__ import annotations

from .divprune import DivPrune
from .fastv import FastV
from .method import Method
from .pool import Pool
from .random_patches import RandomPatches
from .resize import Resize
from .tome import ToMe
from .visionzip import VisionZip

METHODS: dict[str, Method] = {
    method.name: method for method in (Pool(), RandomPatches(), Resize(), ToMe(), VisionZip(), DivPrune(), FastV())
}
