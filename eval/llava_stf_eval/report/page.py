"""One self-contained HTML page: tables, plots, and answers to browse with their images. No network, no other file.

Everything that a model or a data set wrote is escaped by the template or shown as text by the script; a content policy
in the page keeps the browser from fetching anything or running another script.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

from llava_stf_eval.report.images import BUDGET, embed_images

LONGEST = 600  # characters of a text; a model may answer without end


@dataclass(frozen=True)
class Table:
    """A table of the page: the first cell of each row is its name; `facts` fold away below it."""

    title: str
    headers: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = ()
    facts: Sequence[tuple[str, str]] = ()


@dataclass(frozen=True)
class Plot:
    """The same plot for light and dark pages, as `data:` addresses, and what it shows in words."""

    light: str
    dark: str
    alt: str


@dataclass(frozen=True)
class Item:
    """An answer to browse: `benchmark` and `group` are what one can filter by, `facts` names and texts."""

    benchmark: str
    group: str
    question: str
    facts: Sequence[tuple[str, str]]
    image: Path | None


@dataclass(frozen=True)
class Page:
    """What `render` makes a page of. `published` are rows with title, tokens, trained, cells and source."""

    title: str
    subtitle: str
    tables: Sequence[Table]
    items_title: str
    items_note: str
    group_label: str
    items: Sequence[Item]
    plots: Sequence[Plot] = ()
    published_columns: Sequence[str] = ()
    published: Sequence[dict[str, Any]] = field(default=())


def fair_share(counts: Sequence[int], total: int) -> list[int]:
    """How many of each kind to take, at most `total` together: all of the small kinds, the large ones alike."""
    shares = [0] * len(counts)
    ascending = sorted(range(len(counts)), key=counts.__getitem__)
    for done, index in enumerate(ascending):
        shares[index] = min(counts[index], total // (len(counts) - done))
        total -= shares[index]
    return shares


def render(page: Page, *, budget: int = BUDGET) -> str:
    """The page as HTML; images that exceed `budget` characters together are left out, evenly over the benchmarks."""
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    folder = files("llava_stf_eval").joinpath("report")
    script = folder.joinpath("page.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")
    environment = Environment(
        loader=PackageLoader("llava_stf_eval", "report"), autoescape=True, undefined=StrictUndefined
    )
    return environment.get_template("page.html").render(
        **{name: getattr(page, name) for name in page.__dataclass_fields__},
        data=_data(page.items, budget),
        style=Markup(folder.joinpath("page.css").read_text(encoding="utf-8")),
        script=Markup(script),
        script_hash=f"sha256-{digest}",
    )


def shorten(text: object) -> str:
    """A text of at most `LONGEST` characters."""
    text = str(text)
    return text if len(text) <= LONGEST else text[:LONGEST] + " …"


def _data(items: Sequence[Item], budget: int) -> dict[str, Any]:
    """What the script reads: items, and images by number."""
    images = embed_images(_in_turn(items), budget=budget)
    numbers = {path: str(number) for number, path in enumerate(images)}
    return {
        "items": [
            {
                "benchmark": item.benchmark,
                "group": item.group,
                "question": shorten(item.question),
                "facts": [(name, shorten(value)) for name, value in item.facts],
                "image": None if item.image is None else numbers.get(item.image),
                "missing": "no image" if item.image is None else f"not embedded: {item.image.name}",
            }
            for item in items
        ],
        "images": {numbers[path]: address for path, address in images.items()},
    }


def _in_turn(items: Iterable[Item]) -> Iterable[Path]:
    """The images' paths, the benchmarks taking turns."""
    paths: dict[str, list[Path]] = {}
    for item in items:
        if item.image is not None:
            paths.setdefault(item.benchmark, []).append(item.image)
    return (path for path in chain.from_iterable(zip_longest(*paths.values())) if path is not None)
