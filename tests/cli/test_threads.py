"""Threads of a command in a container."""

import os
from pathlib import Path

import pytest

from llava_stf.cli.threads import bound_threads

SECOND = {"cpu.max": "{} 100000"}
FIRST = {"cpu/cpu.cfs_quota_us": "{}", "cpu/cpu.cfs_period_us": "100000"}


@pytest.mark.parametrize("files", [FIRST, SECOND, {}], ids=["version 1", "version 2", "no bound"])
@pytest.mark.parametrize(("quota", "expected"), [("250000", "2"), ("50000", "1"), ("6400000", None), ("max", None)])
def test_no_more_threads_than_a_container_has_cores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, str], quota: str, expected: str | None
) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text.format("-1" if quota == "max" and files is FIRST else quota))
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(os, "environ", {})
    bound_threads(tmp_path)
    assert os.environ.get("OMP_NUM_THREADS") == (expected if files else None)
    os.environ["OMP_NUM_THREADS"] = "7"
    bound_threads(tmp_path)
    assert os.environ["OMP_NUM_THREADS"] == "7"
