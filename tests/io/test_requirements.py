"""An installation with older libraries than the package needs is told so at import, in one sentence."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from llava_stf.io.requirements import MINIMUM

ROOT = Path(__file__).resolve().parents[2]
IMPORT = """
import importlib.metadata as metadata, sys
found = metadata.version
metadata.version = lambda name: sys.argv[2] if name == sys.argv[1] else found(name)
import llava_stf
"""


@pytest.mark.parametrize(
    ("name", "version", "refused"),
    [("transformers", "4.49.0", True), ("transformers", "5.17.0", False), ("transformers", "5.100.0.dev0", False),
     ("torch", "2.9.1+cpu", True), ("torch", "3.0.0", False)],
)  # fmt: skip
def test_older_libraries_are_named_with_what_to_do(name: str, version: str, refused: bool) -> None:
    done = subprocess.run([sys.executable, "-c", IMPORT, name, version], capture_output=True, text=True, check=False)
    assert (done.returncode != 0) == refused
    if refused:
        said = done.stderr.splitlines()[-1]
        assert f"needs {name} {'.'.join(map(str, MINIMUM[name]))} or newer, found {version}: pip install" in said


def test_the_versions_are_those_of_the_package() -> None:
    needs = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    for name, least in MINIMUM.items():
        assert f"{name}>={'.'.join(map(str, least))}" in needs
