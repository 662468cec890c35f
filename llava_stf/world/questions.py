"""Eight families of questions, one per benchmark they mirror; each is a function of a scene and a generator.

Answers are balanced, so that no family is answerable without looking: yes and no, option letters and "unanswerable" are
drawn first and the question is made to fit. A family returns None where a scene gives it no unambiguous question.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from llava_stf.world.scene import COLOURS, PLACES, POPULAR, SHAPES, Scene, Thing

T = TypeVar("T")
COLOUR_NAMES = tuple(COLOURS)
UNANSWERABLE = "unanswerable"
# Of the readable images' poor-image questions; with the degraded images (12 %) it makes one half of all of them.
UNANSWERABLE_SHARE = 0.43
WHERE = tuple("in the centre" if place == "centre" else f"at the {place}" for place in PLACES)


def is_right(answer: str, reference: str) -> bool:
    """Whether the answer equals the reference but for case, spaces around and a closing period."""
    return answer.strip().rstrip(".").lower() == reference.lower()


@dataclass(frozen=True)
class Question:
    """One question and its only right answer; `options` are the texts behind A, B, ... where there are any."""

    family: str
    kind: str
    text: str
    answer: str
    options: tuple[str, ...] = ()


def pick(rng: np.random.Generator, items: Sequence[T]) -> T:
    """One of the items, all equally likely."""
    return items[int(rng.integers(len(items)))]


def unique_shapes(scene: Scene) -> list[Thing]:
    """The objects whose shape no other object has."""
    counts = Counter(thing.shape for thing in scene.objects)
    return [thing for thing in scene.objects if counts[thing.shape] == 1]


def unique_colours(scene: Scene) -> list[Thing]:
    """The objects whose colour no other object has."""
    counts = Counter(thing.colour for thing in scene.objects)
    return [thing for thing in scene.objects if counts[thing.colour] == 1]


def name(thing: Thing, scene: Scene, rng: np.random.Generator) -> str | None:
    """A name that fits this object alone: "star" or "red star"; None where another has both its shape and colour."""
    if sum((other.shape, other.colour) == (thing.shape, thing.colour) for other in scene.objects) > 1:
        return None
    if thing in unique_shapes(scene) and rng.random() < 0.5:
        return thing.shape
    return f"{thing.colour} {thing.shape}"


def ask_open(scene: Scene, rng: np.random.Generator) -> Question | None:
    """Colour, shape, count, place or size, as VQAv2 asks."""
    by_shape, by_colour = unique_shapes(scene), unique_colours(scene)
    kinds = ["count", "at", *(["colour", "where", "size"] if by_shape else []), *(["shape"] if by_colour else [])]
    kind = pick(rng, kinds)
    if kind == "count":
        return _count(scene, rng)
    if kind == "at":
        thing = pick(rng, scene.objects)
        asked = pick(rng, ("shape", "colour"))
        answer = thing.shape if asked == "shape" else thing.colour
        text = f"What shape is {WHERE[thing.place]}?" if asked == "shape" else f"What colour is {WHERE[thing.place]}?"
        return Question("open", f"{asked} at", text, answer)
    thing = pick(rng, by_colour if kind == "shape" else by_shape)
    if kind == "shape":
        return Question(
            "open", kind, pick(rng, (f"What shape is {thing.colour}?", f"What is {thing.colour}?")), thing.shape
        )
    if kind == "colour":
        wordings = (f"What colour is the {thing.shape}?", f"What is the colour of the {thing.shape}?")
        return Question("open", kind, pick(rng, wordings), thing.colour)
    if kind == "size":
        return Question("open", kind, f"Is the {thing.shape} small or large?", thing.size)
    return Question("open", kind, f"Where is the {thing.shape}?", PLACES[thing.place])


def _count(scene: Scene, rng: np.random.Generator) -> Question:
    if rng.random() < 0.5:
        return Question("open", "count", "How many shapes are there?", str(len(scene.objects)))
    attribute = pick(rng, ("shape", "colour"))
    values = [thing.shape if attribute == "shape" else thing.colour for thing in scene.objects]
    counts = {value: values.count(value) for value in (SHAPES if attribute == "shape" else COLOUR_NAMES)}
    number = pick(rng, sorted(set(counts.values())))  # drawn first: most shapes are there once or not at all
    value = pick(rng, [value for value, count in counts.items() if count == number])
    plural = f"{value} shapes" if attribute == "colour" else {"cross": "crosses"}.get(value, f"{value}s")
    return Question("open", f"count of {attribute}", f"How many {plural} are there?", str(number))


# What lies in a direction from an object: on another row or column of the 3x3 places, whatever the other axis.
DIRECTIONS: dict[str, Callable[[Thing, Thing], bool]] = {
    "left of": lambda one, other: one.column < other.column,
    "right of": lambda one, other: one.column > other.column,
    "above": lambda one, other: one.row < other.row,
    "below": lambda one, other: one.row > other.row,
}
OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}


def ask_relation(scene: Scene, rng: np.random.Generator) -> Question | None:
    """Left of, right of, above, below, as GQA asks: yes or no, or what stands there."""
    named = [(thing, label) for thing in scene.objects if (label := name(thing, scene, rng)) is not None]
    found: list[tuple[str, Thing, str, str, Thing]] = [
        (direction, one, label, other_label, other)
        for one, label in named
        for other, other_label in named
        for direction, holds in DIRECTIONS.items()
        if holds(one, other)
    ]
    if not found:
        return None
    alone = [case for case in found if sum(DIRECTIONS[case[0]](thing, case[4]) for thing in scene.objects) == 1]
    if not alone or rng.random() < 0.5:
        direction, _, label, other_label, _ = pick(rng, found)
        yes = rng.random() < 0.5
        asked = direction if yes else OPPOSITE[direction]
        return Question("relation", "verify", f"Is the {label} {asked} the {other_label}?", "yes" if yes else "no")
    direction, one, _, other_label, _ = pick(rng, alone)
    asked = pick(rng, ("shape", "colour"))
    answer = one.shape if asked == "shape" else one.colour
    return Question("relation", asked, f"What {asked} is {direction} the {other_label}?", answer)


def ask_poor(scene: Scene, rng: np.random.Generator) -> Question | None:
    """An open question, about half of them with nothing in the image that answers it, as in VizWiz."""
    if scene.degraded or rng.random() < UNANSWERABLE_SHARE:
        shapes = {thing.shape for thing in scene.objects} if not scene.degraded else set()
        colours = {thing.colour for thing in scene.objects} if not scene.degraded else set()
        texts = ["word", "number"]
        if scene.text is not None and not scene.degraded:
            texts.remove("number" if scene.text.is_number else "word")
        if rng.random() < 0.35:
            kind = pick(rng, texts)
            return Question("poor", kind, f"What {kind} is shown?", UNANSWERABLE)
        if rng.random() < 0.5:
            shape = pick(rng, [shape for shape in SHAPES if shape not in shapes])
            return Question("poor", "colour", f"What colour is the {shape}?", UNANSWERABLE)
        colour = pick(rng, [colour for colour in COLOUR_NAMES if colour not in colours])
        return Question("poor", "shape", f"What shape is {colour}?", UNANSWERABLE)
    if scene.text is not None and rng.random() < 0.5:
        kind = "number" if scene.text.is_number else "word"
        return Question("poor", kind, f"What {kind} is shown?", scene.text.string)
    by_shape, by_colour = unique_shapes(scene), unique_colours(scene)
    if by_shape and (not by_colour or rng.random() < 0.5):
        thing = pick(rng, by_shape)
        return Question("poor", "colour", f"What colour is the {thing.shape}?", thing.colour)
    if by_colour:
        thing = pick(rng, by_colour)
        return Question("poor", "shape", f"What shape is {thing.colour}?", thing.shape)
    return None


def ask_text(scene: Scene, rng: np.random.Generator) -> Question | None:
    """The rendered word or number, as TextVQA asks; now and then whether there is any."""
    if scene.text is None:
        return Question("text", "any", "Is there any text?", "no") if rng.random() < 0.3 else None
    chance = rng.random()
    if chance < 0.13:  # as many yes as no over all images
        return Question("text", "any", "Is there any text?", "yes")
    string = scene.text.string
    if scene.text.is_number:
        return Question("text", "number", pick(rng, ("What number is shown?", "What is the number?")), string)
    if chance < 0.3:
        return Question("text", "letter", "What is the first letter?", string[0])
    return Question("text", "word", pick(rng, ("What word is written?", "What does the text say?")), string)


def ask_presence(scene: Scene, rng: np.random.Generator) -> Question | None:
    """Ask "Is there a red circle?", as POPE does; a no of each kind is followed by as many yes.

    Negatives: random (any absent pair), popular (an absent pair of POPULAR), adversarial (an absent pair whose colour
    and shape are both in the image).
    """
    present = {(thing.colour, thing.shape) for thing in scene.objects}
    absent: dict[str, list[tuple[str, str]]] = {
        "random": [(colour, shape) for colour in COLOUR_NAMES for shape in SHAPES if (colour, shape) not in present],
        "popular": [pair for pair in POPULAR if pair not in present],
        "adversarial": [
            (one.colour, other.shape)
            for one in scene.objects
            for other in scene.objects
            if (one.colour, other.shape) not in present
        ],
    }
    kind = pick(rng, [kind for kind, pairs in absent.items() if pairs])
    yes = rng.random() < 0.5
    thing = pick(rng, scene.objects)
    colour, shape = (thing.colour, thing.shape) if yes else pick(rng, absent[kind])
    article = "an" if colour == "orange" else "a"
    return Question("presence", kind, f"Is there {article} {colour} {shape}?", "yes" if yes else "no")
