"""The nine benchmarks, four on text and places beside them, and the two ways to run them through lmms-eval.

`lmms-eval` is that toolkit's own prompts and scoring; `llava` is what the scripts of LLaVA-1.5 do (prompts, answer
lengths, parsing, scores), as tasks of ours that include the toolkit's.

    lmms_eval --model llava_stf --model_args pretrained=tiny --tasks llava_pope \
        --include_path "$(python -m llava_stf_eval.protocols)"

OCRBench, DocVQA, ChartQA and RefCOCO, of which LLaVA-1.5 has no scripts, are lmms-eval's own tasks in both.

Of MMBench-CN lmms-eval has no variant without a judge; that task is ours in both protocols. Submission files go to
`submissions/` in lmms-eval's output path, or in the working folder where it has none.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Any

from llava_stf.errors import LlavaStfError, nearest
from llava_stf.io.publish import publish, reserve
from llava_stf_eval.requirements import lmms_eval_folder
from llava_stf_eval.scoring.boxes import RIGHT_OVERLAP, overlap
from llava_stf_eval.scoring.choices import option_letter, options_of

LMMS_EVAL, LLAVA = "lmms-eval", "llava"
PROTOCOLS = (LMMS_EVAL, LLAVA)
_TEMPLATES = Path(__file__).parent / "tasks"


@dataclass(frozen=True)
class Benchmark:
    """One benchmark.

    Attributes:
        name: its key everywhere.
        title: what a table calls it.
        metric: the headline score in words.
        scale: the largest value of `metric`.
        published_split: what the published figures were measured on.
        dataset: its id on the hub, as lmms-eval 0.7.3 asks for it; local copies stand in a folder of that name.
        task_names: for each protocol and split the lmms-eval task; the first split is the default.
        metrics: for each protocol the metric of lmms-eval's results that is the headline, and its factor.
        server: where answers to the split "test" are sent; `None` where every split is scored here.
        usual: whether it is one of the nine of LLaVA-1.5's tables, which are run where none is named.
    """

    name: str
    title: str
    metric: str
    scale: float
    published_split: str
    dataset: str
    task_names: dict[str, dict[str, str]]
    metrics: dict[str, tuple[str, float]]
    server: str | None = None
    usual: bool = True

    @property
    def splits(self) -> tuple[str, ...]:
        """Splits that LLaVA's protocol has; the first is the default."""
        return tuple(self.task_names[LLAVA])


def _theirs(**splits: str) -> dict[str, dict[str, str]]:
    """Tasks of lmms-eval by split, for both protocols."""
    return {LMMS_EVAL: splits, LLAVA: splits}


def _same(metric: str, factor: float) -> dict[str, tuple[str, float]]:
    return {LMMS_EVAL: (metric, factor), LLAVA: (metric, factor)}


_EXACT = {LMMS_EVAL: ("exact_match", 100.0), LLAVA: ("exact_match", 100.0)}
_MMBENCH = {LMMS_EVAL: ("gpt_eval_score", 1.0), LLAVA: ("circular_accuracy", 1.0)}
_MMBENCH_SERVER = "https://mmbench.opencompass.org.cn/mmbench-submission"

