"""The tables of answers in docs/evaluate.md and docs/export.md, of the bundled models on drawn data.

Results are those of `bench tasks`, one folder for each run in docs/evaluate/, of `bench turns --json` and of
`llava_stf_eval.measurement.export_answers`.
"""

from __future__ import annotations

from pathlib import Path

from llava_stf_eval.report.published import find_published
from llava_stf_eval.report.runs import load_run
from llava_stf_eval.report.scores import NONE, title
from llava_stf_eval.tables.answers import read_measured
from llava_stf_eval.tables.markdown import markdown
from llava_stf_eval.tables.methods import TITLES

RUNS = {
    "full": "all tokens (64)",
    "pool": "pooled, untrained (16)",
    "stf": "**STF and MBTF (16)**",
    "stf-lmms-eval": "protocol `lmms-eval` (16)",
}
LIBRARIES = {"pytorch": "PyTorch", "openvino": "OpenVINO", "onnx": "ONNX Runtime"}


def benchmarks_table(docs: Path) -> str:
    """Markdown, a row for each benchmark: the runs of docs/evaluate/, then what is published of 7B on the real data."""
    runs = {name: load_run(docs / "evaluate" / name) for name in RUNS}
    published = [find_published("full", 576), find_published("stf", 144)]
    rows = []
    for name, asked in runs["stf"].benchmarks.items():
        scores = [run.benchmarks[name].score for run in runs.values()]
        cells = [NONE if score is None else f"{score:.1f}" for score in scores]
        cells += [row.text(name) or NONE for row in published if row is not None]
        rows.append([title(name), f"{asked.questions:,}", *cells])
    return markdown(["", "asked", *RUNS.values(), "7B, 576", "7B, 144"], rows)


def turns_table(docs: Path) -> str:
    """Markdown, two rows for each method: right answers of each turn, read again and from the cache."""
    found = read_measured(docs / "evaluate" / "turns.json")
    rows = []
    for row in found:
        for way, said in (("again", "read again"), ("cached", "from the cache")):
            rows.append([f"{TITLES[row['method']]}, {said}", *(f"{100 * share:.0f}" for share in row[way])])
    return markdown(["", *(f"turn {turn + 1}" for turn in range(len(found[0]["again"])))], rows)


def exports_table(docs: Path) -> str:
    """Markdown, a row for each way to run the same model: right answers, and how many equal PyTorch's in float32."""
    rows = []
    for row in read_measured(docs / "evaluate" / "exports.json")["rows"]:
        library, weights, *cache = row["run_by"].split("-")
        way = f"{LIBRARIES[library]}, {weights}" + (", cache `u8`" if cache == ["u8"] else "")
        rows.append([way, f"{100 * row['right'] / row['questions']:.1f} %", f"{row['equal']:,}"])
    return markdown(["run by", "right answers", "same ids as PyTorch in float32"], rows)
