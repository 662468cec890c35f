"""The drawing of `llava-stf show` for an image in tiles: base tile, joined tiles, their windows and newlines."""

from pathlib import Path
from typing import TYPE_CHECKING

from matplotlib.axes import Axes
from matplotlib.collections import LineCollection, PatchCollection
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from llava_stf.cli.show_figure import INK, WINDOW_INK
from llava_stf.io.publish import write_figure

if TYPE_CHECKING:
    from llava_stf.analysis.tiled_view import TiledView

NEWLINE_INK = "#2563eb"
_NEWLINE = 0.35  # of a window, the width of a newline's mark


def save_tiles(path: Path, seen: "TiledView", *, name: str) -> str:
    """Writes the PNG, the old file or the new one and never half of it, and returns its title."""
    rows, columns = seen.tiles
    width = 4.2 + 4.2 * columns / max(rows, columns) + 0.6
    figure = Figure(figsize=(width, 5.4), facecolor="white", layout="constrained")
    base, joined = figure.subplots(1, 2, width_ratios=[1, max(1.0, columns / rows)])
    title = _title(seen, name)
    figure.suptitle(title, color=INK, fontsize=12, parse_math=False)
    side = seen.cells
    base.imshow(seen.base, extent=(0, side, side, 0), interpolation="bilinear")
    _draw_windows(base, range(side), range(side))
    base.set_title(f"the whole image: {side * side} tokens", fontsize=11)
    joined.imshow(seen.joined, extent=(0, columns * side, rows * side, 0), interpolation="bilinear")
    _veil(joined, seen)
    _draw_windows(joined, seen.rows, seen.columns)
    borders = [[(0, at * side), (columns * side, at * side)] for at in range(rows + 1)]
    borders += [[(at * side, 0), (at * side, rows * side)] for at in range(columns + 1)]
    joined.add_collection(LineCollection(borders, colors=INK, linewidths=1.6))
    _draw_newlines(joined, seen)
    joined.set_xlim(-0.2, columns * side + 1.2)
    joined.set_title(_rows_in_words(seen), fontsize=11)
    for axes in (base, joined):
        axes.set_axis_off()
    write_figure(path, figure)
    return title


def _title(seen: "TiledView", name: str) -> str:
    rows, columns = seen.tiles
    windows = "each patch" if seen.window == 1 else f"each {seen.window}x{seen.window} patches"
    return f"{name}: {rows}x{columns} tiles and the whole image, {windows} a token: {seen.tokens} tokens"


def _rows_in_words(seen: "TiledView") -> str:
    if not len(seen.rows) or not len(seen.columns):
        return "the tiles: too thin to leave a row"
    rows, columns = seen.shape
    shrunk = "" if (rows, columns) == (len(seen.rows), len(seen.columns)) else ", shrunk"
    return f"the tiles{shrunk}: {rows} rows of {columns} tokens and a newline"


def _veil(axes: Axes, seen: "TiledView") -> None:
    """What only pads the image goes white."""
    height, width = seen.tiles[0] * seen.cells, seen.tiles[1] * seen.cells
    top, bottom = (seen.rows.start, seen.rows.stop)
    left, right = (seen.columns.start, seen.columns.stop)
    boxes = [
        Rectangle((0, 0), width, top),
        Rectangle((0, bottom), width, height - bottom),
        Rectangle((0, top), left, bottom - top),
        Rectangle((right, top), width - right, bottom - top),
    ]
    axes.add_collection(PatchCollection(boxes, facecolor="white", alpha=0.75, linewidth=0))


def _draw_windows(axes: Axes, rows: range, columns: range) -> None:
    inset = 0.06
    boxes = [Rectangle((left + inset, top + inset), 1 - 2 * inset, 1 - 2 * inset) for top in rows for left in columns]
    axes.add_collection(PatchCollection(boxes, facecolor="none", edgecolor=WINDOW_INK, linewidth=0.8))


def _draw_newlines(axes: Axes, seen: "TiledView") -> None:
    """A mark behind each row that a newline follows; rows of a shrunk image are not those of its windows."""
    right = seen.tiles[1] * seen.cells + 0.3
    height = len(seen.rows) / max(1, seen.shape[0])
    boxes = [
        Rectangle((right, seen.rows.start + (row + 0.2) * height), _NEWLINE, 0.6 * height)
        for row in range(seen.shape[0] if len(seen.rows) else 0)
    ]
    axes.add_collection(PatchCollection(boxes, facecolor=NEWLINE_INK, linewidth=0))
