"""The runner: a stopped run that goes on, a failure that stays alone, refusals before a model is loaded, downloads."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from filelock import FileLock

from llava_stf import load_model
from llava_stf.errors import DataError, LlavaStfError
from llava_stf_eval.benchmarks.child import failure
from llava_stf_eval.benchmarks.folder import open_run, sole_user
from llava_stf_eval.benchmarks.models import ModelOptions
from llava_stf_eval.benchmarks.run import TaskOptions, run_tasks
from llava_stf_eval.measurement.machine import versions
from llava_stf_eval.protocols import BENCHMARKS

pytest.importorskip("lmms_eval", reason="lmms-eval is installed by hand, see eval/README.md")


def parquet_files(data: Path, benchmark: str) -> list[Path]:
    return sorted((data / BENCHMARKS[benchmark].dataset).rglob("*.parquet"))


def rewrite(file: Path, change) -> None:
    """Puts the table that `change` makes of a parquet file in its place."""
    from pyarrow import parquet

    parquet.write_table(change(parquet.read_table(file)), file)


def with_broken_images(table):
    import pyarrow

    place = table.schema.get_field_index("image")
    broken = pyarrow.array([{"bytes": b"no image", "path": None}] * len(table), table.schema.field("image").type)
    return table.set_column(place, table.schema.field("image"), broken)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Drawn POPE, and an MME whose schema is right and whose images are broken."""
    from llava_stf_eval.data.drawn import write_benchmarks

    folder = tmp_path_factory.mktemp("data")
    write_benchmarks(folder, images=4, benchmarks=["pope", "mme"])
    for file in parquet_files(folder, "mme"):
        rewrite(file, with_broken_images)
    return folder


@pytest.fixture
def options(data, tmp_path):
    return TaskOptions(ModelOptions("tiny"), ["pope"], "llava", tmp_path / "out", data, batch_size=4)


class Stopped(Exception):
    pass


def test_a_stopped_run_goes_on_and_a_failure_stays_alone(data, options, capsys, monkeypatch, tmp_path):
    from datasets import load_dataset

    from llava_stf_eval.cli import bench

    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))

    def stop(name, done, total):
        if done >= 8:
            raise Stopped  # closes the pipe that the child watches: it ends at once, wherever it is

    with pytest.raises(Stopped):
        run_tasks(options, stop)
    out = options.output
    journal = out / "parts" / "pope.answers.jsonl"
    kept = journal.read_text().splitlines()
    assert 2 <= len(kept) < 5
    assert not (out / "results.json").exists()

    arguments = ["--data", data, "--output", out, "--batch-size", 4, "--tasks", "pope,mme", "--resume"]
    code = bench(["tasks", *map(str, arguments)], standalone_mode=False)
    said = capsys.readouterr()
    assert code == 1
    assert said.err.splitlines()[-1].startswith("1 of 2 benchmarks failed: mme")
    assert journal.read_text().splitlines()[: len(kept)] == kept

    results = json.loads((out / "results.json").read_text())
    assert results["complete"]
    mme, pope = results["benchmarks"]["mme"], results["benchmarks"]["pope"]
    assert (mme["status"], mme["score"]) == ("failed", None)
    assert "image" in mme["error"]
    assert (pope["status"], pope["error"]) == ("scored", None)
    assert (results["method"], results["vision_tokens"], results["protocol"]) == ("stf", 16, "llava")

    rows = load_dataset("parquet", data_files=[str(file) for file in parquet_files(data, "pope")][-1:])["train"]
    samples = [json.loads(line) for line in (out / "samples" / "pope.jsonl").read_text().splitlines()]
    assert pope["questions"] == len(samples) == len(rows)
    llava = load_model("tiny")
    asked = [row["question"] + "\nAnswer the question using a single word or phrase." for row in rows]
    order = sorted(range(len(rows)), key=lambda index: -len(asked[index]))
    answers = llava.ask_batch(
        [(rows[index]["image"], rows[index]["question"]) for index in order], batch_size=4
    )  # the batches that an undisturbed run forms
    expected = dict(zip(order, answers, strict=True))
    assert [sample["answer"] for sample in samples] == [expected[index] for index in range(len(rows))]
    for sample, row in zip(samples, rows, strict=True):
        assert sample["reference"] == row["answer"]
        assert sample["score"] == float(sample["answer"].lower() == row["answer"])
        assert row["question"] in sample["prompt"]
        assert (sample["image"] is None) == (sample["score"] == 1)
        assert sample["image"] is None or (out / sample["image"]).is_file()
    assert 0.5 < pope["metrics"]["pope_accuracy"] <= 1


