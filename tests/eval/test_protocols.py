"""Names, splits, task files and headline scores of the two protocols."""

import subprocess
import sys

import pytest
import yaml

from llava_stf.errors import LlavaStfError, MissingDependencyError
from llava_stf_eval import protocols, requirements
from llava_stf_eval.protocols import BENCHMARKS, PROTOCOLS
from llava_stf_eval.tasks import prompts

NEEDS_LMMS_EVAL = "task files include lmms-eval's: pip install --no-deps lmms-eval==0.7.3"


class _Loader(yaml.SafeLoader):
    """Reads task files with the names of their functions in the functions' place."""


_Loader.add_constructor("!function", lambda loader, node: loader.construct_scalar(node))


@pytest.fixture
def task_files(tmp_path, monkeypatch):
    """Our task files as lmms-eval reads them: by task name, with what they include."""
    pytest.importorskip("lmms_eval", reason=NEEDS_LMMS_EVAL)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    def read(path):
        task = yaml.load(path.read_text(), _Loader)
        included = task.pop("include", None)
        return {**(read(path.parent / included) if included else {}), **task}

    return {path.stem: read(path) for path in protocols.include_path("llava").glob("*.yaml")}


def test_every_task_exists_and_reads_the_data_set_that_is_promised(task_files):
    theirs = {path.stem: path for path in (requirements.lmms_eval_folder() / "tasks").rglob("*.yaml")}
    for benchmark in BENCHMARKS.values():
        for protocol in PROTOCOLS:
            for split in benchmark.splits:
                (task,) = protocols.tasks(f"{benchmark.name}:{split}", protocol)
                assert task in task_files or task in theirs, task
        if not benchmark.usual:
            assert benchmark.task_names["llava"] == benchmark.task_names["lmms-eval"]
            continue
        ours = task_files[protocols.tasks(benchmark.name, "llava")[0]]
        assert ours["dataset_path"] == benchmark.dataset
        assert ours["task"] == protocols.tasks(benchmark.name, "llava")[0]


def test_llava_answers_are_greedy_as_long_as_the_official_and_end_at_the_end_token(task_files):
    for name, task in task_files.items():
        if name.startswith("llava_"):
            options = task["generation_kwargs"]
            long = "scienceqa" in name or "mmbench" in name
            assert options == {
                "until": [], "max_new_tokens": 1024 if long else 128, "temperature": 0, "do_sample": False,
            }  # fmt: skip


def test_no_task_needs_a_judge_or_a_server_but_for_test_splits(task_files):
    for name, task in task_files.items():
        aggregations = {metric["metric"]: metric["aggregation"] for metric in task["metric_list"]}
        assert not any("results_eval" in str(aggregation) for aggregation in aggregations.values())
        assert (set(aggregations) == {"submission"}) == (name.endswith("_test") and name != "llava_pope_test")


def test_task_files_are_written_once_and_named_after_their_content(tmp_path, monkeypatch):
    pytest.importorskip("lmms_eval", reason=NEEDS_LMMS_EVAL)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = protocols.include_path("llava")
    (file,) = folder.glob("llava_pope.yaml")
    written = file.stat().st_mtime_ns
    assert protocols.include_path("lmms-eval") == folder
    assert file.stat().st_mtime_ns == written
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]  # nothing half-written is left
    monkeypatch.setattr(protocols, "lmms_eval_folder", lambda: tmp_path / "another")
    other = protocols.include_path("llava")
    assert other != folder
    assert f"include: {tmp_path}/another/tasks/pope/pope.yaml" in (other / "llava_pope.yaml").read_text()


def test_a_cache_that_cannot_be_written_to_is_one_sentence(tmp_path, monkeypatch):
    pytest.importorskip("lmms_eval", reason=NEEDS_LMMS_EVAL)
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(LlavaStfError, match="set XDG_CACHE_HOME"):
        protocols.include_path("llava")


def test_without_lmms_eval_the_pip_line_is_given(monkeypatch):
    monkeypatch.setattr(requirements, "find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match="pip install --no-deps lmms-eval"):
        protocols.include_path("llava")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: protocols.tasks("popes", "llava"), "Unknown benchmark 'popes'.*did you mean 'pope'"),
        (lambda: protocols.tasks("mmbench-cn", "llava"), "did you mean 'mmbench_cn'"),
        (lambda: protocols.tasks("vqav2:tset", "llava"), "Unknown split of vqav2 'tset'.*did you mean 'test'"),
        (lambda: protocols.tasks("gqa:test", "llava"), "expected one of testdev"),
        (lambda: protocols.tasks("pope", "lava"), "Unknown protocol 'lava'.*did you mean 'llava'"),
    ],
)
def test_unknown_names_give_the_nearest(call, message):
    with pytest.raises(LlavaStfError, match=message):
        call()


