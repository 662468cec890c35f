"""Shared fixtures: where the reference data stands, and small random models."""

import os
from pathlib import Path

import pytest
import torch
from hypothesis import settings

# Triton reads it at its first import: without a GPU its interpreter runs the kernels' tests.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

# The first example of a test pays for imports, and a shared machine has no steady clock.
settings.register_profile("default", deadline=None)
settings.load_profile("default")

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

# Outputs of the authors' own code on a tiny model, kept beside the checkout and not in it.
GOLDEN = Path(__file__).resolve().parents[2] / "shared" / "golden" / "stf_official_tiny"


def pytest_runtest_setup(item):
    if item.get_closest_marker("gpu") is not None and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")


@pytest.fixture(scope="session")
def golden_stf():
    """The folder of reference data; without it the comparison with the authors' code is skipped."""
    if not GOLDEN.is_dir():
        pytest.skip(f"the reference data of the authors' code is not at {GOLDEN.parent}")
    return GOLDEN


@pytest.fixture(scope="session")
def plain_folder(tmp_path_factory):
    """A saved plain LLaVA with random weights: 3 tower blocks, 4x4 patches."""
    from llava_stf.testing import write_tiny_llava

    return write_tiny_llava(tmp_path_factory.mktemp("plain"), stf=False)


@pytest.fixture(scope="session")
def stf_folder(tmp_path_factory):
    """A saved LLaVA-STF with random weights."""
    from llava_stf.testing import write_tiny_llava

    return write_tiny_llava(tmp_path_factory.mktemp("stf"), stf=True)
