"""Labelling: a teacher's answers are those of `chat`, training takes them, and no question gets two rows or none."""

import itertools
import json
import resource

import pytest
import torch
from PIL import Image

from llava_stf import load_model
from llava_stf.data.label_questions import ImageQuestions, read_prompts
from llava_stf.data.preparation import Preparation
from llava_stf.data.sources import JsonRecords
from llava_stf.errors import DataError, LlavaStfError
from llava_stf.models.llava_stf.conversation import IGNORE_INDEX
from llava_stf.training.label import Labeller
from llava_stf.training.label_file import open_labels
from llava_stf.world import draw

TEACHER = {"model": "M", "max_new_tokens": 4}


def human(*texts):
    return [{"from": "human", "value": text} for text in texts]


@pytest.fixture(scope="module")
def llava(llava_base):
    """A plain LLaVA of random weights, which answers with four characters."""
    return load_model(llava_base, vision_tokens="all", device="cpu")


@pytest.fixture
def write_questions(tmp_path):
    """Writes records as JSON lines and opens them."""

    def write(records):
        path = tmp_path / "questions.jsonl"
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
        return JsonRecords(path)

    return write


@pytest.fixture
def label(llava, data_folder, tmp_path):
    """Answers questions into a file and gives its rows; `stop` ends the run after so many batches."""

    def run(questions, path=None, *, teacher=None, numbers=None, stop=None, **options):
        path = path or tmp_path / "out.jsonl"
        settings = {"images": data_folder, "batch_size": 2, "max_new_tokens": 4, **options}
        numbers = range(len(questions)) if numbers is None else numbers
        with open_labels(path, questions, numbers, teacher or TEACHER) as labels:
            list(itertools.islice(Labeller(llava, questions, labels, **settings).run(), stop))
        return [json.loads(line) for line in path.read_bytes().splitlines()] if path.exists() else []

    return run


RECORDS = [
    {"id": 7, "image": "red.png", "conversations": human("<image>\nWhat colour?", "Is it blue?", "Why?"), "kind": "x"},
    {"image": "blue.png", "conversations": human("What is this?\n<image>")},
    {"id": "talk", "conversations": human("How are you?", "And now?")},
    {
        "id": "three",
        "image": ["red.png", "green.png", "blue.png"],
        "conversations": human("<image><image> Same?", "<image>\nAnd now?"),
    },
    {"id": "long", "image": "green.png", "conversations": human("<image>\n" + "What is it? " * 9)},
]


@pytest.mark.parametrize("batch_size", [1, 5])
def test_answers_are_those_of_a_conversation_with_the_same_turns(
    llava, label, write_questions, data_folder, batch_size
):
    rows = label(write_questions(RECORDS), batch_size=batch_size)
    assert [row["id"] for row in rows] == [7, "1", "talk", "three", "long"]
    for row, record in zip(rows, RECORDS, strict=True):
        chat = llava.chat()
        images = record.get("image", [])
        waiting = [images] if isinstance(images, str) else list(images)
        for turn, answer in zip(row["conversations"][::2], row["conversations"][1::2], strict=True):
            for _ in range(turn["value"].count("<image>")):
                chat.add_image(data_folder / waiting.pop(0))
            text = turn["value"].replace("<image>", "").strip() if "<image>" in turn["value"] else turn["value"]
            assert answer == {"from": "gpt", "value": chat.ask(text, max_new_tokens=4)}
        assert row["conversations"][::2] == record["conversations"]
        assert {name: row[name] for name in record.keys() - {"conversations"}} == {
            name: record[name] for name in record.keys() - {"conversations"}
        }


