"""The methods by name."""

from __future__ import annotations

from llava_stf.reduction.dart import DART
from llava_stf.reduction.divprune import DivPrune
from llava_stf.reduction.fastv import FastV
from llava_stf.reduction.holov import HoloV
from llava_stf.reduction.m3 import M3
from llava_stf.reduction.method import Method
from llava_stf.reduction.mqt import Mqt
from llava_stf.reduction.pool import Pool
from llava_stf.reduction.prumerge import PruMergePlus
from llava_stf.reduction.pyramiddrop import PyramidDrop
from llava_stf.reduction.random_patches import RandomPatches
from llava_stf.reduction.resize import Resize
from llava_stf.reduction.sparsevlm import SparseVLM
from llava_stf.reduction.stf import Stf
from llava_stf.reduction.tokenpacker import TokenPacker
from llava_stf.reduction.tome import ToMe
from llava_stf.reduction.visionzip import VisionZip
from llava_stf.reduction.vispruner import VisPruner

METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Stf(),
        Pool(),
        M3(),
        TokenPacker(),
        Mqt(),
        RandomPatches(),
        Resize(),
        ToMe(),
        VisionZip(),
        PruMergePlus(),
        HoloV(),
        VisPruner(),
        DivPrune(),
        FastV(),
        SparseVLM(),
        PyramidDrop(),
        DART(),
    )
}
