"""Which implementation is taken, what can be asked for, and what is said about it."""

import logging

import pytest
import torch

from llava_stf_kernels import (
    BackendError,
    choose_backend,
    dispatch,
    fuse_blocks,
    fuse_windows,
    place_tokens,
    pool_tokens,
)

STATES = [torch.zeros(1, 4, 4)]


@pytest.fixture(autouse=True)
def nothing_decided_before():
    dispatch._decide.cache_clear()
    yield
    dispatch._decide.cache_clear()


def test_a_cpu_takes_torch_and_says_why_once(caplog):
    with caplog.at_level(logging.INFO, logger="llava_stf_kernels"):
        assert choose_backend(None, *STATES) == choose_backend("auto", *STATES) == "torch"
    assert [record.message for record in caplog.records] == [
        "plain torch on cpu in float32: the tensors are on 'cpu' and the kernels need a CUDA device"
    ]


def test_the_environment_decides_unless_the_call_does(monkeypatch, device):
    state = STATES[0].to(device)
    monkeypatch.setenv("LLAVA_STF_KERNELS", "triton")
    assert choose_backend(None, state) == choose_backend("auto", state) == "triton"
    assert choose_backend("torch", state) == "torch"
    monkeypatch.setenv("LLAVA_STF_KERNELS", "torch")
    assert choose_backend(None, state) == "torch"
    assert choose_backend("triton", state) == "triton"


@pytest.mark.parametrize("value", ["cuda", ""])
def test_an_unknown_backend_is_named(monkeypatch, value):
    with pytest.raises(BackendError, match="one of auto, triton, torch, found 'cuda'"):
        choose_backend("cuda", *STATES)
    monkeypatch.setenv("LLAVA_STF_KERNELS", value)
    with pytest.raises(BackendError, match=f"LLAVA_STF_KERNELS must be .* found '{value}'"):
        choose_backend(None, *STATES)


def test_triton_without_a_gpu_is_an_error_not_a_fallback(monkeypatch):
    monkeypatch.setattr(dispatch, "is_interpreting", lambda: False)
    with pytest.raises(BackendError, match="by the caller, but the tensors are on 'cpu' and the kernels need a CUDA"):
        pool_tokens(STATES[0], 2, backend="triton")
    monkeypatch.setenv("LLAVA_STF_KERNELS", "triton")
    with pytest.raises(BackendError, match="by LLAVA_STF_KERNELS"):
        pool_tokens(STATES[0], 2)


def test_triton_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setattr(dispatch, "find_spec", lambda name: None)
    with pytest.raises(BackendError, match="pip install triton"):
        pool_tokens(STATES[0], 2, backend="triton")
    assert choose_backend(None, *STATES) == "torch"


@pytest.mark.parametrize(
    ("tensors", "obstacle"),
    [
        ([torch.zeros(2, dtype=torch.double)], "not torch.float64"),
        ([torch.zeros(2), torch.zeros(2, dtype=torch.half)], "differ in device or dtype"),
    ],
    ids=["float64", "mixed"],
)
def test_what_the_kernels_do_not_take_runs_on_torch_or_is_refused(tensors, obstacle):
    assert choose_backend(None, *tensors) == "torch"
    with pytest.raises(BackendError, match=obstacle):
        choose_backend("triton", *tensors)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_a_gpu_takes_triton(dtype):
    assert choose_backend(None, torch.zeros(2, device="cuda", dtype=dtype)) == "triton"


def test_an_empty_batch_gives_an_empty_result():
    empty = torch.zeros(0, 4, 4)
    assert fuse_blocks([empty], torch.zeros(6, 4)).shape == (0, 4, 6)
    assert fuse_windows(empty, torch.zeros(6, 16), window=2).shape == (0, 1, 6)
    assert pool_tokens(empty, 2).shape == (0, 1, 4)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: fuse_blocks(STATES * 2, torch.zeros(6, 4)), "weight of \\(6, 4\\)"),
        (lambda: fuse_blocks([STATES[0], torch.zeros(1, 5, 4)], torch.zeros(6, 8)), "\\(1, 4, 4\\), \\(1, 5, 4\\)"),
        (lambda: fuse_blocks([], torch.zeros(6, 8)), "states of \\[\\]"),
        (lambda: fuse_windows(STATES[0], torch.zeros(6, 8), window=2), "weight \\[O, 16\\].*found \\(6, 8\\)"),
        (lambda: fuse_windows(torch.zeros(1, 5, 4), torch.zeros(6, 16), window=2), "found 5 patches"),
        (lambda: fuse_windows(STATES[0][0], torch.zeros(6, 16), window=2), "Expected patches \\[B, N, C\\]"),
        (lambda: pool_tokens(STATES[0], 3), "found 4 patches"),
        (lambda: pool_tokens(STATES[0], 0), "Windows of 0x0"),
        (lambda: pool_tokens(STATES[0][0], 2), "Expected patches"),
        (lambda: place_tokens(STATES[0], torch.zeros(1, 3), torch.ones(1, 4) > 0), "Expected embeddings"),
        (
            lambda: place_tokens(STATES[0], torch.zeros(3, 4), torch.ones(1, 4) > 0),
            "4 image places for 3 vision tokens",
        ),
    ],
)
def test_shapes_that_do_not_fit_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_wrong_count_inside_a_compiled_graph_is_an_error():
    compiled = torch.compile(place_tokens, fullgraph=True, backend="eager")
    mask = torch.tensor([[True, False, False, True]])
    assert torch.equal(compiled(STATES[0], torch.ones(2, 4), mask)[0, :, 0], torch.tensor([1.0, 0, 0, 1]))
    with pytest.raises(RuntimeError, match="must have 2 image places"):
        compiled(STATES[0], torch.ones(2, 4), torch.ones_like(mask))
