"""Whatever a data file holds, each of its rows is a result or a counted bad row with a sentence, never a traceback.

Files are cut from valid ones: values of a row are left out, replaced, nested, made huge or broken, and the file around
them is marked, doubled, cut or re-encoded. Every reader takes them: the check, training, labelling, and a batch.
"""

import copy
import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llava_stf import load_model
from llava_stf.batch.rows import open_rows
from llava_stf.data.preparation import Preparation
from llava_stf.data.sources import open_records
from llava_stf.errors import DataError
from llava_stf.training.data import LlavaDataset
from llava_stf.training.data_check import check_data
from llava_stf.training.label import Labeller
from llava_stf.training.label_file import open_labels

IMAGE = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]}
ROWS = [
    {
        "id": "llava",
        "image": "red.png",
        "question": "What?",
        "conversations": [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "Red."}],
    },
    {"id": 7, "images": ["red.png"], "messages": [IMAGE, {"role": "assistant", "content": "Red."}]},
    {"id": "text", "conversations": [{"from": "human", "value": "Who?"}, {"from": "gpt", "value": "I."}]},
]
FIELDS = ("id", "image", "images", "question", "conversations", "messages", "video", "from", "value", "role", "content")
# What JSON can say in place of any value; texts in <angle brackets> become something that `json.dumps` never writes.
OTHERS = st.sampled_from(
    [
        *(None, True, 0, -1, 1.5, "", " ", [], {}, [None], [[]], {"bytes": 5}, {"bytes": None, "path": "red.png"}),
        *(
            "<image>",
            "</s>",
            "ASSISTANT: no",
            "\ud83d",
            "a\0b",
            "\ufeff",
            "a\nb\x1b[31m",
            "é" * 40,
            "../../red.png",
            "data:,x",
        ),
        *("A" * 300, "A" * 6000, "https://nowhere.invalid/a.png", "<nested>", "<digits>", "<nan>", "<bytes>"),
    ]
).map(copy.deepcopy)
WRITTEN = {
    '"<nested>"': "[" * 3000 + "]" * 3000,
    '"<digits>"': "9" * 5000,
    '"<nan>"': "NaN",
    '"<bytes>"': '"\udcff\udcfe"',  # surrogateescape: the bytes ff and fe, which are no UTF-8
}


def places(value, path=()):
    """The paths of all values inside a value."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in inner:
        yield (*path, key)
        yield from places(item, (*path, key))


@st.composite
def rows(draw):
    """A valid row with up to two of its values changed."""
    row = copy.deepcopy(draw(st.sampled_from(ROWS)))
    for _ in range(draw(st.integers(0, 2))):
        found = list(places(row))
        if not found:
            break
        *path, last = draw(st.sampled_from(found))
        owner = row
        for key in path:
            owner = owner[key]
        change = draw(st.sampled_from(["replace", "drop", "wrap", "double", "add"]))
        if change == "replace":
            owner[last] = draw(OTHERS)
        elif change == "drop":
            del owner[last]
        elif change == "wrap":
            owner[last] = draw(st.sampled_from([[owner[last]], {"value": owner[last]}]))
        elif change == "double":
            owner[last] = [owner[last], copy.deepcopy(owner[last])]
        elif isinstance(owner, dict):
            owner[draw(st.sampled_from(FIELDS))] = draw(OTHERS)
    return draw(st.one_of(st.just(row), st.just(row), st.just(row), OTHERS))


@st.composite
def files(draw):
    """The bytes of a data file of three rows, as a list or as lines, and perhaps something done to it as a whole."""
    lines = [json.dumps(row) for row in draw(st.lists(rows(), min_size=3, max_size=3))]
    if draw(st.booleans()):
        lines[0] = lines[0].replace("{", '{"id": 1, ', 1)  # a key twice
    whole = draw(st.sampled_from(["[%s]", "%s", "%s\n"]))
    text = whole % (",\n" if whole == "[%s]" else "\n").join(lines)
    for name, written in WRITTEN.items():
        text = text.replace(name, written)
    content = text.encode("utf-8", "surrogateescape")
    change = draw(st.sampled_from([None] * 4 + ["bom", "two", "cut", "utf-16", "crlf", "tail", "zero"]))
    return {
        "bom": b"\xef\xbb\xbf" + content,
        "two": content + content,
        "cut": content[: len(content) * 2 // 3],
        "utf-16": content.decode("latin-1").encode("utf-16"),
        "crlf": content.replace(b"\n", b"\r\n\r\n"),
        "tail": content + b"}",
        "zero": content + b"\0",
        None: content,
    }[change]


@pytest.fixture(scope="module")
def llava(llava_base):
    return load_model(llava_base, vision_tokens="all", device="cpu")


@given(content=files())
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_row_is_a_result_or_a_counted_bad_one(tmp_path, data_folder, llava, content):
    path, output = tmp_path / "data.json", tmp_path / "out.jsonl"
    path.write_bytes(content)
    output.unlink(missing_ok=True)
    batch(path, data_folder)
    try:
        records = open_records(str(path))
    except DataError as error:
        assert readable(str(error))  # noqa: PT017 - either outcome is right
        return
    prepare = Preparation(llava.processor, name=path.name, images=data_folder, template="v1", max_length=400)
    report = check_data(records, prepare, workers=0)
    assert report.samples == len(records)
    sentences = [sentence for found in report.offenders.values() for pair in found for sentence in pair]
    assert all(map(readable, sentences))
    train(LlavaDataset(records, prepare, max_bad_samples=0.99), report)
    label(llava, records, output, data_folder, report)


def readable(sentence):
    return sentence.isprintable() and 0 < len(sentence) < 1200


def batch(path, folder):
    try:
        found = open_rows(path, question="What?", images=folder, allow_urls=False)
    except DataError:
        return
    for number in range(len(found)):
        row = found[number]
        assert row.reason or row.images
        assert json.dumps([row.id, row.reason])


def train(samples, report):
    for number in range(len(samples)):
        try:
            sample = samples[number]
        except DataError:
            assert report.bad == report.samples
        else:
            assert (sample["labels"][1:] != -100).any()
    assert len(samples.bad_samples.verdicts) == report.samples
    assert int((samples.bad_samples.verdicts > 1).sum()) == report.bad


def label(llava, records, output, folder, report):
    teacher = {"model": "M"}
    with open_labels(output, records, range(len(records)), teacher) as labels:
        labeller = Labeller(
            llava, records, labels, images=folder, batch_size=3, max_new_tokens=2, max_bad_samples=1
        )  # fmt: skip
        list(labeller.run())
        answered, bad = labels.answered, int((labeller.bad_samples.verdicts > 1).sum())
    assert answered + bad + labeller.unanswered == report.samples
    with open_labels(output, records, range(len(records)), teacher) as labels:
        assert labels.answered == answered
