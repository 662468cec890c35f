"""The demo's figure: per image the patches of 100 %, the fused windows, and the questions with both answers."""

import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont, get_font
from matplotlib.patches import Rectangle
from PIL import Image, ImageOps

from llava_stf.cli.answers import Asked, Cost, Shown
from llava_stf.io.publish import write_figure

INK, MUTED, RIGHT, WRONG, FUSED_INK = "#1f2430", "#6b7280", "#15803d", "#b91c1c", "#f59e0b"
PAD_COLOUR = (122, 116, 104)  # LLaVA's canvas around an image that is not square
SIDE = 448  # px of a drawn image
MAX_IMAGES = 4
MARKS = {True: ("✓ ", RIGHT), False: ("✗ ", WRONG), None: ("", INK)}
# Characters of a line of a question, lines of a question, characters of an answer.
QUESTION_WIDTH, QUESTION_LINES, ANSWER_WIDTH = 42, 4, 15
# Inches: the figure, a row of images, a line of text, and the space between two questions.
WIDTH, ROW, LINE, GAP = 20.0, 3.4, 0.19, 0.13
FONT_SIZE = 10.5


def save_figure(path: Path, shown: Sequence[Shown], costs: tuple[Cost, Cost], *, grid: int, window: int) -> None:
    """Writes `draw_figure` as PNG."""
    write_figure(path, draw_figure(shown, costs, grid=grid, window=window))


def draw_figure(shown: Sequence[Shown], costs: tuple[Cost, Cost], *, grid: int, window: int) -> Figure:
    """A row for each of at most `MAX_IMAGES` images: itself, its patches, its windows, and all that was asked about it.

    Args:
        shown: images, questions and answers.
        costs: of 100 % and of the fused model.
        grid: patches per side.
        window: side of a fused window, in patches.
    """
    full, fused = costs
    share = f"{100 * fused.vision_tokens / full.vision_tokens:.0f} %"
    rows = shown[:MAX_IMAGES]
    texts = [[_question_lines(asked) for asked in item.asked] for item in rows]
    heights = [max(ROW, 0.55 + sum(len(lines) * LINE + GAP for lines in text)) for text in texts]
    height = 1.4 + sum(heights)
    figure = Figure(figsize=(WIDTH, height), facecolor="white")
    cells = figure.add_gridspec(
        len(rows), 4, width_ratios=(1, 1, 1, 3), height_ratios=heights, left=0.012, right=0.992,
        bottom=0.12 / height, top=1 - 1.25 / height, wspace=0.05, hspace=0.06,
    )  # fmt: skip
    axes = [[figure.add_subplot(cells[row, column]) for column in range(4)] for row in range(len(rows))]
    for places, item, lines in zip(axes, rows, texts, strict=True):
        pixels = np.asarray(ImageOps.pad(item.image, (SIDE, SIDE), Image.Resampling.BICUBIC, PAD_COLOUR))
        for place in places[:3]:
            place.imshow(pixels, extent=(0, grid, grid, 0), interpolation="bilinear")
            place.set_anchor("N")
            place.set_axis_off()
        _draw_patches(places[1], grid)
        _draw_windows(places[2], grid, window)
        _write_answers(places[3], item.asked, lines, share, places[3].get_position().height * height)
    titles = (
        "image",
        f"100 %: {full.vision_tokens} patches, a token each",
        f"{share}: {fused.vision_tokens} windows, a token each",
    )
    for place, title in zip(axes[0], titles, strict=False):
        place.set_title(title, fontsize=12, color=INK, pad=8)
    figure.text(
        0.012, 1 - 0.28 / height, f"LLaVA-STF: {full.vision_tokens} → {fused.vision_tokens} vision tokens an image",
        fontsize=18, weight="bold", color=INK, va="center",
    )  # fmt: skip
    figure.text(
        0.012, 1 - 0.62 / height,
        f"A window is {window}x{window} patches in one amber frame: the projector fuses them into one token of the "
        f"language model. Median time to first token {1000 * full.first_token_seconds:.1f} ms at 100 %, "
        f"{1000 * fused.first_token_seconds:.1f} ms at {share}.",
        fontsize=12, color=MUTED, va="center",
    )  # fmt: skip
    return figure


def _draw_patches(axes: Axes, grid: int) -> None:
    for place in range(grid + 1):
        axes.axhline(place, color="white", linewidth=1.2, alpha=0.85)
        axes.axvline(place, color="white", linewidth=1.2, alpha=0.85)


def _draw_windows(axes: Axes, grid: int, window: int) -> None:
    for place in range(grid + 1):
        axes.axhline(place, color="white", linewidth=0.6, alpha=0.5)
        axes.axvline(place, color="white", linewidth=0.6, alpha=0.5)
    inset = 0.06
    for top in range(0, grid, window):
        for left in range(0, grid, window):
            tint = 0.16 if (top + left) // window % 2 else 0.0
            corner, side = (left + inset, top + inset), window - 2 * inset
            axes.add_patch(Rectangle(corner, side, side, facecolor=FUSED_INK, alpha=tint, linewidth=0))
            axes.add_patch(Rectangle(corner, side, side, fill=False, edgecolor=FUSED_INK, linewidth=2))


def _question_lines(asked: Asked) -> list[str]:
    """A question as it is drawn; one in letters that the font lacks, Chinese for instance, by its kind alone."""
    drawable = get_font(findfont("DejaVu Sans")).get_charmap()
    if all(character.isspace() or ord(character) in drawable for character in asked.question):
        text = " ".join(asked.question.split())
    else:
        text = f"({asked.family or 'a question'}, in other letters: see --json)"
    return textwrap.wrap(text, QUESTION_WIDTH, max_lines=QUESTION_LINES, placeholder=" ...")


def _write_answers(
    axes: Axes, asked: Sequence[Asked], questions: Sequence[list[str]], share: str, height: float
) -> None:
    """Question, right answer and both answers, one under the other; heights are in inches."""
    axes.set_axis_off()
    axes.set_xlim(0, 1)
    axes.set_ylim(height, 0)
    columns = (0.02, 0.45, 0.61, 0.8)
    for x, header in zip(columns, ("question", "right answer", "100 %", share), strict=True):
        axes.text(x, 0.05, header, fontsize=FONT_SIZE, color=MUTED, va="top", parse_math=False)
    axes.plot((columns[0], 1), (0.32, 0.32), color="#d1d5db", linewidth=1)
    y = 0.42
    for item, lines in zip(asked, questions, strict=True):
        shown = [("\n".join(lines), INK, "normal"), (_shortened(item.reference or ""), INK, "normal")]
        for answer in (item.full, item.fused):
            mark, colour = MARKS[item.right(answer)]
            shown.append((mark + _shortened(answer), colour, "bold"))
        for x, (text, colour, weight) in zip(columns, shown, strict=True):
            axes.text(
                x, y, text, fontsize=FONT_SIZE, color=colour, weight=weight, va="top", parse_math=False, linespacing=1.2
            )
        y += len(lines) * LINE + GAP


def _shortened(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= ANSWER_WIDTH else text[: ANSWER_WIDTH - 3] + "..."