def test_training_learns_what_the_teacher_would_say(tmp_path):
    """Every labelled id, the end of the answer included, is the teacher's most likely one behind the ids before it."""
    llava = load_model("tiny-full", device="cpu", dtype="float32")
    for index in range(4):
        Image.fromarray(draw(index, split="held_out")[1]).save(tmp_path / f"{index}.png")
    questions = ImageQuestions(tmp_path, ["How many shapes are there?", "Is there a red circle?"], tmp_path)
    with open_labels(tmp_path / "out.jsonl", questions, range(8), TEACHER) as labels:
        list(Labeller(llava, questions, labels, images=tmp_path, batch_size=3, max_new_tokens=16).run())
    prepare = Preparation(llava.processor, name="", images=tmp_path, template="v1", max_length=512)
    rows = JsonRecords(tmp_path / "out.jsonl")
    for number in range(8):
        sample = prepare(rows[number], number)
        with torch.inference_mode():
            logits = llava.model(
                input_ids=sample["input_ids"][None], pixel_values=sample["pixel_values"].to(llava.model.dtype)
            ).logits[0]
        places = (sample["labels"] != IGNORE_INDEX).nonzero()[:, 0]
        assert len(places) > 1
        assert torch.equal(logits[places - 1].argmax(-1), sample["labels"][places])


def test_own_answers_are_replaced_and_messages_are_read(label, write_questions, data_folder):
    turns = [
        *human("<image>\nWhat?"),
        {"from": "gpt", "value": "wrong"},
        *human("Sure?"),
        {"from": "gpt", "value": "x"},
    ]
    messages = [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]},
        {"role": "assistant", "content": "wrong"},
        {"role": "user", "content": "Sure?"},
    ]
    records = [
        {"id": "a", "image": "red.png", "conversations": turns},
        {"id": "b", "images": ["red.png"], "messages": messages},
    ]
    own, other = label(write_questions(records))
    assert own["conversations"] == other["conversations"]
    assert "wrong" not in json.dumps([own, other])
    assert "messages" not in other


def test_run_cut_at_any_byte_goes_on_to_the_same_file(label, write_questions, tmp_path):
    questions = write_questions([{**RECORDS[0], "id": "é"}, *RECORDS[1:4], RECORDS[1]])
    path = tmp_path / "out.jsonl"
    label(questions)
    whole = path.read_bytes()
    ends = [place + 1 for place, byte in enumerate(whole) if byte == ord("\n")]
    cuts = {0, 1, 5, *range(40, len(whole), 211), *(end + shift for end in ends for shift in (-1, 0, 3))}
    for cut in sorted(cut for cut in cuts if cut <= len(whole)):
        path.write_bytes(whole[:cut])
        label(questions)
        assert path.read_bytes() == whole, cut


@pytest.mark.parametrize(
    "content",
    [
        b"my notes",
        b'[{"id": 1}]',
        b'{"id": 1}',
        b'{"id": 1}\n',
        b'{"id": "a", "conversations": [{"from": "human", "value": "Else?"}]}',
        b'{\n "id": 1\n',
        b"\xff\xd8\xff\xe0" * 40,
        b"null\n",
    ],
)
def test_what_is_no_output_is_refused_and_kept(label, write_questions, tmp_path, content):
    path = tmp_path / "out.jsonl"
    path.write_bytes(content)
    with pytest.raises(DataError, match="something else than answers to these questions"):
        label(write_questions(RECORDS))
    assert path.read_bytes() == content


def test_output_of_other_questions_or_another_teacher_is_refused_and_kept(label, write_questions, tmp_path):
    path = tmp_path / "out.jsonl"
    label(write_questions(RECORDS))
    whole = path.read_bytes() + b'{"id": "torn'
    path.write_bytes(whole)
    with pytest.raises(DataError, match=r"holds answers with model M, this run N: name another file"):
        label(write_questions(RECORDS), teacher={**TEACHER, "model": "N"})
    others = [*RECORDS[:2], {**RECORDS[2], "conversations": human("How old are you?", "And now?")}, *RECORDS[3:]]
    with pytest.raises(DataError, match=r"something else .* about talk: name another file"):
        label(write_questions(others))
    assert path.read_bytes() == whole


