"""What is in an image: the ground truth from which pixels, questions, captions and dense labels are derived.

A scene has one to four shapes on a 3x3 raster of places, sometimes a word or a number on a place of its own, and may be
degraded (blurred, dark or noisy) so that nothing in it can be read.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from llava_stf.errors import DataError
from llava_stf.world.glyphs import layout

SIDE = 112  # px, of an image that is one tile of the bundled tower
LARGEST_SIDE = 4096  # px; drawing takes some 40 bytes of memory a pixel
SHAPES = ("circle", "square", "triangle", "star", "cross", "ring")
COLOURS = {
    "red": (222, 32, 36),
    "green": (36, 158, 56),
    "blue": (40, 76, 226),
    "yellow": (248, 220, 24),
    "purple": (132, 44, 186),
    "orange": (246, 132, 16),
    "cyan": (40, 206, 222),
    "pink": (252, 146, 196),
}
SIZES = {"small": (16, 20), "large": (28, 34)}  # px, both ends included
PLACES = (
    "top left", "top", "top right",
    "left", "centre", "right",
    "bottom left", "bottom", "bottom right",
)  # fmt: skip
WORDS = (
    "cat", "dog", "sun", "bus", "hat", "key", "tea", "ice", "pen", "box", "fish", "bird", "tree", "milk", "shop",
    "lake", "open", "road", "gold", "jazz", "bread", "house", "piano", "queen",
)  # fmt: skip
CHARACTERS = (
    "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"  # a character's class in the dense labels is its index here plus one
)
DEGRADATIONS = ("blur", "dark", "noise")
# Pairs that are drawn more often than chance, as some objects are in photographs: "popular" negatives ask for them.
POPULAR = (
    ("red", "circle"), ("blue", "square"), ("green", "triangle"),
    ("yellow", "star"), ("orange", "cross"), ("purple", "ring"),
)  # fmt: skip
POPULAR_SHARE = 0.35
DEGRADED_SHARE = 0.12
WORD_SHARE = 0.36
NUMBER_SHARE = 0.34
COLOUR_JITTER = 14  # per channel, of 255
FONT_SIZES = (13, 17)  # px, both ends included; a letter stays smaller than a patch of 14 px
WIDEST_TEXT = 44  # px
MOST_OBJECTS = 5  # so that some shape and some colour is always absent, and a place is left for text

Box = tuple[int, int, int, int]  # x0, y0, x1, y1 in px, exclusive at the right and below
Colour = tuple[int, int, int]


@dataclass(frozen=True)
class Thing:
    """One shape: names from SHAPES, COLOURS and SIZES, the index of its place in PLACES, its box and its drawn RGB."""

    shape: str
    colour: str
    size: str
    place: int
    box: Box
    rgb: Colour

    @property
    def row(self) -> int:
        """Row of the 3 x 3 grid, from the top."""
        return self.place // 3

    @property
    def column(self) -> int:
        """Column of the 3 x 3 grid, from the left."""
        return self.place % 3


@dataclass(frozen=True)
class Label:
    """A rendered word or number: `string` as it is answered (lower case), drawn in capitals; one box per character."""

    string: str
    place: int
    box: Box
    character_boxes: tuple[Box, ...]
    font_size: int

    @property
    def is_number(self) -> bool:
        """Whether it is a number and no word."""
        return self.string.isdigit()


@dataclass(frozen=True)
class Scene:
    """Everything in one image; `objects` are in raster order; `degradation` is None if it is readable."""

    objects: tuple[Thing, ...]
    text: Label | None
    background: Colour
    degradation: str | None
    side: int = SIDE  # px
    more_texts: tuple[Label, ...] = ()  # nothing is asked about them; a tower learns characters from them

    @property
    def texts(self) -> tuple[Label, ...]:
        """All that is written."""
        return self.more_texts if self.text is None else (self.text, *self.more_texts)

    @property
    def degraded(self) -> bool:
        """Whether the image is too poor to read."""
        return self.degradation is not None


def sample_scene(rng: np.random.Generator, *, max_objects: int = 4, side: int = SIDE) -> Scene:
    """Draw a scene with 1 to `max_objects` shapes.

    In an image of more than SIDE px a side, shapes and letters are as large as in one of SIDE, and lie farther apart.

    Raises:
        DataError: `max_objects` is not 1 to MOST_OBJECTS, or `side` is not SIDE to LARGEST_SIDE.
    """
    if not SIDE <= side <= LARGEST_SIDE:
        raise DataError(f"Expected images of at least {SIDE} px a side and at most {LARGEST_SIDE:,}, found {side}.")
    if not 1 <= max_objects <= MOST_OBJECTS:
        raise DataError(f"Expected 1 to {MOST_OBJECTS} objects in an image, found {max_objects}.")
    count = int(rng.integers(1, max_objects + 1))
    places = rng.permutation(9)
    same_shape = (
        SHAPES[rng.integers(6)] if rng.random() < 0.2 else None
    )  # otherwise counts of one shape are rarely over 1
    things = [_sample_thing(rng, int(place), same_shape, side) for place in places[:count]]
    kind = rng.random()
    text = None
    if kind < WORD_SHARE:
        text = _sample_label(rng, WORDS[rng.integers(len(WORDS))], int(places[count]), things, side)
    elif kind < WORD_SHARE + NUMBER_SHARE:
        digits = int(rng.integers(1, 4))
        number = int(rng.integers(10 ** (digits - 1), 10**digits))
        text = _sample_label(rng, str(number), int(places[count]), things, side)
    base = rng.integers(24, 76) if rng.random() < 0.5 else rng.integers(178, 236)
    red, green, blue = (int(channel) for channel in base + rng.integers(-18, 19, size=3))
    degradation = DEGRADATIONS[rng.integers(3)] if rng.random() < DEGRADED_SHARE else None
    things.sort(key=lambda thing: thing.place)
    return Scene(tuple(things), text, (red, green, blue), degradation, side)


def _sample_thing(rng: np.random.Generator, place: int, same_shape: str | None, side: int) -> Thing:
    if rng.random() < POPULAR_SHARE:
        colour, shape = POPULAR[rng.integers(6)]
    else:
        colour, shape = tuple(COLOURS)[rng.integers(8)], SHAPES[rng.integers(6)]
    if same_shape is not None and rng.random() < 0.8:
        shape = same_shape
    size = "small" if rng.random() < 0.5 else "large"
    smallest, largest = SIZES[size]
    extent = int(rng.integers(smallest, largest + 1))
    x, y = _corner(rng, place, extent, extent, side)
    red, green, blue = (
        int(min(255, max(0, channel + jitter)))
        for channel, jitter in zip(
            COLOURS[colour], rng.integers(-COLOUR_JITTER, COLOUR_JITTER + 1, size=3), strict=True
        )
    )
    return Thing(shape, colour, size, place, (x, y, x + extent, y + extent), (red, green, blue))


def _corner(rng: np.random.Generator, place: int, width: int, height: int, side: int) -> tuple[int, int]:
    """Top left corner of a box somewhere in its place and always inside the image.

    It is at most 6 px off the middle in an image of SIDE px, and farther where places are larger.
    """
    corner, most = [], 6 + (side - SIDE) // 3
    for index, extent in ((place % 3, width), (place // 3, height)):
        slack = max(1, min(most, (side // 3 - extent) // 2))
        middle = (2 * index + 1) * side // 6
        start = middle - extent // 2 + int(rng.integers(-slack, slack + 1))
        corner.append(min(side - extent, max(0, start)))
    return corner[0], corner[1]


def with_more_texts(scene: Scene, rng: np.random.Generator) -> Scene:
    """The scene with a word, a number or random characters on every place that is free and has room."""
    taken: list[Thing | Label] = [*scene.objects, *scene.texts]
    more: list[Label] = []
    for place in sorted({*range(9)} - {part.place for part in taken}):
        kind, length = rng.random(), int(rng.integers(1, 4))
        characters = CHARACTERS[-10:] if kind < 0.5 else CHARACTERS
        string = "".join(characters[index] for index in rng.integers(len(characters), size=length)).lower()
        if kind > 0.75:
            string = WORDS[rng.integers(len(WORDS))]
        label = _sample_label(rng, string, place, [*taken, *more], scene.side)
        more += [label] if label is not None else []
    return replace(scene, more_texts=tuple(more))


def _sample_label(
    rng: np.random.Generator, string: str, place: int, things: Sequence[Thing | Label], side: int
) -> Label | None:
    """The text on its place, in a font that fits; None where a neighbour leaves no room in eight tries."""
    drawn = string.upper()
    for _ in range(8):
        size = int(rng.integers(FONT_SIZES[0], FONT_SIZES[1] + 1))
        while size > FONT_SIZES[0] and layout(drawn, size)[-1][2] > WIDEST_TEXT:
            size -= 1
        boxes = layout(drawn, size)
        width, height = boxes[-1][2], max(box[3] for box in boxes)
        x, y = _corner(rng, place, width, height, side)
        box = (x, y, x + width, y + height)
        if not any(_overlap(box, thing.box) for thing in things):
            moved = tuple((x + left, y + top, x + right, y + bottom) for left, top, right, bottom in boxes)
            return Label(string, place, box, moved, size)
    return None


def _overlap(one: Box, other: Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]
