"""Every kernel and configuration compiles for chips that are not here, within their limits."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="Triton, the extra 'triton', is not installed")

KERNELS = Path(__file__).parents[2] / "kernels"


@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
@pytest.mark.parametrize("capability", [80, 90, 100])
def test_every_configuration_compiles_fits_and_does_not_spill(capability, dtype):
    options = ["--capability", str(capability), "--dtypes", dtype, "--json"]
    command = [sys.executable, "-m", "llava_stf_kernels.ahead_of_time", *options]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(KERNELS), *sys.path])}
    environment.pop("TRITON_INTERPRET", None)
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    parts = ("", ", recomputed", ", weight gradient", ", source gradient")
    names = {f"fuse_{what}{part}" for what in ("blocks", "windows") for part in parts}
    names |= {"pool", "pool, gradient", "place", "place, gradient"}
    assert {one["name"] for one in found} == names
    assert [one for one in found if not one["fits"]] == []
    assert [one for one in found if one["aligned"] and one["stack"]] == []
