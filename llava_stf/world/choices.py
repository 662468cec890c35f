"""The three families with lettered options: science (a rule and one step), choice, and choice in Chinese."""

import numpy as np

from llava_stf.world.questions import COLOUR_NAMES, WHERE, Question, pick, unique_colours, unique_shapes
from llava_stf.world.scene import COLOURS, PLACES, SHAPES, WORDS, Scene

LETTERS = "ABCD"
PROPERTIES = (("hot", "cold"), ("heavy", "light"), ("soft", "hard"), ("wet", "dry"))
CHINESE = {
    "red": "红色", "green": "绿色", "blue": "蓝色", "yellow": "黄色",
    "purple": "紫色", "orange": "橙色", "cyan": "青色", "pink": "粉色",
    "circle": "圆形", "square": "方形", "triangle": "三角形", "star": "星形", "cross": "十字形", "ring": "圆环",
    "top left": "左上", "top": "上方", "top right": "右上",
    "left": "左边", "centre": "中间", "right": "右边",
    "bottom left": "左下", "bottom": "下方", "bottom right": "右下",
}  # fmt: skip


def ask_science(scene: Scene, rng: np.random.Generator) -> Question | None:
    """A rule drawn for this question alone, applied to what is seen, as ScienceQA asks with a context."""
    by_colour = rng.random() < 0.5
    things = unique_shapes(scene) if by_colour else unique_colours(scene)
    if not things:
        return None
    thing = pick(rng, things)
    truth = thing.colour if by_colour else thing.shape
    seen = [other.colour if by_colour else other.shape for other in scene.objects]
    names: tuple[str, ...] = COLOUR_NAMES if by_colour else SHAPES
    contrast = distractors(truth, seen, names, 1, rng)[0]
    asked = thing.shape if by_colour else f"{thing.colour} shape"
    options = tuple(str(option) for option in rng.permutation(pick(rng, PROPERTIES)))
    property_of = dict(zip((truth, contrast), rng.permutation(options).tolist(), strict=True))
    first, second = rng.permutation([truth, contrast]).tolist()
    context = f"Context: {first} is {property_of[first]}, {second} is {property_of[second]}."
    text = f"{context}\nWhat is the {asked}?\n{_lettered(options)}"
    return Question(
        "science", "colour" if by_colour else "shape", text, LETTERS[options.index(property_of[truth])], options
    )


def ask_choice(scene: Scene, rng: np.random.Generator) -> Question | None:
    """Four options, as MMBench asks."""
    return _choice(scene, rng, "choice")


def ask_choice_cn(scene: Scene, rng: np.random.Generator) -> Question | None:
    """Four options in Chinese, as MMBench-CN asks."""
    return _choice(scene, rng, "choice_cn")


def _choice(scene: Scene, rng: np.random.Generator, family: str) -> Question | None:
    by_shape, by_colour = unique_shapes(scene), unique_colours(scene)
    has_word = scene.text is not None and not scene.text.is_number
    kinds = ["count", "at", *(["colour", "where"] if by_shape else []), *(["shape"] if by_colour else [])]
    kind = pick(rng, kinds + ["word"] * has_word)
    seen: list[str] = []
    names: tuple[str, ...]
    if kind == "colour" or kind == "where":
        thing = pick(rng, by_shape)
        asked = CHINESE[thing.shape]
        if kind == "colour":
            truth, seen, names = thing.colour, [other.colour for other in scene.objects], tuple(COLOURS)
            english, chinese = f"What colour is the {thing.shape}?", f"{asked}是什么颜色？"
        else:
            truth, seen, names = PLACES[thing.place], [PLACES[other.place] for other in scene.objects], PLACES
            english, chinese = f"Where is the {thing.shape}?", f"{asked}在哪里？"
    elif kind == "shape" or kind == "at":
        thing = pick(rng, by_colour if kind == "shape" else scene.objects)
        truth, seen, names = thing.shape, [other.shape for other in scene.objects], SHAPES
        if kind == "shape":
            english, chinese = f"What shape is {thing.colour}?", f"{CHINESE[thing.colour]}的是什么形状？"
        else:
            english, chinese = f"What shape is {WHERE[thing.place]}?", f"{CHINESE[PLACES[thing.place]]}是什么形状？"
    elif kind == "count":
        truth, names = (
            str(len(scene.objects)),
            tuple(str(number) for number in range(1, max(4, len(scene.objects)) + 1)),
        )
        english, chinese = "How many shapes are there?", "有几个图形？"
    else:
        assert scene.text is not None
        truth, names = scene.text.string, WORDS
        english, chinese = "What word is written?", "写的是什么词？"
    options = distractors(truth, seen, names, 3, rng)
    options.insert(int(rng.integers(4)), truth)
    letter = LETTERS[options.index(truth)]
    if family == "choice_cn":
        options = [CHINESE.get(option, option) for option in options]
    return Question(
        family, kind, f"{chinese if family == 'choice_cn' else english}\n{_lettered(options)}", letter, tuple(options)
    )


def distractors(truth: str, seen: list[str], names: tuple[str, ...], count: int, rng: np.random.Generator) -> list[str]:
    """`count` wrong names in random order, half of the time those of other objects first: presence must not tell."""
    wrong = [str(option) for option in rng.permutation([option for option in names if option != truth])]
    if rng.random() < 0.5:
        wrong.sort(key=lambda option: option not in seen)
    return [str(option) for option in rng.permutation(wrong[:count])]


def _lettered(options: tuple[str, ...] | list[str]) -> str:
    return "\n".join(f"{letter}. {option}" for letter, option in zip(LETTERS, options, strict=False))
