"""The precision that a CPU computes in: that of the files where it has instructions for it, or float32."""

import pytest
import torch

from llava_stf import load_model
from llava_stf.conversion.sources import detect_format
from llava_stf.loading import precision
from llava_stf.loading.testing import write_tiny_llava

SLOW, FAST = {"avx2": True}, {"avx2": True, "avx512_bf16": True, "avx512_fp16": True}


@pytest.fixture(scope="module", params=["bfloat16", "float16"])
def half_folder(request, tmp_path_factory):
    """A checkpoint in 16 bits, and its precision."""
    folder = write_tiny_llava(tmp_path_factory.mktemp(request.param))
    dtype = getattr(torch, request.param)
    load_model(folder, device="cpu", dtype=dtype).model.save_pretrained(folder)
    return folder, dtype


@pytest.mark.parametrize("asked", [None, "auto"])
def test_a_cpu_without_the_instructions_computes_in_float32(half_folder, asked, monkeypatch, caplog):
    folder, dtype = half_folder
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: SLOW)
    with caplog.at_level("INFO", "llava_stf"):
        llava = load_model(folder, device="cpu", dtype=asked)
    assert {parameter.dtype for parameter in llava.model.parameters()} == {torch.float32}
    assert [str(dtype).removeprefix("torch.") in record.getMessage() for record in caplog.records] == [True]
    stored = load_model(folder, device="cpu", dtype="stored").model.state_dict()
    assert all(torch.equal(weight, stored[name].float()) for name, weight in llava.model.state_dict().items())


@pytest.mark.parametrize("capabilities", [SLOW, FAST])
@pytest.mark.parametrize("asked", ["stored", "bfloat16", torch.float16])
def test_what_is_asked_for_is_taken(half_folder, asked, capabilities, monkeypatch, caplog):
    folder, dtype = half_folder
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    with caplog.at_level("INFO", "llava_stf.loading"):
        found = load_model(folder, device="cpu", dtype=asked).model.dtype
    expected = dtype if asked == "stored" else getattr(torch, str(asked).removeprefix("torch."))
    assert (found, caplog.text) == (expected, "")


def test_a_cpu_with_the_instructions_computes_as_stored(half_folder, monkeypatch, caplog):
    folder, dtype = half_folder
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: FAST)
    with caplog.at_level("INFO", "llava_stf.loading"):
        assert load_model(folder, device="cpu").model.dtype == dtype
    assert not caplog.records


def test_without_room_for_float32_the_precision_stays_and_a_sentence_says_why(half_folder, monkeypatch, caplog):
    folder, dtype = half_folder
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: SLOW)
    monkeypatch.setattr(precision, "available_memory", lambda: 2**10)
    assert load_model(folder, device="cpu").model.dtype == dtype
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "of the 0.0 GiB that are free" in caplog.text


def test_a_checkpoint_that_does_not_say_its_precision_has_that_of_its_weights(half_folder):
    folder, dtype = half_folder
    source = detect_format(folder)
    assert precision.stored_dtype(source) == dtype
    for name in ("dtype", "torch_dtype"):
        source.config.pop(name, None)
    assert precision.stored_dtype(source) == dtype


def test_the_memory_that_is_free_is_a_part_of_the_machines():
    free = precision.available_memory()
    assert free is None or 0 < free < 2**50