def test_more_questions_are_added_behind_the_rows_there_are(label, write_questions):
    first = label(write_questions(RECORDS[:1] + RECORDS[2:4]))
    more = label(write_questions([*RECORDS[:1], *RECORDS[2:]]))
    assert more[:3] == first
    assert [row["id"] for row in more] == [7, "talk", "three", "long"]


def test_equal_records_have_a_row_each(label, write_questions):
    questions = write_questions([RECORDS[4]] * 3)
    assert len(label(questions, batch_size=1, stop=1)) == 1
    rows = label(questions)
    assert rows == [rows[0]] * 3


def test_parts_are_the_whole_without_overlap(label, write_questions, tmp_path):
    questions = write_questions(RECORDS)
    parts = [label(questions, tmp_path / f"{n}.jsonl", numbers=range(n, 5, 2)) for n in range(2)]
    assert [len(rows) for rows in parts] == [3, 2]
    whole = label(questions)
    assert [whole[0::2], whole[1::2]] == parts
    with pytest.raises(DataError, match="something else"):
        label(questions, tmp_path / "0.jsonl", numbers=range(1, 5, 2))


def test_file_in_use_is_refused_until_it_is_closed(label, write_questions, tmp_path):
    questions = write_questions(RECORDS)
    with (
        open_labels(tmp_path / "out.jsonl", questions, range(5), TEACHER),
        pytest.raises(DataError, match=r"another run has .*out.jsonl open"),
    ):
        label(questions)
    assert not (tmp_path / "out.jsonl").exists()  # nothing was written
    assert len(label(questions)) == 5


REASONS = {
    "no question": ({"image": "red.png", "conversations": []}, "found 0, of them 0 empty"),
    "empty question": ({"image": "red.png", "conversations": human("<image>\n ")}, "found 1, of them 1 empty"),
    "no text": ({"image": "red.png", "conversations": human("<image>\nA?", 5)}, "objects? with the texts"),
    "other speaker": ({"conversations": [{"from": "system", "value": "x"}, *human("A?")]}, "found system"),
    "no marker": ({"image": "red.png", "conversations": human("A?")}, "found 0 markers and 1 images"),
    "no path": ({"image": 5, "conversations": human("<image>\nA?")}, "'image' must be a path"),
    "missing": ({"image": "gone.png", "conversations": human("<image>\nA?")}, "No image file"),
    "broken": ({"image": "instruct.json", "conversations": human("<image>\nA?")}, "not an image"),
    "too long": ({"conversations": human("A?" * 200)}, "question 1 and 4 tokens .* do not fit the model's 512"),
    "too long later": ({"conversations": human("A?", "A?" * 200)}, "question 2 and 4 tokens .* do not fit"),
    "tag": ({"conversations": human("Say ASSISTANT: now")}, "a question holds the text ASSISTANT:"),
}


@pytest.mark.parametrize(("record", "sentence"), REASONS.values(), ids=REASONS)
def test_bad_record_is_left_out_counted_and_named(label, write_questions, caplog, record, sentence):
    questions = write_questions([*RECORDS[:2], {"id": "bad", **record}, *RECORDS[2:]])
    assert len(label(questions, stop=1)) == 2
    rows = label(questions, max_bad_samples=0.2)
    assert [row["id"] for row in rows] == [7, "1", "talk", "three", "long"]
    (message,) = [item.getMessage() for item in caplog.records if item.name.endswith("bad_samples")]
    assert "sample bad of questions.jsonl (number 2)" in message
    assert "1 of 3 samples seen" in message


def test_line_that_is_no_record_is_left_out(label, tmp_path):
    path = tmp_path / "questions.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in (RECORDS[0], [1], RECORDS[1])))
    assert [row["id"] for row in label(JsonRecords(path), max_bad_samples=0.5)] == [7, "2"]


