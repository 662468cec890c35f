"""Samples and batches from a LLaVA data file."""

import json
import pickle
import tracemalloc
from functools import partial

import pytest
import torch

from llava_stf.data.json_index import index_json
from llava_stf.data.preparation import Preparation
from llava_stf.data.sources import image_folder, open_records
from llava_stf.errors import CheckpointError, DataError
from llava_stf.models.llava_stf.conversation import IGNORE_INDEX
from llava_stf.training.data import LlavaDataset, collate


def dataset(data, processor, *, template="v1", max_length=512, images=None):
    folder = image_folder(str(data), None if images is None else str(images))
    prepare = Preparation(processor, name=data.name, images=folder, template=template, max_length=max_length)
    return LlavaDataset(open_records(str(data)), prepare)


def one(tmp_path, data_folder, processor, record, **options):
    """The dataset of one sample."""
    file = tmp_path / "one.json"
    file.write_text(json.dumps([record]))
    return dataset(file, processor, images=data_folder, **options)


@pytest.mark.parametrize("name", ["instruct.json", "instruct.jsonl"])
def test_each_sample_is_found_in_the_file(data_folder, records, name):
    content = (data_folder / name).read_bytes()
    spans, _ = index_json(data_folder / name)
    assert [json.loads(content[a:b]) for a, b in spans] == records


@pytest.mark.parametrize("name", ["instruct.json", "instruct.jsonl"])
def test_lengths_are_words_of_all_turns_negative_without_an_image(data_folder, name):
    """<image> and the four words of the question, a colour, the three words Is it red?, and Yes, it is."""
    _, lengths = index_json(data_folder / name)
    assert lengths.tolist() == [12] * 9 + [-7, -7, 4]


def test_sample_has_the_processors_ids_with_one_id_per_image_token(data_folder, llava_processor, records):
    samples = dataset(data_folder / "instruct.json", llava_processor)
    sample = samples[0]
    image_id = llava_processor.image_token_id
    assert samples.prepare.tokens_per_image == 16
    assert sample["input_ids"].tolist().count(image_id) == 16
    assert sample["pixel_values"].shape == (1, 3, 56, 56)
    answers = [i for i in sample["labels"].tolist() if i != IGNORE_INDEX]
    assert llava_processor.tokenizer.decode(answers).replace(" ", "") == "red</s>Yes,itis.</s>"
    assert set(sample["labels"][sample["input_ids"] == image_id].tolist()) == {IGNORE_INDEX}


def test_pixels_are_the_processors(data_folder, llava_processor):
    from PIL import Image

    expected = llava_processor.image_processor(Image.open(data_folder / "green.png"), return_tensors="pt")
    found = dataset(data_folder / "instruct.json", llava_processor)[1]["pixel_values"]
    assert torch.equal(found, expected["pixel_values"])


def test_images_stay_in_the_order_of_their_markers(data_folder, llava_processor):
    samples = dataset(data_folder / "instruct.json", llava_processor)
    red, blue, both = (samples[i]["pixel_values"] for i in (0, 2, 11))
    assert torch.equal(both, torch.cat([red, blue]))


def test_plain_template_trains_on_the_caption(data_folder, llava_processor):
    sample = dataset(data_folder / "align.json", llava_processor, template="plain")[2]
    tokenizer = llava_processor.tokenizer
    assert sample["input_ids"][:17].tolist() == [tokenizer.bos_token_id, *[llava_processor.image_token_id] * 16]
    assert tokenizer.decode(sample["labels"][17:]).strip() == "a blue square"


def test_batch_is_padded_on_the_right_and_mixes_samples_with_and_without_images(data_folder, llava_processor):
    samples = [dataset(data_folder / "instruct.json", llava_processor)[i] for i in (0, 9, 11)]
    batch = collate(samples, pad_token_id=7)
    lengths = [len(sample["input_ids"]) for sample in samples]
    assert batch["input_ids"].shape == batch["labels"].shape == batch["attention_mask"].shape == (3, max(lengths))
    assert batch["attention_mask"].sum(1).tolist() == lengths
    for row, sample in enumerate(samples):
        length = lengths[row]
        assert torch.equal(batch["input_ids"][row, :length], sample["input_ids"])
        assert set(batch["input_ids"][row, length:].tolist()) <= {7}
        assert set(batch["labels"][row, length:].tolist()) <= {IGNORE_INDEX}
    assert batch["pixel_values"].shape[0] == 3  # one, none, two
    assert batch["sample_ids"] == ["s0", "t0", "m0"]
    assert "pixel_values" not in collate([samples[1]], pad_token_id=7)


