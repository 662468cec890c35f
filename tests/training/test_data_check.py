"""The check finds every kind of bad sample, names the first and measures lengths, with any number of processes."""

import json

import pytest

from llava_stf.data.preparation import Preparation
from llava_stf.data.sources import open_records
from llava_stf.training.data import LlavaDataset
from llava_stf.training.data_check import BATCH, OFFENDERS, check_data

QUESTION = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A square."}]
MANY = [{"from": "human", "value": "<image>" * 30}, *QUESTION[1:]]
QUOTING = [{"from": "human", "value": "Hello?"}, {"from": "gpt", "value": "It says ASSISTANT: stop."}]
HALF_A_PAIR = [{"from": "human", "value": "Which bird?"}, {"from": "gpt", "value": "A \ud83d."}]
FAULTY = {
    "no record": {"id": "f0", "image": 5, "conversations": QUESTION},
    "other media": {"id": "f6", "video": "v.mp4", "conversations": QUESTION},
    "turn order": {"id": "f1", "image": "red.png", "conversations": QUESTION[:1] * 2},
    "broken text": {"id": "f7", "conversations": HALF_A_PAIR},
    "image markers": {"id": "f2", "conversations": QUESTION},
    "missing image": {"id": "f3", "image": "gone.png", "conversations": QUESTION},
    "broken image": {"id": "f4", "image": "align.json", "conversations": QUESTION},
    "too long": {"id": "f5", "image": ["red.png"] * 30, "conversations": MANY},
    "no target": {"id": "f8", "conversations": QUOTING},
}  # fmt: skip


@pytest.fixture
def check(tmp_path, data_folder, llava_processor):
    def run(samples, *, workers=0, max_length=400, template="v1"):
        file = tmp_path / "data.json"
        file.write_text(json.dumps(samples))
        prepare = Preparation(
            llava_processor, name=file.name, images=data_folder, template=template, max_length=max_length
        )
        return check_data(open_records(str(file)), prepare, workers=workers)

    return run


def test_every_reason_is_counted_and_named(check, records):
    short = {"id": "short", "conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hi"}]}
    report = check([*FAULTY.values(), short])
    assert report.reasons == dict.fromkeys(FAULTY, 1)
    assert {reason: first[0][0] for reason, first in report.offenders.items()} == {
        reason: record["id"] for reason, record in FAULTY.items()
    }
    assert report.offenders["missing image"][0][1].startswith("sample f3 of data.json (number 5): No image file at")
    assert (report.samples, report.bad) == (10, 9)


def test_processes_report_the_same_in_the_order_of_the_data(check, records):
    samples = [dict(records[i % 12], id=str(i)) for i in range(3 * BATCH)]
    for number in range(10, 10 + 2 * OFFENDERS):
        samples[number]["conversations"] = QUESTION[1:]
    alone, together = check(samples), check(samples, workers=2)
    assert alone.reasons == {"turn order": 2 * OFFENDERS}
    assert [name for name, _ in alone.offenders["turn order"]] == [str(10 + i) for i in range(OFFENDERS)]
    assert (together.reasons, together.offenders, together.lengths) == (alone.reasons, alone.offenders, alone.lengths)


def test_lengths_are_those_of_training_before_the_cut(check, records, data_folder, llava_processor):
    file = data_folder / "instruct.json"
    prepare = Preparation(llava_processor, name="x", images=data_folder, template="v1", max_length=4096)
    samples = LlavaDataset(open_records(str(file)), prepare)
    lengths = sorted(len(samples[i]["input_ids"]) for i in range(12))
    report = check(records, max_length=lengths[6])
    assert report.lengths == (lengths[0], (lengths[5] + lengths[6]) / 2, lengths[11])
    assert report.cut == sum(length > lengths[6] for length in lengths)


def test_a_sample_with_nothing_to_learn_says_why(check):
    last = [*QUOTING[:1], {"from": "gpt", "value": "Hi."}, {"from": "human", "value": "And?"}]
    report = check([FAULTY["no target"], {"id": "b", "conversations": last}])
    assert report.reasons == {"no target": 2}
    assert "every question needs an answer, and no text may hold 'ASSISTANT:'" in report.offenders["no target"][0][1]


def test_a_stage_has_its_own_rules(check, records):
    captions = [{"id": "c", "image": "red.png", "conversations": QUESTION}]
    assert check(captions, template="plain").bad == 0
    assert check(records, template="plain").reasons == {"turn order": 12}


def test_a_set_without_one_good_sample_has_no_lengths(check):
    assert check(list(FAULTY.values())).lengths is None