def test_too_many_bad_records_stop_the_run_and_repaired_it_goes_on(label, write_questions, data_folder, tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    for name in ("red", "green"):
        (images / f"{name}.png").write_bytes((data_folder / f"{name}.png").read_bytes())
    records = [{"id": name, "image": f"{name}.png", "conversations": human("<image>\nA?")} for name in ("red", "blue")]
    questions = write_questions([*records, RECORDS[3]])
    with pytest.raises(DataError, match=r"sample blue of .*No image file at .*1 of 2 samples seen are bad"):
        label(questions, images=images, batch_size=1)
    (row,) = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert row["id"] == "red"
    (images / "blue.png").write_bytes((data_folder / "blue.png").read_bytes())
    assert [row["id"] for row in label(questions, images=images)] == ["red", "blue", "three"]


def test_full_disk_keeps_the_rows_and_goes_on_with_room(label, write_questions, tmp_path):
    questions = write_questions(RECORDS)
    whole = label(questions, tmp_path / "whole.jsonl")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (700, hard))  # a write beyond fails, as on a full disk
    try:
        with pytest.raises(DataError, match=r"cannot write to .*out.jsonl \(File too large\): make room"):
            label(questions)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (tmp_path / "out.jsonl").stat().st_size == 700
    assert label(questions) == whole


def test_empty_answer_gives_no_row_and_is_asked_again(label, llava, write_questions, monkeypatch):
    questions = write_questions(RECORDS)
    whole = label(questions)
    path = questions.path.with_name("silent.jsonl")
    generate, end = llava.model.generate, llava.processor.tokenizer.eos_token_id

    silent = iter([True])  # the first of three answers

    def generate_or_not(**inputs):
        ids = generate(**inputs)
        if next(silent, False):
            ids[0, inputs["input_ids"].shape[1] :] = end
        return ids

    with monkeypatch.context() as patch:
        patch.setattr(llava.model, "generate", generate_or_not)
        assert label(questions, path, batch_size=1, stop=1) == []
    assert label(questions, path) == whole


def test_full_gpu_is_one_sentence(label, llava, write_questions, monkeypatch):
    def generate(**inputs):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(llava.model, "generate", generate)
    with pytest.raises(LlavaStfError, match=r"no room for 2 questions at once: .* smaller batch size"):
        label(write_questions(RECORDS))


@pytest.fixture
def album(tmp_path):
    """Images in a folder of folders, and what is none."""
    folder = tmp_path / "album"
    (folder / "b").mkdir(parents=True)
    for name in ("b/two.JPG", "one.png", "b/zwei.webp"):
        Image.new("RGB", (8, 8)).save(folder / name)
    for name in ("._one.png", "notes.txt"):
        (folder / name).write_text("x")
    return folder


def test_folder_asks_every_prompt_about_every_image(album):
    questions = ImageQuestions(album, ["What?", "Why?"], album.parent)
    asked = [questions[number] for number in range(len(questions))]
    paths = ["album/b/two.JPG", "album/b/zwei.webp", "album/one.png"]
    assert [record["image"] for record in asked] == [path for path in paths for _ in range(2)]
    assert [record["conversations"] for record in asked[:2]] == [human("<image>\nWhat?"), human("<image>\nWhy?")]
    assert len({record["id"] for record in asked}) == 6


@pytest.mark.parametrize(
    ("folder", "prompt", "images", "sentence"),
    [
        ("album", " ", "album", "a prompt needs words"),
        ("album", "<image>\nWhat?", "album", "no <image>"),
        ("album", "What?", "album/b", "cannot start from"),
        ("empty", "What?", "empty", "holds no image"),
    ],
)
def test_folder_that_cannot_be_asked_about_is_refused(album, folder, prompt, images, sentence):
    (album.parent / "empty").mkdir()
    with pytest.raises(DataError, match=sentence):
        ImageQuestions(album.parent / folder, [prompt], album.parent / images)


def test_prompts_are_the_lines_of_a_file(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("What is it?\n\n  什么?  \n", encoding="utf-8")
    assert read_prompts(path) == ["What is it?", "什么?"]
    for content, sentence in ((b"\n \n", "holds no prompt"), (b"a\xff", "cannot read the prompts")):
        path.write_bytes(content)
        with pytest.raises(DataError, match=sentence):
            read_prompts(path)
