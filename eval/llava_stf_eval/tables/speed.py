"""The tables of speed in docs/, made of the files in docs/speed/ that `bench speed` and `measurement` wrote."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

from llava_stf_eval.tables.answers import read_measured
from llava_stf_eval.tables.markdown import markdown
from llava_stf_eval.tables.methods import TITLES


def read(docs: Path, name: str) -> dict[str, Any]:
    """A result of docs/speed/ by its name."""
    found: dict[str, Any] = read_measured(docs / "speed" / f"{name}.json")
    return found


def stages_table(docs: Path) -> str:
    """STF beside all tokens in the 7B shape: times, KV cache, peak memory, and how many times less they are."""
    full, stf = (next(row for row in read(docs, "7b-cpu")["rows"] if row["method"] == name) for name in ("full", "stf"))
    new = full["case"]["new_tokens"]
    rows = []
    for title, stage in (("time to first token", "first_token"), (f"with {new} new tokens", "end_to_end")):
        cells = [f"{row['stages'][stage]['median']:.1f} s" for row in (full, stf)]
        rows.append([title, *cells, f"{stf['stages'][stage]['times_faster']:.2f}x"])
    parts = (
        [f"{row['stages'][stage]['median']:.2f}" for stage in ("tower", "projector", "prefill")] for row in (full, stf)
    )
    rows.insert(1, ["of that: tower, projector, prefill", *(f"{', '.join(part)} s" for part in parts), ""])
    caches = [f"{row['kv_bytes'] / 2**20:.0f} MiB" for row in (full, stf)]
    rows.append(["KV cache of the prompt", *caches, f"{full['kv_bytes'] / stf['kv_bytes']:.2f}x"])
    rows.append(["peak memory", *(f"{row['peak_bytes'] / 2**30:.1f} GiB" for row in (full, stf)), ""])
    return markdown(["", "576 tokens", "144 tokens, STF", ""], rows)


def precision_table(docs: Path) -> str:
    """First tokens and further ones of one model in bfloat16 and in float32, on a CPU that has AVX2 alone."""
    rows = []
    for row in read(docs, "precision-avx2")["rows"]:
        stages = {name: stage["median"] for name, stage in row["stages"].items()}
        parts = ", ".join(f"{stages[name]:.2f}" for name in ("tower", "projector", "prefill"))
        dtype = row["run_by"].removeprefix("pytorch ")
        rows.append([dtype, f"{stages['first_token']:.2f} s", f"{parts} s", f"{1000 * stages['decode']:.0f} ms"])
    return markdown(["", "first token", "of that: tower, projector, prefill", "a further token"], rows)


def exports_table(docs: Path, name: str) -> str:
    """OpenVINO's exports beside PyTorch, at 576 and at 144 tokens."""
    found: dict[str, dict[int, dict[str, Any]]] = {}
    for row in read(docs, name)["rows"]:
        found.setdefault(row["run_by"], {})[row["vision_tokens"]] = row
    rows = []
    for run_by, at in found.items():
        library, weights = run_by.split()
        title = f"OpenVINO, `{weights}`" if library == "openvino" else f"PyTorch, {weights}"
        cells = [
            text
            for row in (at[576], at[144])
            for text in (f"{row['first_token']:.2f} s", f"{1000 * row['further_token']:.0f} ms")
        ]
        own = at[144].get("anonymous_bytes")
        memory = [f"{at[144]['resident_bytes'] / 2**30:.2f} GiB", "" if own is None else f"{own / 2**30:.2f} GiB"]
        rows.append([title, *cells, *memory])
    columns = "576 tokens: first", "further", "144 tokens: first", "further", "memory at 144", "without mapped files"
    return markdown(["run by", *columns], rows)


def choosing_table(docs: Path) -> str:
    """What choosing costs each method: seconds of computing in the parts of a first token."""
    rows = read(docs, "methods-cpu")["rows"]
    whole, lines = rows[0]["first token"], []
    for row in rows:
        chosen = row["choosing in the LLM"]
        lines.append([
            TITLES[row["method"]],
            f"{statistics.mean(row['per_layer']):.4g}",
            f"{row['first token']:.2f}",
            f"{whole / row['first token']:.2f}x",
            *(f"{1000 * seconds:.0f}" for seconds in (row["projector"], row["llm"])),
            f"{1000 * chosen:.0f}" if chosen else "",
        ])  # fmt: skip
    columns = f"mean over {len(rows[0]['per_layer'])} layers", "first token, s", "against all", "projector, ms"
    return markdown(["144 of 576 tokens kept", *columns, "LLM, ms", "of that choosing, ms"], lines)


def clock_table(docs: Path) -> str:
    """First tokens of all methods by the clock, the quickest last of them first."""
    rows = read(docs, "methods-1b-cpu")["rows"]
    lines = []
    for row in sorted(rows, key=lambda row: (row["method"] != "full", row["stages"]["first_token"]["median"])):
        first, projector = row["stages"]["first_token"], row["stages"]["projector"]
        cells = [f"{row['mean_tokens']:.4g}", f"{first['median']:.2f}", f"{first['times_faster']:.2f}x"]
        lines.append([TITLES[row["method"]], *cells, f"{1000 * projector['median']:.0f}"])
    layers = len(rows[0]["llm_tokens"])
    columns = f"mean over {layers} layers", "first token, s", "against all", "projector, ms"
    return markdown(["144 of 576 tokens kept", *columns], lines)


def selection_table(docs: Path) -> str:
    """What the choice alone takes, beside plain loops that choose the same."""
    rows = []
    for name, row in read(docs, "selection-cpu").items():
        taken, looped = row["milliseconds"], row["looped_milliseconds"]
        cells = ["", ""] if looped is None else [f"{looped:.1f}", f"**{looped / taken:.1f}x**"]
        rows.append([name, f"{taken:.1f}", *cells])
    title = "the choice alone, one image, 576 tokens of 1,024 or 4,096 channels"
    return markdown([title, "ms", "in plain loops, ms", ""], rows)
