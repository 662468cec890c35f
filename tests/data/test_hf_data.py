"""Hugging Face data sets, by number and streamed, give the samples of the same LLaVA file."""

import io
import itertools
import json
import shutil
import sys

import psutil
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch.utils.data import DataLoader

from llava_stf.data.bad_samples import BadSamples
from llava_stf.data.preparation import Preparation
from llava_stf.data.records import SampleError
from llava_stf.data.sources import open_records, open_stream
from llava_stf.errors import DataError, LlavaStfError, MissingDependencyError
from llava_stf.training.config import from_values
from llava_stf.training.data import LlavaDataset, Share, StreamedSamples
from llava_stf.training.finetune import finetune

datasets = pytest.importorskip("datasets", reason="needs the extra train")
# The library waits five seconds when a pass over a stream ends or is dropped, against a crash of its threads at exit.
# For good, since the garbage collector drops streams after their test.
datasets.config.SLEEP_TIME_ON_THREADS_SHUTDOWN = 0.05


def message(turn, images_apart):
    """A LLaVA turn as a message, its markers in the text, or as items of their own."""
    role, text = {"human": "user", "gpt": "assistant"}[turn["from"]], turn["value"]
    if not images_apart:
        return {"role": role, "content": text}
    items = [{"type": "image", "text": None}] * text.count("<image>")
    return {"role": role, "content": [*items, {"type": "text", "text": text.replace("<image>\n", "")}]}


def rows(records, folder, images_apart=True):
    for record in records:
        names = record.get("image", [])
        names = [names] if isinstance(names, str) else names
        messages = [message(turn, images_apart) for turn in record["conversations"]]
        yield {"id": record["id"], "messages": messages, "images": [Image.open(folder / name) for name in names]}


