"""Ways to fewer vision tokens on the bundled model: answers of `llava_stf_eval.drawn`, times of `bench speed`.

Answers are those in docs/reduction/, one file for each command of docs/reduction.md, and of the models of three seeds
in docs/bundled/. Times are those of the 7B shape in docs/speed/7b-cpu.json.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llava_stf_eval.tables.answers import read_answers, read_kinds, read_measured
from llava_stf_eval.tables.markdown import markdown, spread

TITLES = {
    "full": "all tokens",
    "stf": "**STF and MBTF**",
    "pool": "mean pooling",
    "m3": "M3",
    "tokenpacker": "TokenPacker",
    "mqt": "MQT",
    "random": "random patches",
    "resize": "bilinear resize",
    "tome": "ToMe",
    "visionzip": "VisionZip",
    "prumerge+": "PruMerge+",
    "holov": "HoloV",
    "vispruner": "VisPruner",
    "divprune": "DivPrune",
    "fastv": "FastV",
    "sparsevlm": "SparseVLM",
    "pyramiddrop": "PyramidDrop",
    "dart": "DART",
}
# What is asked with options has a file of its own; README shows these, and those of SHOWN.
VARIANTS = {
    "tome-raster": ("tome", "ToMe, `order=raster`"),
    "visionzip-ours": ("visionzip", "VisionZip, all four options ours"),
}
SHOWN = "divprune", "fastv", "tome-raster", "visionzip-ours", "pool"


@dataclass(frozen=True)
class Asked:
    """One way: its title, whether it was trained ("" of all tokens), its row of times, and what the model answered."""

    title: str
    trained: str
    method: str
    results: list[dict[str, Any]]

    @property
    def accuracy(self) -> float:
        """Share of right answers, mean of the seeds."""
        return statistics.mean(result["accuracy"] for result in self.results)

    @property
    def mean_tokens(self) -> float:
        """Vision tokens, mean over the LLM's layers."""
        return float(self.results[0]["mean_tokens"])


def read_asked(docs: Path) -> dict[str, Asked]:
    """All ways by name: all tokens, those that were trained, the others by their right answers, in the LLM last."""
    files = sorted((docs / "reduction").glob("*.json"))
    found = dict(zip((file.stem for file in files), read_answers(files), strict=True))
    plain = {result["model"]: [result] for result in found.pop("answers")}
    seeds = {
        kind: [results[0] for results in runs.values()]
        for kind, runs in read_kinds(docs / "bundled", ("pool", "fused")).items()
    }
    asked = {
        "full": Asked(TITLES["full"], "", "full", plain.pop("tiny-full")),
        "pooled": Asked(f"{TITLES['pool']}, three seeds", "yes", "pool", seeds["pool"]),
        "fused": Asked(f"{TITLES['stf']}, three seeds", "yes", "stf", seeds["fused"]),
        "tiny": Asked("STF and MBTF, one model for 64, 16 and 4 (`tiny`)", "yes", "stf", plain.pop("tiny")),
    }
    others = {name: Asked(TITLES[name], "no", name, results) for name, results in plain.items()}
    for name, (method, title) in VARIANTS.items():
        others[name] = Asked(title, "no", method, found[name])
    kept = asked["tiny"].mean_tokens
    return asked | dict(sorted(others.items(), key=lambda pair: (pair[1].mean_tokens > kept, -pair[1].accuracy)))


def read_times(docs: Path) -> dict[str, dict[str, Any]]:
    """The rows of the 7B shape by method."""
    return {row["method"]: row for row in read_measured(docs / "speed" / "7b-cpu.json")["rows"]}


def answers_table(docs: Path) -> str:
    """Markdown, a row for each way: the bundled model's tokens and answers, the tokens and times of the 7B shape."""
    times, rows = read_times(docs), []
    for one in read_asked(docs).values():
        reading = statistics.mean(result["families"]["text"] for result in one.results)
        cells = [f"{one.mean_tokens:.4g}", f"{100 * one.accuracy:.1f}", f"{100 * reading:.0f}", "", "", ""]
        if one.method in times:
            row = times[one.method]
            first = row["stages"]["first_token"]
            faster = "" if one.method == "full" else f"{first['times_faster']:.2f}x"
            cells[3:] = [f"{_image_tokens(row):.0f}", f"{first['median']:.1f} s", faster]
        rows.append([one.title, one.trained, *cells])
    columns = "mean of 64", "right answers, %", "reading, %", "mean of 576", "first token, 7B shape", "against all"
    return markdown(["", "trained", *columns], rows, words=2)


def summary_table(docs: Path) -> str:
    """Markdown, the rows that README shows."""
    times, asked, rows = read_times(docs), read_asked(docs), []
    for name in ("full", "fused", "pooled", *SHOWN):
        one, row = asked[name], times[asked[name].method]
        cells = [f"{100 * one.accuracy:.1f} %", f"{row['stages']['first_token']['median']:.1f} s"]
        cells.append(f"{row['kv_bytes'] / 2**20:.0f} MiB")
        title = one.title
        if name != "full" and one.mean_tokens > asked["tiny"].mean_tokens:
            title += f", mean over layers {one.mean_tokens:.4g} and {_image_tokens(row):.0f}"
        rows.append([title, one.trained, *cells])
    columns = (
        "right answers, 16 of 64 tokens kept",
        "time to first token, 144 of 576 kept",
        "KV cache of the prompt",
    )
    return markdown(["", "trained", *columns], rows, words=2)


def size_table(docs: Path) -> str:
    """Markdown, two rows for each method, without and with the size of merged tokens in the LLM's attention."""
    kinds = read_kinds(docs / "reduction" / "size", ("plain", "biased"), of_one_seed=False)
    seeds, rows = list(kinds["plain"]), []
    shares = {
        (kind, result["model"], seed): 100 * result["accuracy"]
        for kind, found in kinds.items()
        for seed, results in found.items()
        for result in results
    }
    for method in ("pool", "tome"):
        plain, biased = ([shares[kind, method, seed] for seed in seeds] for kind in ("plain", "biased"))
        gains = [more - less for less, more in zip(plain, biased, strict=True)]
        rows.append([TITLES[method], *(f"{share:.1f}" for share in plain), ""])
        rows.append([f"{TITLES[method]}, `attention_bias=true`", *(f"{share:.1f}" for share in biased), spread(gains)])
    return markdown(["", *(f"seed {seed}" for seed in seeds), "gain"], rows)


def _image_tokens(row: dict[str, Any]) -> float:
    """Tokens of the image that the 7B shape's LLM sees, mean over its layers."""
    return statistics.mean(row["llm_tokens"]) - float(row["case"]["text_tokens"])
