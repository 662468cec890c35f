"""A destination is absent or complete: killed, failing and repeated conversions, and how much memory one takes."""

import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from safetensors.torch import load_file

from llava_stf import convert_checkpoint
from llava_stf.errors import LlavaStfError
from llava_stf.io.publish import publish

MEBIBYTE = 2**20
# Prints the highest memory use before and after, in bytes; VmHWM counts mapped files too.
MEASURE = """
import sys
from llava_stf import convert_checkpoint
import llava_stf.conversion.convert
def peak():
    line = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024
before = peak()
convert_checkpoint(sys.argv[1], sys.argv[2], progress=False)
print(before, peak())
"""


@pytest.fixture(scope="module")
def large(original_class, weights_writer, tmp_path_factory):
    """A checkpoint of three shards of 40 MB and more."""
    original = original_class.small(spatial_hidden=2**17, dtype=torch.bfloat16)
    folder = original.write(tmp_path_factory.mktemp("large") / "src")
    (folder / "model.safetensors").unlink()
    weights_writer(folder, original.tensors(), shards=2)
    return folder


def test_kill_9_leaves_the_destination_absent_and_the_next_run_completes(start, large, tmp_path):
    dst = tmp_path / "dst"
    process = start(["convert", large, dst])
    while process.exitcode is None and not list(tmp_path.glob(".dst.partial-*/model.safetensors")):
        time.sleep(0.001)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL, "the conversion ended before it could be killed"
    assert not dst.exists()
    assert list(tmp_path.glob(".dst.partial-*"))

    convert_checkpoint(large, dst, progress=False)
    assert [path.name for path in tmp_path.iterdir()] == ["dst"]
    assert load_file(dst / "model.safetensors")


def test_peak_memory_is_well_under_twice_the_largest_shard(large, tmp_path):
    largest = max(file.stat().st_size for file in large.glob("*.safetensors"))
    command = [sys.executable, "-c", MEASURE, large, tmp_path / "dst"]  # a process of its own, for its highest memory
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    before, after = map(int, done.stdout.split())
    assert after - before < 1.7 * largest + 30 * MEBIBYTE


def test_a_full_disk_is_one_sentence(large, tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (MEBIBYTE, limits[1]))
    try:
        with pytest.raises(LlavaStfError, match=r"Could not write .*dst"):
            convert_checkpoint(large, tmp_path / "dst", progress=False)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list(tmp_path.iterdir())


def test_a_failure_inside_leaves_nothing(tmp_path):
    def fail():
        with publish(tmp_path / "dst") as folder:
            (folder / "file").write_text("half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["folder", "empty folder", "file", "dangling link"])
def test_what_exists_is_never_overwritten(kind, stf_folder, tmp_path):
    dst = tmp_path / "dst"
    if kind == "folder":
        shutil.copytree(stf_folder, dst)
    elif kind == "empty folder":
        dst.mkdir()
    elif kind == "file":
        dst.write_text("mine")
    else:
        dst.symlink_to(tmp_path / "nowhere")
    before = sorted(path.name for path in tmp_path.rglob("*"))
    with pytest.raises(LlavaStfError, match="exists already"):
        convert_checkpoint(stf_folder, dst, progress=False)
    assert sorted(path.name for path in tmp_path.rglob("*")) == before


def test_two_conversions_into_one_destination_do_not_mix(stf_folder, tmp_path):
    with FileLock(tmp_path / ".dst.lock"), pytest.raises(LlavaStfError, match="Another process"):
        convert_checkpoint(stf_folder, tmp_path / "dst", progress=False)
    convert_checkpoint(stf_folder, tmp_path / "dst", progress=False)


def test_a_destination_that_cannot_be_written(stf_folder, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(LlavaStfError, match="Could not write"):
        convert_checkpoint(stf_folder, tmp_path / "file" / "dst", progress=False)
    if sys.platform == "linux":  # a folder that says of nothing that it must not be written, and takes no file
        with pytest.raises(LlavaStfError, match="Could not write"):
            convert_checkpoint(stf_folder, Path("/proc/dst"), progress=False)
