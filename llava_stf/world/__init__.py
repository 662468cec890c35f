"""Synthetic data: drawn scenes with exact ground truth, questions in eight families, data sets in LLaVA's format.

Images are 112x112 px RGB, so that a tower with patches of 14 px sees an 8x8 grid, or larger where that is asked for.
Needs only numpy and Pillow.
"""

from llava_stf.world.dataset import corpus, draw, generator, prior_accuracy, questions_of, write_dataset
from llava_stf.world.drawing import render
from llava_stf.world.families import ALL, BENCHMARKS, FAMILIES, ask, caption
from llava_stf.world.labels import patch_labels
from llava_stf.world.questions import UNANSWERABLE, Question, is_right
from llava_stf.world.scene import (
    CHARACTERS,
    COLOURS,
    PLACES,
    SHAPES,
    SIDE,
    SIZES,
    WORDS,
    Label,
    Scene,
    Thing,
    sample_scene,
)

__all__ = [
    "ALL",
    "BENCHMARKS",
    "CHARACTERS",
    "COLOURS",
    "FAMILIES",
    "PLACES",
    "SHAPES",
    "SIDE",
    "SIZES",
    "UNANSWERABLE",
    "WORDS",
    "Label",
    "Question",
    "Scene",
    "Thing",
    "ask",
    "caption",
    "corpus",
    "draw",
    "generator",
    "is_right",
    "patch_labels",
    "prior_accuracy",
    "questions_of",
    "render",
    "sample_scene",
    "write_dataset",
]