BENCHMARKS: dict[str, Benchmark] = {
    benchmark.name: benchmark
    for benchmark in (
        Benchmark(
            "vqav2", "VQAv2", "soft accuracy, %", 100, "test-dev", "lmms-lab-encoder/VQAv2",
            {LMMS_EVAL: {"val": "vqav2_val", "test": "vqav2_test"},
             LLAVA: {"val": "llava_vqav2_val", "test": "llava_vqav2_test"}}, _EXACT,
            "https://eval.ai/web/challenges/challenge-page/830",
        ),
        Benchmark(
            "gqa", "GQA", "accuracy, %", 100, "testdev balanced", "lmms-lab-encoder/GQA",
            {LMMS_EVAL: {"testdev": "gqa"}, LLAVA: {"testdev": "llava_gqa"}}, _EXACT,
        ),
        Benchmark(
            "vizwiz", "VizWiz", "soft accuracy, %", 100, "test", "lmms-lab-encoder/VizWiz-VQA",
            {LMMS_EVAL: {"val": "vizwiz_vqa_val", "test": "vizwiz_vqa_test"},
             LLAVA: {"val": "llava_vizwiz_val", "test": "llava_vizwiz_test"}}, _EXACT,
            "https://eval.ai/web/challenges/challenge-page/2185",
        ),
        Benchmark(
            "scienceqa", "ScienceQA-IMG", "accuracy, %", 100, "test, questions with an image",
            "lmms-lab-encoder/ScienceQA",
            {LMMS_EVAL: {"test": "scienceqa_img"}, LLAVA: {"test": "llava_scienceqa_img"}}, _EXACT,
        ),
        Benchmark(
            "textvqa", "TextVQA", "soft accuracy, %", 100, "val", "lmms-lab-encoder/textvqa",
            {LMMS_EVAL: {"val": "textvqa_val"}, LLAVA: {"val": "llava_textvqa_val"}}, _EXACT,
        ),
        Benchmark(
            "pope", "POPE", "F1, % (llava: mean of the three kinds)", 100, "COCO val2014, three kinds of negatives",
            "lmms-lab-encoder/POPE", {LMMS_EVAL: {"test": "pope"}, LLAVA: {"test": "llava_pope"}},
            {LMMS_EVAL: ("pope_f1_score", 100.0), LLAVA: ("pope_f1_mean", 100.0)},
        ),
        Benchmark(
            "mmbench", "MMBench", "circular accuracy, %", 100, "dev", "lmms-lab-encoder/MMBench",
            {LMMS_EVAL: {"dev": "mmbench_en_dev_static", "test": "mmbench_en_test"},
             LLAVA: {"dev": "llava_mmbench_en_dev", "test": "llava_mmbench_en_test"}}, _MMBENCH,
            _MMBENCH_SERVER,
        ),
        Benchmark(
            "mmbench_cn", "MMBench-CN", "circular accuracy, %", 100, "dev", "lmms-lab-encoder/MMBench",
            {LMMS_EVAL: {"dev": "mmbench_cn_dev_static", "test": "mmbench_cn_test"},
             LLAVA: {"dev": "llava_mmbench_cn_dev", "test": "llava_mmbench_cn_test"}}, _MMBENCH,
            _MMBENCH_SERVER,
        ),
        Benchmark(
            "mme", "MME", "perception score", 2000, "perception", "lmms-lab-encoder/MME",
            {LMMS_EVAL: {"test": "mme"}, LLAVA: {"test": "llava_mme"}},
            {LMMS_EVAL: ("mme_perception_score", 1.0), LLAVA: ("mme_perception_score", 1.0)},
        ),
        Benchmark(
            "ocrbench", "OCRBench", "right answers of 1,000", 1000, "test", "echo840/OCRBench",
            _theirs(test="ocrbench"), _same("ocrbench_accuracy", 1000.0), usual=False,
        ),
        Benchmark(
            "docvqa", "DocVQA", "ANLS, %", 100, "val", "lmms-lab-encoder/DocVQA",
            _theirs(val="docvqa_val"), _same("anls", 100.0), usual=False,
        ),
        Benchmark(
            "chartqa", "ChartQA", "relaxed accuracy, %", 100, "test", "lmms-lab-encoder/ChartQA",
            _theirs(test="chartqa"), _same("relaxed_overall", 100.0), usual=False,
        ),
        Benchmark(
            "refcoco", "RefCOCO", "boxes with an IoU of at least 0.5, %", 100, "val", "lmms-lab-encoder/RefCOCO",
            _theirs(**{split: f"refcoco_bbox_rec_{split}" for split in ("val", "testA", "testB")}),
            _same("refcoco_ACC@0.5", 100.0), usual=False,
        ),
    )
}  # fmt: skip
USUAL = tuple(name for name, benchmark in BENCHMARKS.items() if benchmark.usual)


