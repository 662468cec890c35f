"""Short queries about a scene: "star colour: red" asks what "What colour is the star?" asks, in a third of the tokens.

From them a language model without pre-training learns to look things up in an image, before it learns to be asked.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from llava_stf.world.questions import (
    COLOUR_NAMES,
    DIRECTIONS,
    UNANSWERABLE,
    pick,
    unique_colours,
    unique_shapes,
)
from llava_stf.world.scene import PLACES, SHAPES, Scene

LEAST_WEIGHT = 0.1  # of a kind whose answers are all right
UNKNOWN = 0.3  # share of right answers of a kind that was not asked yet


@dataclass(frozen=True)
class Pair:
    """One query, its answer, and the kind of both."""

    kind: str
    query: str
    answer: str


def ask_pairs(scene: Scene, rng: np.random.Generator, count: int, right: Mapping[str, float]) -> list[Pair]:
    """At most `count` queries about a scene, kinds that were answered wrong the more often.

    Args:
        scene: what is asked about; a degraded one has two queries, both unanswerable.
        rng: what decides.
        count: how many at most.
        right: of each kind the share of right answers so far.
    """
    if scene.degraded:
        queries = (f"{pick(rng, COLOUR_NAMES)} shape", f"{pick(rng, SHAPES)} colour")
        return [Pair("degraded", query, UNANSWERABLE) for query in queries]
    pairs = [*_attributes(scene), *_absent(scene, rng), *_presence(scene, rng), *_neighbours(scene), *_text(scene)]
    pairs.append(Pair("count", "shapes", str(len(scene.objects))))
    weights = np.array([LEAST_WEIGHT + 1 - right.get(pair.kind, UNKNOWN) for pair in pairs])
    chosen = rng.choice(len(pairs), min(count, len(pairs)), replace=False, p=weights / weights.sum())
    return [pairs[index] for index in chosen]


def _attributes(scene: Scene) -> list[Pair]:
    """From what names an object alone to its other attributes."""
    pairs = []
    for thing in unique_shapes(scene):
        pairs.append(Pair("shape to colour", f"{thing.shape} colour", thing.colour))
        pairs.append(Pair("shape to place", f"{thing.shape} at", PLACES[thing.place]))
        pairs.append(Pair("shape to size", f"{thing.shape} size", thing.size))
    for thing in unique_colours(scene):
        pairs.append(Pair("colour to shape", f"{thing.colour} shape", thing.shape))
        pairs.append(Pair("colour to place", f"{thing.colour} at", PLACES[thing.place]))
    for thing in scene.objects:
        pairs.append(Pair("place to shape", f"{PLACES[thing.place]} shape", thing.shape))
        pairs.append(Pair("place to colour", f"{PLACES[thing.place]} colour", thing.colour))
    return pairs


def _absent(scene: Scene, rng: np.random.Generator) -> list[Pair]:
    shapes, colours = {thing.shape for thing in scene.objects}, {thing.colour for thing in scene.objects}
    shape = pick(rng, [shape for shape in SHAPES if shape not in shapes])
    colour = pick(rng, [colour for colour in COLOUR_NAMES if colour not in colours])
    return [
        Pair("shape not there", f"{shape} colour", UNANSWERABLE),
        Pair("colour not there", f"{colour} shape", UNANSWERABLE),
    ]


def _presence(scene: Scene, rng: np.random.Generator) -> list[Pair]:
    """Whether a colour and a shape are of one object; a pair that is not there has one of the two from an object."""
    present = {(thing.colour, thing.shape) for thing in scene.objects}
    pairs = []
    for _ in range(2):
        thing = pick(rng, scene.objects)
        pairs.append(Pair("there", f"{thing.colour} {thing.shape}", "yes"))
        other = (thing.colour, pick(rng, SHAPES)) if rng.random() < 0.5 else (pick(rng, COLOUR_NAMES), thing.shape)
        if other not in present:
            pairs.append(Pair("not there", " ".join(other), "no"))
    return pairs


def _neighbours(scene: Scene) -> list[Pair]:
    pairs = []
    for thing in unique_shapes(scene):
        for direction, holds in DIRECTIONS.items():
            found = [other for other in scene.objects if holds(other, thing)]
            if len(found) == 1:
                pairs.append(Pair("neighbour", f"{direction} {thing.shape} colour", found[0].colour))
                pairs.append(Pair("neighbour", f"{direction} {thing.shape} shape", found[0].shape))
    return pairs


def _text(scene: Scene) -> list[Pair]:
    if scene.text is None:
        return [Pair("text", "text", "no")]
    kind, other = ("number", "word") if scene.text.is_number else ("word", "number")
    return [
        Pair("text", "text", "yes"),
        *[Pair(kind, kind, scene.text.string)] * 2,
        Pair("text to place", f"{kind} at", PLACES[scene.text.place]),
        Pair("text not there", other, UNANSWERABLE),
    ]
