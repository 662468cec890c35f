"""Where kernels are tested, with memory that shows what was not written."""

import pytest
import torch

from llava_stf_kernels.dispatch import is_interpreting


@pytest.fixture(params=["interpreter", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request, monkeypatch):
    """The CPU under Triton's interpreter, and a GPU where there is one, there without a search for the best tiles."""
    if request.param == "cuda":
        from llava_stf_kernels.joined_linear.gradients import SOURCE_GRAD, WEIGHT_GRAD
        from llava_stf_kernels.joined_linear.product import PRODUCT
        from llava_stf_kernels.pool_tokens.kernel import POOL, SPREAD

        for kernel in (PRODUCT, WEIGHT_GRAD, SOURCE_GRAD, POOL, SPREAD):
            monkeypatch.setattr(kernel.tuner, "configs", kernel.tuner.configs[-1:])
            monkeypatch.setattr(kernel, "_best", {})
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