def test_samples_without_an_id_are_named_by_their_number(tmp_path, data_folder, llava_processor):
    sample = one(tmp_path, data_folder, llava_processor, {"image": "red.png", "conversations": QUESTION})[0]
    assert collate([sample], pad_token_id=0)["sample_ids"] == ["0"]


def test_long_text_is_cut_but_never_image_tokens(tmp_path, data_folder, llava_processor, records):
    whole = one(tmp_path, data_folder, llava_processor, records[0])[0]["input_ids"]
    last_image = max(i for i, x in enumerate(whole.tolist()) if x == llava_processor.image_token_id)
    shorter = one(tmp_path, data_folder, llava_processor, records[0], max_length=len(whole) - 3)[0]
    assert torch.equal(shorter["input_ids"], whole[:-3])
    with pytest.raises(DataError, match=r"sample s0 .*first answer begins behind max_length"):
        one(tmp_path, data_folder, llava_processor, records[0], max_length=last_image + 1)[0]
    with pytest.raises(DataError, match=r"sample s0 .*max_length"):
        one(tmp_path, data_folder, llava_processor, records[0], max_length=last_image)[0]


QUESTION = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A square."}]


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"id": "x1", "conversations": QUESTION}, r"sample x1 .*1 markers and 0 images"),
        ({"id": "x2", "image": "red.png", "conversations": QUESTION[1:]}, r"sample x2 .*alternate"),
        ({"id": "x3", "image": ["red.png"] * 2, "conversations": QUESTION}, r"sample x3 .*1 markers and 2 images"),
        ({"id": "x4", "image": "none.png", "conversations": QUESTION}, r"sample x4 .*none\.png"),
        ({"id": "x5", "image": 5, "conversations": QUESTION}, r"sample x5 .*'image' must be"),
        ({"id": "x6", "image": "red.png"}, r"the first has .id., .image."),
        ({"id": "x7", "image": "red.png", "conversations": None}, r"sample x7 "),
        ({"image": "align.json", "conversations": QUESTION}, r"sample 0 of one\.json .*align\.json"),
        ({"id": "v", "video": "v.mp4", "conversations": QUESTION}, r"sample v .*'video', and only text and images"),
        ({"id": "b", "image": "red.png", "images": ["red.png"], "conversations": QUESTION}, r"sample b .*both 'image'"),
        (
            {"id": "s", "conversations": [QUESTION[0], {"from": "gpt", "value": "\ud83d"}]},
            r"sample s .*no valid Unicode",
        ),
        ({"id": "l", "conversations": [QUESTION[0], {"from": "gpt", "value": ["A"]}]}, r"sample l .*texts 'from' and"),
        (
            {"id": "p", "image": "iVBOR" + "A" * 6000, "conversations": QUESTION},
            r"sample p .*a text of 6,005 characters",
        ),
        ({"id": "n", "image": "A" * 3000, "conversations": QUESTION}, r"sample n .*Cannot open"),
        ({"id": "\ud83d", "image": "\ud83d.png", "conversations": QUESTION}, r"sample \\ud83d .*Cannot open"),
    ],
)
def test_malformed_samples_are_named(tmp_path, data_folder, llava_processor, record, message):
    with pytest.raises(DataError, match=message):
        one(tmp_path, data_folder, llava_processor, record)[0]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "no samples"),
        ("[]", "no samples"),
        ("[", "breaks off or is damaged at byte 1"),
        ("[ \n", "breaks off or is damaged at byte"),
        ('[{"id": 1}, {"id": 2}', "damaged at byte"),
        ('[{"id": 1} {"id": 2}]', "expected ','"),
        ('[{"question": 1, "answer": 2}, 7]', "'conversations' or 'messages'; the first has 'question', 'answer'"),
        ('[{"conversations": []}]\n[{"conversations": []}]', "goes on behind the end of its JSON list, at byte 24"),
        ('[{"conversations": []}]}', "goes on behind the end of its JSON list"),
        ('[{"conversations": []},]', "damaged at byte 23"),
        ('[{"id": tru}]', "damaged at byte 1"),
        ('{"data": [{"id": 1}]}', "neither a JSON list nor JSON lines"),
        ('{\n "conversations": []\n}', "neither a JSON list nor JSON lines"),
        ("id,image\n1,a.png\n", "neither a JSON list nor JSON lines"),
    ],
)
def test_damaged_files_are_refused(tmp_path, content, message):
    file = tmp_path / "data.json"
    file.write_text(content)
    with pytest.raises(DataError, match=message):
        index_json(file)


