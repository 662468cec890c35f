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
MAX_QUESTIONS = 7
LINE_WIDTH = 42  # characters


def save_figure(path: Path, shown: Sequence[Shown], costs: tuple[Cost, Cost], *, grid: int, window: int) -> None:
    """Writes a PNG with at most `MAX_IMAGES` images and `MAX_QUESTIONS` questions each.

    `costs` are those of 100 % and of the fused model, `grid` the patches per side and `window` the side of a fused
    window in patches. Questions that the font cannot draw, Chinese ones for instance, are left to the printed table.
    """
    full, fused = costs
    share = f"{100 * fused.vision_tokens / full.vision_tokens:.0f} %"
    rows = shown[:MAX_IMAGES]
    height = 0.95 + 3.3 * len(rows)
    figure = Figure(figsize=(17, height), facecolor="white")
    cells = figure.add_gridspec(
        len(rows), 4, width_ratios=(1, 1, 1, 2.5), left=0.015, right=0.99, bottom=0.12 / height,
        top=1 - 1.15 / height, wspace=0.05, hspace=0.08,
    )  # fmt: skip
    axes = [[figure.add_subplot(cells[row, column]) for column in range(4)] for row in range(len(rows))]
    for (image_axes, patch_axes, window_axes, text_axes), item in zip(axes, rows, strict=True):
        pixels = np.asarray(ImageOps.pad(item.image, (SIDE, SIDE), Image.Resampling.BICUBIC, PAD_COLOUR))
        for place in (image_axes, patch_axes, window_axes):
            place.imshow(pixels, extent=(0, grid, grid, 0), interpolation="bilinear")
            place.set_axis_off()
        _draw_patches(patch_axes, grid)
        _draw_windows(window_axes, grid, window)
        _write_answers(text_axes, item.asked, share)
    titles = ("image", f"100 %: {full.vision_tokens} patches, a token each")
    for place, title in zip(axes[0], (*titles, f"{share}: {fused.vision_tokens} fused windows"), strict=False):
        place.set_title(title, fontsize=12, color=INK, pad=8)
    figure.text(
        0.015, 1 - 0.28 / height, f"LLaVA-STF: {full.vision_tokens} → {fused.vision_tokens} vision tokens an image",
        fontsize=18, weight="bold", color=INK, va="center",
    )  # fmt: skip
    figure.text(
        0.015, 1 - 0.6 / height,
        f"each outlined window of {window}x{window} patches becomes one token of the language model; median time to "
        f"first token {1000 * full.first_token_seconds:.1f} ms at 100 %, {1000 * fused.first_token_seconds:.1f} ms at "
        f"{share}",
        fontsize=12, color=MUTED, va="center",
    )  # fmt: skip
    write_figure(path, figure)


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


def _write_answers(axes: Axes, asked: Sequence[Asked], share: str) -> None:
    axes.set_axis_off()
    axes.set_xlim(0, 1)
    axes.set_ylim(1, 0)
    columns = (0.03, 0.5, 0.67, 0.84)
    for x, header in zip(columns, ("question", "reference", "100 %", share), strict=True):
        axes.text(x, 0.02, header, fontsize=10.5, color=MUTED, va="top", parse_math=False)
    axes.plot((0.03, 1), (0.1, 0.1), color="#d1d5db", linewidth=1)
    drawable = get_font(findfont("DejaVu Sans")).get_charmap()
    kept = [
        item for item in asked if all(character.isspace() or ord(character) in drawable for character in item.question)
    ]
    y = 0.13
    for item in kept[:MAX_QUESTIONS]:
        lines = textwrap.wrap(" ".join(item.question.split()), LINE_WIDTH, max_lines=2, placeholder=" ...")
        if y + 0.058 * len(lines) > 1:
            break
        axes.text(
            columns[0], y, "\n".join(lines), fontsize=10.5, color=INK, va="top", parse_math=False, linespacing=1.2
        )
        axes.text(columns[1], y, item.reference or "", fontsize=10.5, color=INK, va="top", parse_math=False)
        for x, answer in ((columns[2], item.full), (columns[3], item.fused)):
            colour = {True: RIGHT, False: WRONG, None: INK}[item.right(answer)]
            short = textwrap.shorten(answer, 16, placeholder="...")
            axes.text(x, y, short, fontsize=10.5, color=colour, va="top", parse_math=False, weight="bold")
        y += 0.058 * len(lines) + 0.035