@pytest.fixture
def hf_data(tmp_path, data_folder, records, monkeypatch):
    """Writes the samples as a data set in one of the formats; returns its path."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")

    def write(form, samples=records, images_apart=True):
        dataset = datasets.Dataset.from_list(list(rows(samples, data_folder, images_apart)))
        dataset = dataset.cast_column("images", datasets.List(datasets.Image()))
        path = tmp_path / f"rows{form}"
        if form == ".parquet":
            dataset.to_parquet(path)
        elif form == "/dict":
            datasets.DatasetDict(train=dataset).save_to_disk(tmp_path / "folder")
            return str(tmp_path / "folder")
        else:
            dataset.save_to_disk(tmp_path / "folder")
            path = next((tmp_path / "folder").glob("*.arrow")) if form == ".arrow" else tmp_path / "folder"
        return str(path)

    return write


def preparation(processor, folder):
    return Preparation(processor, name="rows", images=folder, template="v1", max_length=512)


def equal(found, expected):
    assert found["sample_id"] == expected["sample_id"]
    assert torch.equal(found["input_ids"], expected["input_ids"])
    assert torch.equal(found["labels"], expected["labels"])
    pixels = found["pixel_values"], expected["pixel_values"]
    assert (pixels[0] is None and pixels[1] is None) or torch.equal(*pixels)


@pytest.mark.parametrize(
    ("form", "images_apart"), [("", True), ("/dict", True), (".parquet", True), (".parquet", False), (".arrow", True)]
)
def test_rows_are_the_samples_of_the_llava_file(hf_data, data_folder, llava_processor, form, images_apart):
    prepare = preparation(llava_processor, data_folder)
    expected = LlavaDataset(open_records(str(data_folder / "instruct.json")), prepare)
    found = LlavaDataset(open_records(hf_data(form, images_apart=images_apart)), prepare)
    assert len(found) == len(expected) == 12
    for number in range(12):
        equal(found[number], expected[number])
    if not images_apart:
        assert found.lengths.tolist() == expected.lengths.tolist()
    assert (found.lengths < 0).tolist() == (expected.lengths < 0).tolist()


def test_rows_of_llavas_own_form_with_paths_do_too(tmp_path, hf_data, data_folder, llava_processor, records):
    path = tmp_path / "paths.parquet"
    datasets.Dataset.from_list(records[:9]).to_parquet(path)
    prepare = preparation(llava_processor, data_folder)
    equal(prepare(open_records(str(path))[4], 4), prepare(records[4], 4))


def test_a_broken_image_in_a_row_is_a_bad_sample_and_no_crash(tmp_path, hf_data, llava_processor, data_folder):
    whole = io.BytesIO()
    Image.effect_noise((64, 64), 50).save(whole, "JPEG")
    messages = [{"role": "user", "content": "<image>\nWhat?"}, {"role": "assistant", "content": "Noise."}]
    cells = [whole.getvalue(), whole.getvalue()[:-900]]
    features = datasets.Features(
        {
            "messages": [{"role": datasets.Value("string"), "content": datasets.Value("string")}],
            "image": datasets.Image(),
        }
    )
    dataset = datasets.Dataset.from_list(
        [{"messages": messages, "image": {"bytes": cell, "path": None}} for cell in cells], features=features
    )
    dataset.to_parquet(tmp_path / "broken.parquet")
    prepare = preparation(llava_processor, data_folder)
    samples = LlavaDataset(open_records(str(tmp_path / "broken.parquet")), prepare, max_bad_samples=0.5)
    assert samples[1]["sample_id"] == "0"
    assert samples.bad_samples.summary() == "1 of 2 samples seen are bad (1 broken image)"


@pytest.fixture
def train(tmp_path, llava_base):
    def run(data, name, **options):
        values = {
            "base": str(llava_base), "data": data, "output": str(tmp_path / name), "streaming": True,
            "per_device_batch_size": 4, "learning_rate": 1e-2, "num_workers": 0, "cpu_threads": 1, "bf16": False,
            "save_steps": 2,
        }  # fmt: skip
        finetune(from_values({**values, **options}))
        return load_file(tmp_path / name / "model.safetensors")

    return run


def numbered(row, number):
    """In place of a prepared sample."""
    return {"id": row["id"], "number": number}


@pytest.mark.parametrize("shards", [1, 2])
def test_loading_processes_share_a_stream_and_number_its_rows(shards):
    """In each pass every row comes once; of two processes and one shard, one process has nothing to do."""
    rows = datasets.Dataset.from_dict({"id": list(range(20))}).to_iterable_dataset(num_shards=shards)
    samples = StreamedSamples(rows.shuffle(seed=0, buffer_size=4), numbered, BadSamples(40, 0), Share(5))
    loader = DataLoader(samples, 5, num_workers=2, collate_fn=list)
    found = [item for batch in itertools.islice(loader, 8) for item in batch]
    assert sorted(item["id"] for item in found) == sorted([*range(20)] * 2)
    assert sorted(item["number"] for item in found) == list(range(40))
    assert [item["id"] for item in found[:20]] != [item["id"] for item in found[20:]]


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_what_replaces_a_bad_row_does_not_depend_on_the_number_of_processes(processes):
    """Rows 3, 4, 5 and 11 are bad, and each process prepares its own rows and what it needs in their place."""
    rows = datasets.Dataset.from_dict({"id": list(range(12))}).to_iterable_dataset()
    prepared = []

    def prepare(row, number):
        prepared.append(number)
        if row["id"] in (3, 4, 5, 11):
            raise SampleError("no target", str(number), "bad")
        return numbered(row, number)

    batch = 4 // processes
    shares = [Share(batch, process, processes) for process in range(processes)]
    streams = [iter(StreamedSamples(rows, prepare, BadSamples(16, 0.99), share)) for share in shares]
    dealt = [list(itertools.islice(stream, 16)) for stream in streams]
    whole = [next(filter(None, samples))["id"] for samples in zip(*dealt, strict=True)]
    assert whole == [0, 1, 2, 6, 6, 6, 6, 7, 8, 9, 10, 0, 0, 1, 2, 6]
    assert [sum(sample is not None for sample in samples) for samples in dealt] == [16 // processes] * processes
    assert all(prepared.count(number) == 1 for number in (0, 1, 2, 7, 8, 9, 10))


def test_streamed_training_with_workers_resumes_exactly_and_ends_them(train, hf_data, tmp_path):
    """Of one shard the first worker reads all, the second nothing."""
    data, before = hf_data(""), set(psutil.Process().children())
    whole = train(data, "whole", max_steps=4, num_workers=2)
    shutil.copytree(tmp_path / "whole" / "checkpoint-2", tmp_path / "resumed" / "checkpoint-2")
    with pytest.raises(LlavaStfError, match="num_workers 2 is now 0"):
        train(data, "resumed", max_steps=4, num_workers=0, resume=True)
    resumed = train(data, "resumed", max_steps=4, num_workers=2, resume=True)
    assert set(psutil.Process().children()) == before
    for name, value in whole.items():
        torch.testing.assert_close(resumed[name], value, rtol=0, atol=1e-6, msg=name)


@pytest.mark.parametrize("form", [".parquet", ""])
def test_a_stream_trains_over_its_end_and_resumes_exactly(train, hf_data, tmp_path, form):
    """12 samples are three steps."""
    data = hf_data(form)
    whole = train(data, "whole", max_steps=5)
    for step in (4, 5):
        (tmp_path / "whole" / f"checkpoint-{step}" / "trainer_state.json").unlink(missing_ok=True)
    for name in ("config.json", "model.safetensors"):
        (tmp_path / "whole" / name).unlink()
    resumed = train(data, "whole", max_steps=5, resume=True)
    for name in whole:
        torch.testing.assert_close(resumed[name], whole[name], rtol=0, atol=1e-6, msg=name)


def test_bad_rows_of_a_stream_are_replaced_and_too_many_stop(train, hf_data, records):
    bad = {"id": "two", "conversations": [*records[9]["conversations"][:1]] * 2}
    data = hf_data("", [*records, bad])
    train(data, "out", max_steps=4, max_bad_samples=0.3)
    with pytest.raises(DataError, match=r"^sample two of folder .*alternate.*; 1 of \d+ samples seen are bad"):
        train(data, "stopped", max_steps=4)


def test_streams_need_an_end_and_a_data_set(data_folder):
    values = {"base": "tiny", "data": "d", "output": "o", "streaming": True}
    with pytest.raises(LlavaStfError, match="max_steps"):
        from_values(values)
    with pytest.raises(DataError, match="JSON file"):
        open_stream(str(data_folder / "instruct.json"), seed=0)


def test_what_is_no_data_set_is_refused_in_one_sentence(tmp_path, data_folder, monkeypatch):
    (tmp_path / "bad.parquet").write_bytes(b"nothing")
    with pytest.raises(DataError, match=r"is no data set that save_to_disk .* is .*/align\.json meant\?$"):
        open_records(str(data_folder))
    for data in (str(tmp_path / "bad.parquet"), str(tmp_path / "none.parquet"), "nobody/nothing"):
        with pytest.raises(DataError, match="cannot read the data set") as error:
            open_records(data)
        assert "\n" not in str(error.value)
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'llava-stf\[train\]'"):
        open_records(str(tmp_path / "bad.parquet"))


def test_messages_that_are_no_chat_are_named(tmp_path, data_folder, llava_processor):
    answer = {"role": "assistant", "content": "Yes."}
    cases = {
        "system": [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi?"}, answer],
        "video": [{"role": "user", "content": [{"type": "video"}]}, answer],
        "'role'": [{"content": "Hi?"}, answer],
    }
    file = tmp_path / "data.jsonl"
    file.write_text("\n".join(json.dumps({"messages": messages}) for messages in cases.values()))
    samples = LlavaDataset(open_records(str(file)), preparation(llava_processor, data_folder))
    for number, text in enumerate(cases):
        with pytest.raises(DataError, match=f"sample {number} of rows .*{text}"):
            samples[number]
