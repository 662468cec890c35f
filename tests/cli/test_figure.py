"""The demo's figure is written for any images and answers."""

import itertools
from pathlib import Path

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image

from llava_stf.cli.demo import Asked, Cost, Shown
from llava_stf.cli.figure import draw_figure, save_figure

ASKED = [
    Asked("open", "What colour is the star?", "red", "red", "blue"),
    Asked("science", "Context: a very long one.\n" * 5 + "A. yes\nB. no", "A", "A", "A"),
    Asked("choice_cn", "有几个图形？\nA. 1\nB. 2", "B", "B", "A"),
    Asked(None, "Is $x_$ or $\\frac{1 this?", None, "$an^ answer$ that is much longer than its column", ""),
]


@pytest.mark.parametrize(("size", "count"), [((112, 112), 6), ((300, 40), 1), ((1, 9), 1)])
def test_it_is_written_and_stays_readable(tmp_path: Path, size: tuple[int, int], count: int) -> None:
    shown = [Shown("here", Image.new("RGB", size, (200, 20, 20)), ASKED * 3)] * count
    save_figure(tmp_path / "a.png", shown, (Cost(64, 0.02), Cost(16, 0.01)), grid=8, window=2)
    with Image.open(tmp_path / "a.png") as image:
        assert image.width > 1000
        assert image.height < 5000


def test_all_questions_are_there_right_answers_are_marked_and_no_texts_touch() -> None:
    asked = ASKED * 3 + [
        Asked("open", "Where is some mammoth? " * 30, "a small mammoth", "a small mammoth", "MAMMOTHS, AND TWO")
    ]
    shown = [Shown("here", Image.new("RGB", (112, 112)), asked)] * 2
    figure = draw_figure(shown, (Cost(64, 0.02), Cost(16, 0.01)), grid=8, window=2)
    renderer = FigureCanvasAgg(figure).get_renderer()
    places = figure.axes[3::4]
    assert len(places) == 2
    for axes in places:
        texts = [text for text in axes.texts if text.get_text()]
        words = [text.get_text() for text in texts]
        assert sum(word.startswith("What colour is the star?") for word in words) == 3
        assert sum("choice_cn" in word for word in words) == 3
        assert words.count("✓ red") == words.count("✗ blue") == 3
        boxes = [text.get_window_extent(renderer) for text in texts]
        touching = [
            (one.get_text(), other.get_text())
            for (one, box), (other, there) in itertools.combinations(zip(texts, boxes, strict=True), 2)
            if box.overlaps(there)
        ]
        assert touching == []
        inside = axes.get_window_extent(renderer)
        assert all(box.x1 <= figure.bbox.x1 and box.y0 >= inside.y0 for box in boxes)


def colours(path: Path) -> set[tuple[int, ...]]:
    with Image.open(path) as image:
        return {tuple(colour) for colour in np.asarray(image.convert("RGB")).reshape(-1, 3)}


def test_right_and_wrong_answers_differ_in_colour(tmp_path: Path) -> None:
    image = Image.new("RGB", (112, 112))
    green, red = (0x15, 0x80, 0x3D), (0xB9, 0x1C, 0x1C)
    for name, answer, expected in (("right", "Red.", {green}), ("wrong", "blue", {red})):
        path = tmp_path / f"{name}.png"
        asked = [Asked("open", "What colour is it?", "red", answer, answer)]
        save_figure(path, [Shown("", image, asked)], (Cost(64, 0.02), Cost(16, 0.01)), grid=8, window=2)
        assert colours(path) & {green, red} == expected


def test_the_window_is_drawn(tmp_path: Path) -> None:
    """A coarser window outlines fewer squares."""
    amber = []
    for window in (2, 4):
        path = tmp_path / f"{window}.png"
        shown = [Shown("", Image.new("RGB", (112, 112)), ASKED[:1])]
        save_figure(path, shown, (Cost(64, 0.02), Cost(64 // window**2, 0.01)), grid=8, window=window)
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("RGB"))
        amber.append(int((pixels == (0xF5, 0x9E, 0x0B)).all(-1).sum()))
    assert amber[0] > 1.5 * amber[1] > 0
