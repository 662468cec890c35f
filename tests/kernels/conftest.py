"""Where kernels are tested, with memory that shows what was not written."""

import pytest
import torch

from llava_stf_kernels.dispatch import is_interpreting


@pytest.fixture(params=["interpreter", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request):
    """The CPU under Triton's interpreter, and a GPU where there is one."""
    if request.param == "cuda":
        return torch.device("cuda")
    if not is_interpreting():
        pytest.skip("Triton runs on the GPU here, not in its interpreter")
    return torch.device("cpu")


@pytest.fixture
def poisoned(monkeypatch):
    """Memory that the kernels' own code allocates is full of NaN, so an element that is never written cannot hide."""
    empty = torch.empty

    def nan_filled(*size, **options):
        memory = empty(*size, **options)
        return memory.fill_(float("nan")) if memory.is_floating_point() else memory

    monkeypatch.setattr(torch, "empty", nan_filled)
