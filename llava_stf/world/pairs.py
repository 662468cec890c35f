"""Short queries about a scene: "star colour: red" asks what "What colour is the star?" asks, in a third of the tokens.

From them a language model without pre-training learns to look things up in an image, before it learns to be asked.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from llava_stf.world.choices import CHINESE, LETTERS, PROPERTIES, distractors
from llava_stf.world.questions import (
    COLOUR_NAMES,
    DIRECTIONS,
    UNANSWERABLE,
    name,
    pick,
    unique_colours,
    unique_shapes,
)
from llava_stf.world.scene import PLACES, SHAPES, WORDS, Scene

T = TypeVar("T")
LEAST_WEIGHT = 0.1  # of a kind whose answers are all right
UNKNOWN = 0.3  # share of right answers of a kind that was not asked yet


@dataclass(frozen=True)
class Pair:
    """One query, its answer, and the kind of both; `truth` is what the answer's letter stands for, if it is one."""

    kind: str
    query: str
    answer: str
    truth: str | None = None


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
    pairs += [*_counts(scene, rng), *_verified(scene, rng)]
    return weighted(pairs, [pair.kind for pair in pairs], count, rng, right)


def ask_long_pairs(scene: Scene, rng: np.random.Generator, count: int, right: Mapping[str, float]) -> list[Pair]:
    """As `ask_pairs`, queries that give options by letter ("star at A left B top: B") or a rule; none if degraded."""
    if scene.degraded:
        return []
    pairs = [*_rules(scene, rng), *_lettered(scene, rng)]
    return weighted(pairs, [pair.kind for pair in pairs], count, rng, right)


def weighted(
    items: Sequence[T], kinds: Sequence[str], count: int, rng: np.random.Generator, right: Mapping[str, float]
) -> list[T]:
    """At most `count` of the items, the likelier the smaller the share of right answers to their kind."""
    weights = np.array([LEAST_WEIGHT + 1 - right.get(kind, UNKNOWN) for kind in kinds])
    if not len(weights):
        return []
    chosen = rng.choice(len(items), min(count, len(items)), replace=False, p=weights / weights.sum())
    return [items[index] for index in chosen]


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


def _verified(scene: Scene, rng: np.random.Generator) -> list[Pair]:
    """Whether one object lies so from another, in both directions of an axis."""
    pairs = []
    for thing in scene.objects:
        other = pick(rng, scene.objects)
        asked, known = name(thing, scene, rng), name(other, scene, rng)
        if asked is None or known is None:
            continue
        for direction, holds in DIRECTIONS.items():
            if holds(thing, other) or holds(other, thing):
                pairs.append(Pair("verify", f"{asked} {direction} {known}", "yes" if holds(thing, other) else "no"))
    return pairs


def _counts(scene: Scene, rng: np.random.Generator) -> list[Pair]:
    """How many objects there are, in all and of each shape and colour; of one of each that may not be there as well."""
    shapes, colours = [thing.shape for thing in scene.objects], [thing.colour for thing in scene.objects]
    return [
        Pair("count", "shapes", str(len(scene.objects))),
        *(
            Pair("count of", f"{one} count", str(shapes.count(one)))
            for one in dict.fromkeys([*shapes, pick(rng, SHAPES)])
        ),
        *(
            Pair("count of", f"{one} count", str(colours.count(one)))
            for one in dict.fromkeys([*colours, pick(rng, COLOUR_NAMES)])
        ),
    ]


def _rules(scene: Scene, rng: np.random.Generator) -> list[Pair]:
    """What a rule on two colours or shapes says of an object."""
    asked = [(f"{thing.shape}", thing.colour, COLOUR_NAMES) for thing in unique_shapes(scene)]
    asked += [(f"{thing.colour} shape", thing.shape, SHAPES) for thing in unique_colours(scene)]
    pairs = []
    for query, truth, names in asked:
        seen = [thing.colour if truth in COLOUR_NAMES else thing.shape for thing in scene.objects]
        rule = [truth, *distractors(truth, seen, names, 1, rng)]
        properties = rng.permutation(pick(rng, PROPERTIES)).tolist()
        said = [f"{one} {value}" for one, value in zip(rule, properties, strict=True)]
        pairs.append(Pair("rule", f"{', '.join(rng.permutation(said))}, {query}", properties[0]))
    return pairs


def _lettered(scene: Scene, rng: np.random.Generator) -> list[Pair]:
    """Queries with the letters of their options, in English, or with names and options in Chinese."""
    asked: list[tuple[str, str, str, str, list[str], tuple[str, ...]]] = [
        ("letter of count", "shapes", "count", str(len(scene.objects)), [], tuple("12345"))
    ]
    places = [PLACES[thing.place] for thing in scene.objects]
    shapes, colours = [thing.shape for thing in scene.objects], [thing.colour for thing in scene.objects]
    for thing in unique_shapes(scene):
        asked.append(("letter of place", thing.shape, "at", PLACES[thing.place], places, PLACES))
        asked.append(("letter of colour", thing.shape, "colour", thing.colour, colours, COLOUR_NAMES))
    for thing in unique_colours(scene):
        asked.append(("letter of shape", thing.colour, "shape", thing.shape, shapes, SHAPES))
    for thing in scene.objects:
        asked.append(("letter of shape", PLACES[thing.place], "shape", thing.shape, shapes, SHAPES))
    if scene.text is not None and not scene.text.is_number:
        asked.append(("letter of word", "word", "text", scene.text.string, [], WORDS))
    pairs = []
    for kind, known, wanted, truth, seen, names in asked:
        options = rng.permutation([truth, *distractors(truth, seen, names, 3, rng)]).tolist()
        letter = LETTERS[options.index(truth)]
        if rng.random() < 0.5:
            options, known = [CHINESE.get(option, option) for option in options], CHINESE.get(known, known)
        listed = " ".join(f"{letter} {option}" for letter, option in zip(LETTERS, options, strict=True))
        pairs.append(Pair(kind, f"{known} {wanted} {listed}", letter, options[LETTERS.index(letter)]))
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
