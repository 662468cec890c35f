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
    environment |= {"PYTHON": python.name, "SEEDS": "0", "METHODS": "aps", "KINDS": "pool"} | settings
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


def test_one_folder_of_tiles_is_for_one_number_of_steps(tmp_path):
    for steps, code in (("3", 0), ("3", 0), ("4", 2)):
        _, done = run("tiles", tmp_path, STEPS=steps)
        assert done.returncode == code, done.stderr
    assert "holds runs of 3 steps, not of 4; name another folder" in done.stderr
