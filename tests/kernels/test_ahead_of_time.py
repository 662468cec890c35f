"""Every kernel and configuration compiles for chips that are not here, within their limits."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="Triton, the extra 'triton', is not installed")

KERNELS = Path(__file__).parents[2] / "kernels"


@pytest.mark.parametrize("capability", [80, 90, 100])
def test_every_configuration_compiles_fits_and_does_not_spill(capability):
    command = [sys.executable, "-m", "llava_stf_kernels.ahead_of_time", "--capability", str(capability), "--json"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(KERNELS), *sys.path])}
    environment.pop("TRITON_INTERPRET", None)
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    names = {"fuse", "fuse, recomputed", "fuse, weight gradient", "fuse, source gradient"}
    names |= {"pool", "pool, gradient", "place", "place, gradient"}
    assert {(one["name"], one["dtype"]) for one in found} == {
        (name, kind) for name in names for kind in ("bf16", "fp32")
    }
    assert [one for one in found if not one["fits"]] == []
    assert [one for one in found if one["aligned"] and one["stack"]] == []
