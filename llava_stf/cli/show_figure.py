"""The drawing of `llava-stf show`: image, patch grid, what is fused or kept, and what MBTF reads of each block."""

import math
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PatchCollection
from matplotlib.figure import Figure, SubFigure
from matplotlib.patches import Rectangle

from llava_stf.io.publish import write_figure

if TYPE_CHECKING:
    from llava_stf.analysis.visualise import Visualisation

INK, WINDOW_INK = "#1f2430", "#f59e0b"
MAPS_IN_A_ROW = 4
CONTRIBUTION = r"what MBTF reads of each block: $|W_i x_i|\,/\,\sum_j |W_j x_j|$ in its first layer, per patch"


def save_visualisation(path: Path, seen: "Visualisation", *, name: str, method: str) -> str:
    """Writes the PNG, the old file or the new one and never half of it, and returns its title."""
    title = _title(seen, name, method)
    shares = [] if seen.contributions is None else list(seen.contributions)
    columns = min(len(shares), MAPS_IN_A_ROW)
    rows = math.ceil(len(shares) / MAPS_IN_A_ROW)
    figure = Figure(figsize=(11, 5.6 + 2.9 * rows), facecolor="white", layout="constrained")
    heights = [5.4, 2.9 * rows] if rows else [5.4]
    upper, *lower = figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
    image, tokens = upper.subplots(1, 2)
    upper.suptitle(title, color=INK, fontsize=13, parse_math=False)
    _draw_image(image, seen)
    image.set_title(f"{seen.grid}x{seen.grid} patches", fontsize=11)
    _draw_grid(image, seen.grid)
    _draw_image(tokens, seen)
    tokens.set_title("what reaches the language model", fontsize=11)
    if seen.kept is None:
        _draw_windows(tokens, seen.grid, seen.window)
    else:
        _draw_kept(tokens, seen.grid, seen.kept)
    for part in lower:
        _draw_contributions(part, seen, shares, rows, columns)
    write_figure(path, figure)
    return title


def _title(seen: "Visualisation", name: str, method: str) -> str:
    patches = seen.grid**2
    if seen.kept is not None:
        return f"{name}: {method} keeps {len(seen.kept)} of {patches} patches as they are"
    tokens = patches // seen.window**2
    if seen.window == 1:
        return f"{name}: each of {patches} patches is a token"
    return f"{name}: {patches} patches in windows of {seen.window}x{seen.window} become {tokens} tokens"


def _draw_image(axes: Axes, seen: "Visualisation") -> None:
    axes.imshow(seen.image, extent=(0, seen.grid, seen.grid, 0), interpolation="bilinear")
    axes.set_axis_off()


def _draw_grid(axes: Axes, grid: int) -> None:
    places = range(grid + 1)
    axes.hlines(places, 0, grid, colors="white", linewidth=0.7, alpha=0.7)
    axes.vlines(places, 0, grid, colors="white", linewidth=0.7, alpha=0.7)


def _draw_windows(axes: Axes, grid: int, window: int) -> None:
    _draw_grid(axes, grid)
    inset = 0.06
    corners = [(left + inset, top + inset) for top in range(0, grid, window) for left in range(0, grid, window)]
    side = window - 2 * inset
    boxes = [Rectangle(corner, side, side) for corner in corners]
    axes.add_collection(PatchCollection(boxes, facecolor="none", edgecolor=WINDOW_INK, linewidth=1.8))


def _draw_kept(axes: Axes, grid: int, kept: list[int]) -> None:
    """Patches that are dropped go white, those kept stay as they are in a frame."""
    dropped = sorted(set(range(grid**2)) - set(kept))
    boxes = [Rectangle((index % grid, index // grid), 1, 1) for index in dropped]
    axes.add_collection(PatchCollection(boxes, facecolor="white", alpha=0.8, linewidth=0))
    boxes = [Rectangle((index % grid, index // grid), 1, 1) for index in kept]
    axes.add_collection(PatchCollection(boxes, facecolor="none", edgecolor=WINDOW_INK, linewidth=1.5))


def _draw_contributions(
    part: SubFigure, seen: "Visualisation", shares: list[np.ndarray], rows: int, columns: int
) -> None:
    """A map for each state, all on one scale, so that they can be compared."""
    part.suptitle(CONTRIBUTION, color=INK, fontsize=11)
    axes = part.subplots(rows, columns, squeeze=False).flatten()
    for place in axes:
        place.set_axis_off()
    highest = max(share.max() for share in shares)
    for place, state, share in zip(axes, seen.states, shares, strict=False):
        drawn = place.imshow(share, vmin=0, vmax=highest, cmap="viridis", extent=(0, seen.grid, seen.grid, 0))
        place.set_title(f"{f'block {state}' if state else 'embedding'}: {share.mean():.0%} on average", fontsize=10)
    part.colorbar(drawn, ax=axes.tolist(), shrink=0.8, format="{x:.0%}")
