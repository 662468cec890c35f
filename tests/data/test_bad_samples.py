"""A bad sample is replaced by the next good one, counted and warned about; too many stop the run in one sentence."""

import json
import logging

import pytest
import torch
from safetensors.torch import load_file
from torch.utils.data import DataLoader

from llava_stf.data.bad_samples import BadSamples
from llava_stf.data.preparation import Preparation
from llava_stf.data.records import SampleError
from llava_stf.data.sources import open_records
from llava_stf.errors import DataError
from llava_stf.training.config import from_values
from llava_stf.training.data import LlavaDataset
from llava_stf.training.finetune import finetune


def error(name="x"):
    return SampleError("missing image", name, f"sample {name}: no file")


@pytest.mark.parametrize(("count", "allowed"), [(10, 0), (500, 5), (20_000, 100)])
def test_a_set_that_is_bad_from_its_start_stops_after_one_percent_of_the_first_samples(count, allowed):
    verdicts = BadSamples(count, 0.01)
    for number in range(allowed):
        verdicts.add_bad(number, error())
    with pytest.raises(DataError, match=f"^sample last: no file; {allowed + 1} of {allowed + 1} samples seen are bad"):
        verdicts.add_bad(allowed, error("last"))


def test_the_limit_is_a_share_of_what_was_seen_and_every_sample_counts_once():
    verdicts = BadSamples(30_000, 0.01)
    for number in range(20_000):
        verdicts.add_good(number)
    for _ in range(3):  # epochs
        for number in range(20_000, 20_202):
            verdicts.add_bad(number, error())
    with pytest.raises(DataError, match=r"203 of 20203 samples seen are bad \(203 missing image\)"):
        verdicts.add_bad(20_202, error())


@pytest.fixture
def one_bad(tmp_path, records):
    """Files `bad.json` and `good.json`: sample 4 of the one has no image file, of the other it is sample 5 again."""
    twin = {**records[5], "id": "twin"}
    for name, sample in (("bad", {**twin, "image": "gone.png"}), ("good", twin)):
        samples = [*records[:4], sample, *records[5:]]
        (tmp_path / f"{name}.json").write_text(json.dumps(samples))
    return tmp_path


def samples_of(folder, name, data_folder, processor, limit):
    prepare = Preparation(processor, name=name, images=data_folder, template="v1", max_length=512)
    return LlavaDataset(open_records(str(folder / name)), prepare, max_bad_samples=limit)


@pytest.mark.parametrize("workers", [0, 2])
def test_the_next_good_sample_takes_its_place_and_all_processes_count(one_bad, data_folder, llava_processor, workers):
    samples = samples_of(one_bad, "bad.json", data_folder, llava_processor, 0.1)
    names = [sample["sample_id"] for sample in DataLoader(samples, None, num_workers=workers)]
    assert names == ["s0", "s1", "s2", "s3", "s5", "s5", "s6", "s7", "s8", "t0", "t1", "m0"]
    assert samples.bad_samples.summary() == "1 of 12 samples seen are bad (1 missing image)"


def test_a_run_with_a_bad_sample_is_that_with_its_replacement_and_says_so(
    one_bad, data_folder, llava_base, tmp_path, caplog
):
    def train(name):
        values = {
            "base": str(llava_base), "data": str(one_bad / f"{name}.json"), "images": str(data_folder),
            "output": str(tmp_path / name), "per_device_batch_size": 4, "max_steps": 3, "learning_rate": 1e-2,
            "num_workers": 0, "cpu_threads": 1, "bf16": False, "max_bad_samples": 0.2,
        }  # fmt: skip
        finetune(from_values(values))
        return load_file(tmp_path / name / "model.safetensors")

    with caplog.at_level(logging.WARNING, "llava_stf"):
        bad, good = train("bad"), train("good")
    assert all(torch.equal(bad[name], good[name]) for name in good)
    messages = [record.getMessage() for record in caplog.records]
    assert [message for message in messages if message.startswith("sample twin of bad.json (number 4): No image file")]
    assert "1 of 12 samples seen are bad (1 missing image): others took their place" in messages


def test_a_mistyped_image_folder_stops_before_the_first_step(data_folder, llava_base, tmp_path):
    (tmp_path / "empty").mkdir()
    values = {
        "base": str(llava_base), "data": str(data_folder / "instruct.json"), "images": str(tmp_path / "empty"),
        "output": str(tmp_path / "out"), "max_steps": 1, "num_workers": 0, "cpu_threads": 1,
    }  # fmt: skip
    with pytest.raises(DataError, match=r"No image file at .*; 1 of \d+ samples seen are bad .*max_bad_samples 0\.01"):
        finetune(from_values(values))
