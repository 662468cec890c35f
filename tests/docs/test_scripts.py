"""The measuring scripts run from any folder, with a Python by its name on the path; what they call is not run here."""

import os
import re
import subprocess

import pytest

from tests.docs.test_snippets import ROOT

# Writes down what it is asked to run, and makes the file or folder that the scripts wait for.
STUB = """#!/usr/bin/env bash
printf '%s\\n' "$*" >> "$CALLS"
while [ $# -gt 1 ]; do
    case $1=$2 in
        --out=*) mkdir -p "$2" && touch "$2/instruct.json" ;;
        --output=*.json) touch "$2" ;;
        --output="$PWD"/*) mkdir -p "$2" && touch "$2/config.json" ;;
    esac
    shift
done
"""
FROM_HERE = re.compile(r"(?<!\S)(?:scripts|docs|tests)/\S+")
CALLED = {
    "distillation": "data label",
    "encoders": "encoders eval",
    "fusion": "-m llava_stf_eval.tables.resamplers",
    "serving": "bench serve",
    "tiles": "-m llava_stf_eval.tables.tiles",
    "towers": "assemble",
    "training": "-m llava_stf_eval.tables.training report",
}


def run(name, folder, **settings):
    """What a script asks its Python to run, from a folder that is no checkout, and how the script ended."""
    python = folder / "bin" / "stub-python"
    python.parent.mkdir(exist_ok=True)
    python.write_text(STUB)
    python.chmod(0o755)
    arguments = ["images.npz"] if name == "encoders" else []
    environment = os.environ | {
        "PATH": f"{python.parent}{os.pathsep}{os.environ['PATH']}",
        "CALLS": str(folder / "calls"),
    }
    kinds = "paper" if name == "training" else "pool"
    environment |= {"PYTHON": python.name, "SEEDS": "0", "METHODS": "aps", "KINDS": kinds} | settings
    command = ["bash", ROOT / "scripts" / f"measure_{name}.sh", *arguments, folder / "runs"]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    calls = folder / "calls"
    return calls.read_text() if calls.exists() else "", done


@pytest.mark.parametrize("name", CALLED)
def test_a_script_runs_from_any_folder(name, tmp_path):
    (tmp_path / "runs").mkdir()
    calls, done = run(name, tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert re.search(rf"^(-c .*)?{re.escape(CALLED[name])}\b", calls, re.MULTILINE)
    assert not FROM_HERE.findall(calls)


@pytest.mark.parametrize(
    ("name", "setting", "budget"),
    [
        ("distillation", "IMAGES", "{} images of a source, 100 steps, 300 images"),
        ("distillation", "STEPS", "512 images of a source, {} steps, 300 images"),
        ("distillation", "ASKED", "512 images of a source, 100 steps, {} images"),
        ("fusion", "START", "2000 steps from {}, 1000 images"),
        ("fusion", "STEPS", "{} steps from tiny-full, 1000 images"),
        ("fusion", "IMAGES", "2000 steps from tiny-full, {} images"),
        ("tiles", "STEPS", "{} steps, 250 images"),
        ("tiles", "IMAGES", "250 steps, {} images"),
        ("towers", "STEPS", "{} steps"),
    ],
)
def test_one_folder_is_for_one_budget(name, setting, budget, tmp_path):
    for value, code in (("3", 0), ("3", 0), ("4", 2)):
        _, done = run(name, tmp_path, **{setting: value})
        assert done.returncode == code, done.stderr
    assert f"holds results of {budget.format(3)}, not of {budget.format(4)}; name another folder" in done.stderr