def test_lines_that_are_no_objects_are_refused_when_read(tmp_path, data_folder, llava_processor):
    file = tmp_path / "data.jsonl"
    file.write_text('"a text"\n{"id": \n{"conversations": []}\n')
    samples = dataset(file, llava_processor)
    for index in range(2):
        with pytest.raises(DataError, match=f"number {index} of data.jsonl"):
            samples[index]


@pytest.mark.parametrize("form", ["[%s]", "%s"])
@pytest.mark.parametrize(
    "value", ["7", "null", '{"conversations": ' + "[" * 5000 + "]" * 5000 + "}", '{"id": ' + "9" * 5000 + "}"]
)
def test_one_value_that_is_no_record_is_one_bad_sample(tmp_path, data_folder, llava_processor, records, form, value):
    lines = [json.dumps(records[0]), value, json.dumps(records[1])]
    (tmp_path / "data.json").write_text(form % (",\n" if form == "[%s]" else "\n").join(lines))
    found = open_records(str(tmp_path / "data.json"))
    assert len(found) == 3
    assert (found[0], found[2]) == (records[0], records[1])
    with pytest.raises(DataError, match="JSON object"):
        found[1]


@pytest.mark.parametrize("name", ["instruct.json", "instruct.jsonl"])
def test_a_byte_order_mark_is_no_part_of_the_data(tmp_path, data_folder, name):
    (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + (data_folder / name).read_bytes())
    marked, plain = open_records(str(tmp_path / name)), open_records(str(data_folder / name))
    assert [marked[i] for i in range(len(marked))] == [plain[i] for i in range(len(plain))]
    assert marked.lengths.tolist() == plain.lengths.tolist()


def test_a_list_is_indexed_in_the_memory_of_one_copy(tmp_path):
    """One character a byte, and the file itself only as pages that the system may drop."""
    record = json.dumps({"conversations": [{"from": "human", "value": "x" * 100_000}]})
    (tmp_path / "large.json").write_text(f"[{','.join([record] * 200)}]")
    tracemalloc.start()
    spans, _ = index_json(tmp_path / "large.json")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(spans) == 200
    assert peak < 1.2 * (tmp_path / "large.json").stat().st_size


def test_without_an_end_token_of_its_own_no_answer_is_learnt(llava_processor, data_folder):
    llava_processor.tokenizer.pad_token = llava_processor.tokenizer.eos_token
    with pytest.raises(CheckpointError, match="pad token is '</s>'"):
        dataset(data_folder / "instruct.json", llava_processor)
    dataset(data_folder / "align.json", llava_processor, template="plain")


def test_a_tokenizer_without_the_end_token_is_refused(data_folder, llava_base):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import AutoProcessor, PreTrainedTokenizerFast

    processor = AutoProcessor.from_pretrained(llava_base)
    words = Tokenizer(models.WordLevel({"<unk>": 0, "<|end|>": 1}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    processor.tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>", eos_token="<|end|>")
    processor.tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    processor.image_token_id = processor.tokenizer.convert_tokens_to_ids("<image>")
    with pytest.raises(CheckpointError, match="ends every answer with '</s>', and the tokenizer has no such token"):
        dataset(data_folder / "instruct.json", processor)


def test_missing_file_and_folder_are_refused(tmp_path, data_folder, llava_processor):
    with pytest.raises(DataError, match="cannot read"):
        dataset(tmp_path / "none.json", llava_processor)
    with pytest.raises(DataError, match="image folder"):
        dataset(data_folder / "align.json", llava_processor, images=tmp_path / "none")


def test_worker_processes_give_the_same_batches(data_folder, llava_processor):
    samples = dataset(data_folder / "instruct.json", llava_processor)
    assert len(pickle.loads(pickle.dumps(samples))) == len(samples)

    def batches(workers):
        function = partial(collate, pad_token_id=0)
        return list(torch.utils.data.DataLoader(samples, 4, num_workers=workers, collate_fn=function))

    for here, there in zip(batches(0), batches(1), strict=True):
        assert here.keys() == there.keys()
        assert here.pop("sample_ids") == there.pop("sample_ids")
        assert all(torch.equal(here[key], there[key]) for key in here)