def test_instructions_are_kept_where_they_are_asked_for(data, tmp_path):
    from llava_stf_eval.cli import bench

    arguments = ["--data", data, "--output", tmp_path / "out", "--tasks", "pope", "--limit", 4, "--batch-size", 4]
    assert bench(["tasks", *map(str, arguments), "--instructions"], standalone_mode=False) == 0
    lines = (tmp_path / "out" / "samples" / "pope.jsonl").read_text().splitlines()
    assert len(lines) == 4
    assert all("a single word or phrase." in json.loads(line)["prompt"] for line in lines)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"benchmarks": ["popes"]}, "Unknown benchmark 'popes'.*pope"),
        ({"benchmarks": ["pope:dev"]}, "Unknown split of pope 'dev'"),
        ({"protocol": "lava"}, "Unknown protocol 'lava'.*'llava'"),
        ({"limit": 0}, "limit must be at least 1"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"benchmarks": ["gqa"]}, "GQA.*expected the data set"),
        ({"model": ModelOptions("tiny-full", method="visionzipp")}, "did you mean 'visionzip'"),
        ({"model": ModelOptions("tiny", vision_tokens=5)}, "5"),
    ],
    ids=["benchmark", "split", "protocol", "limit", "batch", "data", "method", "budget"],
)
def test_bad_input_is_one_sentence_before_a_model_is_loaded(options, change, sentence, monkeypatch):
    monkeypatch.setattr("llava_stf_eval.benchmarks.run._run", lambda *_: pytest.fail("a benchmark was started"))
    with pytest.raises(LlavaStfError, match=sentence):
        run_tasks(replace(options, **change))
    assert not options.output.exists()


def test_a_model_that_is_no_llava_is_refused(options, tmp_path):
    folder = tmp_path / "other"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(LlavaStfError):
        run_tasks(replace(options, model=ModelOptions(str(folder))))
    assert not options.output.exists()


@pytest.mark.parametrize(
    ("where", "answer", "sentence"),
    [
        ("llava_stf.loading.weights.dtype_on_cpu", lambda *_: torch.float16, "dtype float32, and this one has float16"),
        (
            "llava_stf_eval.benchmarks.run.versions",
            lambda: {**versions(), "torch": "1.0"},
            f"version of torch {re.escape(versions()['torch'])}, and this one has 1.0",
        ),
    ],
    ids=["precision", "version"],
)
def test_a_run_does_not_go_on_where_answers_may_differ(options, monkeypatch, where, answer, sentence):
    monkeypatch.setattr("llava_stf.loading.weights.dtype_on_cpu", lambda *_: torch.float32)
    asked = []
    monkeypatch.setattr("llava_stf_eval.benchmarks.run._run", lambda args, *_: asked.append(args) or failure(args, "x"))
    options = replace(options, model=ModelOptions("tiny", device="cpu"))
    for resume in (False, True):
        run_tasks(replace(options, resume=resume))
    assert [(args.model.device, args.model.dtype) for args in asked] == [("cpu", "float32")] * 2
    monkeypatch.setattr(where, answer)
    with pytest.raises(LlavaStfError, match=sentence):
        run_tasks(replace(options, resume=True))


def test_a_run_on_a_cpu_does_not_go_on_on_a_gpu(options, monkeypatch):
    monkeypatch.setattr("llava_stf_eval.benchmarks.run._run", lambda args, *_: failure(args, "x"))
    stored = ModelOptions("tiny", dtype="bfloat16", device="cpu")
    run_tasks(replace(options, model=stored))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(LlavaStfError, match="device cpu, and this one has cuda"):
        run_tasks(replace(options, model=replace(stored, device="cuda:1"), resume=True))


def test_the_folder_of_another_run_is_refused_by_what_differs(tmp_path):
    out = tmp_path / "out"
    open_run(out, {"model": "tiny", "vision_tokens": 16}, resume=True)
    with pytest.raises(LlavaStfError, match=r"holds a run already.*--resume"):
        open_run(out, {"model": "tiny", "vision_tokens": 16}, resume=False)
    with pytest.raises(LlavaStfError, match="vision_tokens 16, and this one has 64"):
        open_run(out, {"model": "tiny", "vision_tokens": 64}, resume=True)
    assert open_run(out, {"model": "tiny", "vision_tokens": 16}, resume=True).root == out
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    with pytest.raises(LlavaStfError, match="holds no run"):
        open_run(tmp_path / "mine", {"model": "tiny"}, resume=True)


