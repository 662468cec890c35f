"""The precision that a CPU computes in: that of the files where it is quick at it, or float32."""

import time

import pytest
import torch

from llava_stf import load_model
from llava_stf.conversion.sources import detect_format
from llava_stf.loading import precision
from llava_stf.loading.testing import write_tiny_llava


@pytest.fixture
def cpu(monkeypatch):
    """Makes the CPU one whose products of 16 bits take so many times as long as those of float32."""

    def be(times):
        monkeypatch.setattr(precision, "seconds_of_product", lambda dtype: 1.0 if dtype == torch.float32 else times)
        precision.slow_on_cpu.cache_clear()

    yield be
    precision.slow_on_cpu.cache_clear()


@pytest.fixture(scope="module", params=["bfloat16", "float16"])
def half_folder(request, tmp_path_factory):
    """A checkpoint in 16 bits, and its precision."""
    folder = write_tiny_llava(tmp_path_factory.mktemp(request.param))
    dtype = getattr(torch, request.param)
    load_model(folder, device="cpu", dtype=dtype).model.save_pretrained(folder)
    return folder, dtype


@pytest.mark.parametrize("asked", [None, "auto"])
def test_a_cpu_that_is_slow_at_16_bits_computes_in_float32(half_folder, asked, cpu, caplog):
    folder, dtype = half_folder
    cpu(1.8)
    with caplog.at_level("INFO", "llava_stf"):
        llava = load_model(folder, device="cpu", dtype=asked)
    assert {parameter.dtype for parameter in llava.model.parameters()} == {torch.float32}
    assert [str(dtype).removeprefix("torch.") in record.getMessage() for record in caplog.records] == [True]
    stored = load_model(folder, device="cpu", dtype="stored").model.state_dict()
    assert all(torch.equal(weight, stored[name].float()) for name, weight in llava.model.state_dict().items())


@pytest.mark.parametrize("times", [0.5, 5.0])
@pytest.mark.parametrize("asked", ["stored", "bfloat16", torch.float16])
def test_what_is_asked_for_is_taken(half_folder, asked, times, cpu, caplog):
    folder, dtype = half_folder
    cpu(times)
    with caplog.at_level("INFO", "llava_stf.loading"):
        found = load_model(folder, device="cpu", dtype=asked).model.dtype
    expected = dtype if asked == "stored" else getattr(torch, str(asked).removeprefix("torch."))
    assert (found, caplog.text) == (expected, "")


@pytest.mark.parametrize("times", [0.25, 1.1])
def test_a_cpu_that_is_about_as_quick_computes_as_stored(half_folder, times, cpu, caplog):
    folder, dtype = half_folder
    cpu(times)
    with caplog.at_level("INFO", "llava_stf.loading"):
        assert load_model(folder, device="cpu").model.dtype == dtype
    assert not caplog.records


def test_without_room_for_float32_the_precision_stays_and_a_sentence_says_why(half_folder, cpu, monkeypatch, caplog):
    folder, dtype = half_folder
    cpu(1.8)
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


def test_one_product_is_timed_and_float32_is_never_slow():
    assert 0 < precision.seconds_of_product(torch.bfloat16) < 60
    assert not precision.slow_on_cpu(torch.float32)


def test_what_other_programs_take_of_the_cpu_is_not_counted(monkeypatch):
    linear, threads = torch.nn.functional.linear, torch.get_num_threads()

    def interrupted(hidden, weight):
        time.sleep(0.2)
        return linear(hidden, weight)

    monkeypatch.setattr(torch.nn.functional, "linear", interrupted)
    assert precision.seconds_of_product(torch.float32) < 0.2
    assert torch.get_num_threads() == threads