def parse(name: str) -> tuple[Benchmark, str]:
    """A benchmark and its split from "pope" (the default split, scored here) or "vqav2:test".

    Raises:
        LlavaStfError: an unknown benchmark or split; it names the nearest.
    """
    key, _, split = name.partition(":")
    benchmark = BENCHMARKS.get(key)
    if benchmark is None:
        raise LlavaStfError(f"Unknown benchmark '{key}': {nearest(key, BENCHMARKS)}")
    if split and split not in benchmark.splits:
        raise LlavaStfError(f"Unknown split of {key} '{split}': {nearest(split, benchmark.splits)}")
    return benchmark, split or benchmark.splits[0]


def tasks(benchmark: str, protocol: str) -> list[str]:
    """The lmms-eval tasks to run for a benchmark, or "benchmark:split".

    Raises:
        LlavaStfError: an unknown name.
    """
    found, split = parse(benchmark)
    return [found.task_names[_known(protocol)][split]]


def needs_server(benchmark: str, protocol: str, split: str | None = None) -> bool:
    """Whether the split (default: the one in the name, or the first) gives a submission file and no score."""
    found, named = parse(f"{benchmark}:{split}" if split else benchmark)
    _known(protocol)
    return named == "test" and found.server is not None


def headline(benchmark: str, protocol: str, results: dict[str, dict[str, Any]]) -> float | None:
    """The one score, on the published scale, from lmms-eval's `results["results"]`; `None` where a server scores."""
    if needs_server(benchmark, protocol):
        return None
    metric, factor = parse(benchmark)[0].metrics[_known(protocol)]
    value = results[tasks(benchmark, protocol)[0]].get(f"{metric},none")
    return factor * value if isinstance(value, (int, float)) else None


def sample_score(benchmark: str, protocol: str, sample: dict[str, Any]) -> float | None:
    """One answer's score from 0 to 1, from a sample that lmms-eval logged; `None` where a server scores.

    It is the row's own: of MMBench each rotation counts, of MME each question of a pair.
    """
    if needs_server(benchmark, protocol):
        return None
    metric, _ = parse(benchmark)[0].metrics[_known(protocol)]
    value = sample.get(metric, sample.get("mme_cognition_score"))
    if not isinstance(value, dict):
        return value
    if "score" in value:
        return value["score"]
    if "bbox" in value:
        return float(overlap(value["bbox"], value["pred"]) >= RIGHT_OVERLAP)
    return float(option_letter(value["prediction"], options_of(value)) == value["answer"])


def include_path(protocol: str) -> Path:
    """The folder for lmms-eval's `--include_path`: our task files, complete, for the lmms-eval that is installed.

    An included file has to be named by its absolute path, which differs from machine to machine; so the files are
    written to the user's cache, in a folder named after their content. It is written once, and safely by several
    processes at a time.

    Raises:
        MissingDependencyError: lmms-eval is not installed.
        LlavaStfError: the protocol is unknown, or the cache cannot be written to.
    """
    _known(protocol)
    values = {"lmms_eval": str(lmms_eval_folder() / "tasks")}
    files = {path.name: Template(path.read_text()).substitute(values) for path in sorted(_TEMPLATES.glob("*.yaml"))}
    digest = hashlib.sha256(repr(files).encode()).hexdigest()[:16]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "llava_stf"
    folder = cache / f"tasks-{digest}"
    if folder.is_dir():
        return folder
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with reserve(folder, wait=True):
            if not folder.is_dir():  # not another process that was first
                with publish(folder) as beside:
                    for name, text in files.items():
                        (beside / name).write_text(text)
    except OSError as error:
        raise LlavaStfError(f"The task files cannot be written to {cache} ({error}); set XDG_CACHE_HOME.") from error
    return folder


def _known(protocol: str) -> str:
    if protocol not in PROTOCOLS:
        raise LlavaStfError(f"Unknown protocol '{protocol}': {nearest(protocol, PROTOCOLS)}")
    return protocol


if __name__ == "__main__":
    print(include_path(LLAVA))
