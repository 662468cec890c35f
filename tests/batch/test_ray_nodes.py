"""What the machines of a cluster must have in common is looked at on each of them, and named where one differs."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llava_stf.batch.job import BatchJob
from llava_stf.batch.on_ray import _share
from llava_stf.batch.places import claim_file
from llava_stf.batch.ray_nodes import Node, _differing
from llava_stf.batch.shards import open_output

from .conftest import QUESTION


@pytest.fixture
def job(album: Path, tmp_path: Path) -> BatchJob:
    return BatchJob(album / "more", tmp_path / "output", question=QUESTION)


@pytest.fixture
def look(job: BatchJob) -> Callable[..., str]:
    """What a machine says on which the job's fields are these, while another one has begun it."""
    manifest = job.manifest(job.rows())
    open_output(Path(str(job.output)), manifest)

    def run(**there: Any) -> str:
        with claim_file(Path(str(job.output)) / "nodes"):
            return _differing(replace(job, **there), manifest, "nodes")

    return run


def test_machine_with_the_same_files_differs_in_nothing_and_leaves_nothing(look: Callable[..., str], job: BatchJob):
    assert look() == ""
    assert [path.name for path in Path(str(job.output)).iterdir()] == ["manifest.json"]


def test_folder_of_the_same_name_and_content_is_another_one(look: Callable[..., str], job: BatchJob, tmp_path: Path):
    shutil.copytree(str(job.output), tmp_path / "copy")
    assert look(output=tmp_path / "copy").startswith(
        f"does not see {tmp_path / 'copy'} as this one does: name a folder"
    )
    assert look(output=tmp_path / "none").startswith(f"cannot use {tmp_path / 'none'} (No such file or directory): ")


def test_other_input_or_model_is_named(look: Callable[..., str], album: Path, tmp_path: Path):
    assert look(input=album) == f"reads another input at {album} than this one."
    assert look(model="tiny-full") == "has another model at tiny-full than this one."
    assert look(model="nowhere").startswith("cannot do its part: No model 'nowhere'")
    assert (
        look(input=tmp_path / "a.jsonl")
        == f"cannot do its part: Cannot read {tmp_path}/a.jsonl: No such file or directory."
    )


@pytest.mark.parametrize(
    ("machines", "workers", "share"),
    [
        ([(8, 0), (4, 0)], 2, {"num_cpus": 4}),  # all have the share of the smallest
        ([(8, 0), (4, 0)], 1, {"num_cpus": 4}),
        ([(8, 0), (8, 0)], 3, {"num_cpus": 4}),
        ([(1, 0), (1, 0)], 4, {"num_cpus": 0.5}),
        ([(32, 4), (32, 4)], 8, {"num_gpus": 1}),
        ([(32, 4), (32, 4)], 16, {"num_gpus": 0.5}),
        ([(32, 4), (32, 4)], 2, {"num_gpus": 1}),
    ],
)
def test_workers_share_out_cores_or_gpus(
    machines: list[tuple[int, int]], workers: int, share: dict[str, float]
) -> None:
    nodes = [Node(str(index), "10.0.0.1", *counts) for index, counts in enumerate(machines)]
    assert _share(nodes, workers) == share