def test_two_commands_do_not_share_a_folder(tmp_path):
    folder = open_run(tmp_path / "out", {"model": "tiny"}, resume=False)
    with FileLock(folder.root / "parts" / "lock"):
        code = (
            "import sys; from pathlib import Path; from llava_stf_eval.benchmarks.folder import RunFolder, sole_user\n"
            "with sole_user(RunFolder(Path(sys.argv[1]))): pass"
        )
        done = subprocess.run(
            [sys.executable, "-c", code, str(folder.root)],
            capture_output=True,
            text=True,
            check=False,
            env=child_path(),
        )
    assert "Another process" in done.stderr
    with sole_user(folder):
        pass


def child_path() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}


class Hub(BaseHTTPRequestHandler):
    """The little of the Hugging Face hub's interface that a download needs: one data set with two splits."""

    name = "lmms-lab-encoder/POPE"
    card = (
        "---\nconfigs:\n- config_name: default\n  data_files:\n  - split: test\n    path: data/test-*\n"
        "  - split: train\n    path: data/train-*\n---\n"
    )
    files = {"README.md": card.encode(), "data/test-0.parquet": b"x" * 1_300_000, "data/train-0.parquet": b"y" * 5000}  # noqa: RUF012
    commit = "c" * 40

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, body: bool) -> None:
        path = self.path.partition("?")[0]
        file = path.rpartition(f"{self.name}/resolve/")[2].partition("/")[2]
        if path.startswith(f"/api/datasets/{self.name}/tree/"):
            tree = [{"type": "file", "path": n, "size": len(c), "oid": "0" * 40} for n, c in self.files.items()]
            content = json.dumps(tree).encode()
        elif path.startswith(f"/api/datasets/{self.name}"):
            siblings = [{"rfilename": name, "size": len(content)} for name, content in self.files.items()]
            content = json.dumps({"id": self.name, "sha": self.commit, "siblings": siblings}).encode()
        elif file in self.files:
            content = self.files[file]
        else:
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", self.commit)
        self.end_headers()
        if body:
            self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


def fetch(endpoint: str, folder: Path, home: Path, *names: str) -> subprocess.CompletedProcess[str]:
    code = (
        "import sys; from pathlib import Path; from llava_stf_eval.data.fetch import fetch_data\n"
        "fetch_data(sys.argv[2:], Path(sys.argv[1]))"
    )
    hub = {"HF_ENDPOINT": endpoint, "HF_HUB_OFFLINE": "0", "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"}
    command = [sys.executable, "-c", code, str(folder), *names]
    return subprocess.run(
        command, capture_output=True, text=True, env=child_path() | hub | {"COLUMNS": "120"}, check=False
    )


def test_fetch_says_the_size_and_gets_only_the_split_that_is_asked(tmp_path):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        done = fetch(f"http://127.0.0.1:{server.server_port}", tmp_path / "data", tmp_path / "home", "pope")
    finally:
        server.shutdown()
    assert done.returncode == 0, done.stderr
    assert "1.3 MB" in done.stdout
    copy = tmp_path / "data" / Hub.name
    assert (copy / "data" / "test-0.parquet").read_bytes() == Hub.files["data/test-0.parquet"]
    assert not (copy / "data" / "train-0.parquet").exists()
    card = (copy / "README.md").read_text()
    assert "split: test" in card
    assert "train" not in card


def test_fetch_without_a_hub_is_one_sentence(tmp_path):
    done = fetch("http://127.0.0.1:9", tmp_path / "data", tmp_path / "home", "pope")
    assert "DataError" in done.stderr.splitlines()[-1]
    assert "cannot be reached" in done.stderr.splitlines()[-1]


def test_a_wrong_schema_stops_the_run_before_it_starts(data, options, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(data, copy)
    for file in parquet_files(copy, "pope"):
        rewrite(file, lambda table: table.drop_columns(["answer"]))
    with pytest.raises(DataError, match="expected a column 'answer'"):
        run_tasks(replace(options, data=copy))