def test_default_splits_are_scored_here_and_servers_take_the_others():
    for name in BENCHMARKS:
        for protocol in PROTOCOLS:
            assert not protocols.needs_server(name, protocol)
    served = {name for name, benchmark in BENCHMARKS.items() if benchmark.server}
    assert served == {"vqav2", "vizwiz", "mmbench", "mmbench_cn"}
    assert all(protocols.needs_server(name, "llava", "test") for name in served)
    assert all(protocols.needs_server(f"{name}:test", "llava") for name in served)
    assert not protocols.needs_server("pope", "llava", "test")


@pytest.mark.parametrize(
    ("benchmark", "protocol", "results", "expected"),
    [
        ("gqa", "lmms-eval", {"gqa": {"exact_match,none": 0.62}}, 62.0),
        ("pope", "lmms-eval", {"pope": {"pope_f1_score,none": 0.859, "pope_accuracy,none": 0.9}}, 85.9),
        ("pope", "llava", {"llava_pope": {"pope_f1_mean,none": 0.86, "pope_f1_random,none": 0.9}}, 86.0),
        ("mmbench", "lmms-eval", {"mmbench_en_dev_static": {"gpt_eval_score,none": 64.3}}, 64.3),
        ("mmbench_cn", "llava", {"llava_mmbench_cn_dev": {"circular_accuracy,none": 58.9}}, 58.9),
        ("mme", "llava", {"llava_mme": {"mme_perception_score,none": 1510.7}}, 1510.7),
        ("vqav2:test", "llava", {"llava_vqav2_test": {"submission,none": None}}, None),
    ],
)
def test_headline_is_on_the_published_scale(benchmark, protocol, results, expected):
    assert protocols.headline(benchmark, protocol, results) == (expected and pytest.approx(expected))


@pytest.mark.parametrize(
    ("benchmark", "protocol", "sample", "expected"),
    [
        ("vqav2", "llava", {"exact_match": 0.3}, 0.3),
        ("pope", "lmms-eval", {"pope_f1_score": {"score": 1.0, "prediction": "yes"}}, 1.0),
        ("mme", "llava", {"mme_cognition_score": {"score": 0.0}}, 0.0),
        ("mmbench", "lmms-eval",
         {"gpt_eval_score": {"prediction": "B. cat", "answer": "B", "A": "dog", "B": "cat", "C": "nan"}}, 1.0),
        ("mmbench_cn", "lmms-eval", {"gpt_eval_score": {"prediction": "C", "answer": "B", "A": "x", "B": "y"}}, 0.0),
        ("vizwiz:test", "llava", {"submission": {"image": "a.jpg"}}, None),
    ],
)  # fmt: skip
def test_sample_score_is_the_rows_own(benchmark, protocol, sample, expected):
    assert protocols.sample_score(benchmark, protocol, sample) == expected


LETTER = {"post_prompt": "\nAnswer with the option's letter."}


def test_scienceqa_prompt_has_a_context_line_even_without_context():
    row = {"hint": "", "question": "Which is soft?", "choices": ["rock", "pillow"]}
    assert prompts.scienceqa(row, LETTER) == (
        "Context: N/A\nQuestion: Which is soft?\nOptions: (A) rock (B) pillow\nAnswer with the option's letter."
    )
    assert prompts.scienceqa({**row, "hint": "Feel it."}, LETTER).startswith("Context: Feel it.\nQuestion: ")


def test_mmbench_prompt_has_no_header_and_the_hint_on_its_own_line():
    row = {"hint": "nan", "question": "Which?", "A": "1", "B": "2", "C": "nan", "D": None}
    assert prompts.mmbench(row, LETTER) == "Which?\nA. 1\nB. 2\nAnswer with the option's letter."
    assert prompts.mmbench({**row, "hint": "Look."}, LETTER).startswith("Look.\nWhich?\nA. 1")


def test_the_module_prints_the_include_path(tmp_path, monkeypatch):
    pytest.importorskip("lmms_eval", reason=NEEDS_LMMS_EVAL)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    command = [sys.executable, "-m", "llava_stf_eval.protocols"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    assert printed == str(protocols.include_path("llava"))
