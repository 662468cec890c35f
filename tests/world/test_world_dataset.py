"""The data set on disk: LLaVA's format, the same whatever the number of processes, and its command line."""

import json
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import typer
from PIL import Image

from llava_stf.errors import DataError
from llava_stf.world import ALL, caption, corpus, draw, questions_of, write_dataset
from llava_stf.world.__main__ import main


def read(path: Path) -> list[dict]:
    return json.loads(path.read_text(encoding="utf-8"))


def test_instruct_and_align_have_the_llava_format(tmp_path: Path) -> None:
    write_dataset(tmp_path, 40, seed=2, captions=True)
    for name, images in (("instruct", None), ("align", 40)):
        rows = read(tmp_path / f"{name}.json")
        assert images is None or len(rows) == images
        assert len({row["id"] for row in rows}) == len(rows)
        for row in rows:
            assert set(row) == {"id", "image", "conversations"}
            with Image.open(tmp_path / row["image"]) as image:
                assert (image.size, image.mode) == ((112, 112), "RGB")
            turns = row["conversations"]
            assert [turn["from"] for turn in turns] == ["human", "gpt"] * (len(turns) // 2)
            assert len(turns) >= 2
            assert turns[0]["value"].startswith("<image>\n")
            assert sum("<image>" in turn["value"] for turn in turns) == 1
    assert not (tmp_path / "questions.json").exists()


def test_describe_ends_every_conversation_with_the_caption(tmp_path: Path) -> None:
    write_dataset(tmp_path, 30, seed=4, describe=True, questions_per_image=2)
    for index, row in enumerate(json.loads((tmp_path / "instruct.json").read_text())):
        *_, request, answer = row["conversations"]
        assert request["value"].removeprefix("<image>\n") == "Describe the picture."
        assert answer == {"from": "gpt", "value": caption(draw(index, seed=4)[0])}
        assert [turn["value"].count("<image>") for turn in row["conversations"]].count(1) == 1
        assert row["conversations"][0]["value"].startswith("<image>\n")


def test_files_hold_what_draw_and_questions_of_give(tmp_path: Path) -> None:
    write_dataset(tmp_path, 12, seed=9, split="held_out")
    records = read(tmp_path / "questions.json")
    for index in range(12):
        scene, pixels = draw(index, seed=9, split="held_out")
        image = f"images/000/{index:06d}.png"
        assert np.array_equal(np.asarray(Image.open(tmp_path / image)), pixels)
        asked = questions_of(scene, index, seed=9, split="held_out")
        mine = [record for record in records if record["image"] == image]
        assert [(r["family"], r["kind"], r["question"], r["answer"], tuple(r["options"])) for r in mine] == [
            (q.family, q.kind, q.text, q.answer, q.options) for q in asked
        ]
    assert len({record["id"] for record in records}) == len(records)


def test_two_processes_write_the_same_bytes_as_one(tmp_path: Path) -> None:
    for workers in (1, 2):
        write_dataset(tmp_path / str(workers), 70, seed=1, captions=True, split="held_out", workers=workers)
    one, two = (sorted(path for path in (tmp_path / name).rglob("*") if path.is_file()) for name in ("1", "2"))
    assert len(one) == 73
    assert [path.name for path in one] == [path.name for path in two]
    assert all(left.read_bytes() == right.read_bytes() for left, right in zip(one, two, strict=True))


@pytest.mark.parametrize(
    "wrong",
    [
        *({"families": ["video"]}, {"families": []}, {"max_objects": 9}, {"questions_per_image": 0}, {"split": "test"}),
        *({"side": 20}, {"side": 99_999}),
    ],
)
def test_wrong_requests_are_refused_and_leave_nothing(tmp_path: Path, wrong: dict) -> None:
    with pytest.raises(DataError, match="Expected"):
        write_dataset(tmp_path / "out", 3, seed=0, **wrong)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("seed", ["1", 1.5, None, -1, 2**32])
def test_a_seed_that_is_none_is_refused(seed) -> None:
    with pytest.raises(DataError, match="Expected seed and index from 0 to"):
        draw(0, seed=seed)


def test_a_data_set_is_not_overwritten_and_a_folder_that_takes_none_is_said(tmp_path: Path) -> None:
    write_dataset(tmp_path / "out", 3, seed=0)
    before = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    with pytest.raises(DataError, match="holds a data set already"):
        write_dataset(tmp_path / "out", 2, seed=1)
    assert {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()} == before
    with pytest.raises(DataError, match="cannot be written"):
        write_dataset(tmp_path / "out" / "instruct.json" / "below", 2, seed=1)


@pytest.mark.parametrize("refused", ["images/000/000001.png", "align.json", "questions.json"])
def test_a_file_that_cannot_be_written_is_named_and_the_data_set_is_not_taken_for_finished(
    tmp_path: Path, refused: str
) -> None:
    (tmp_path / refused).mkdir(parents=True)  # as a full disk does, it keeps a file from its place
    with pytest.raises(DataError, match=f"{refused} cannot be written"):
        write_dataset(tmp_path, 3, seed=0, captions=True, split="held_out")
    assert not (tmp_path / "instruct.json").exists()


def test_images_are_sharded_by_the_thousand(tmp_path: Path) -> None:
    write_dataset(tmp_path, 1001, seed=0, families=["open"], questions_per_image=1)
    assert [len(list(folder.iterdir())) for folder in sorted((tmp_path / "images").iterdir())] == [1000, 1]


def test_the_corpus_repeats_itself_and_holds_the_questions_of_the_training_split() -> None:
    texts = list(corpus(30, seed=6))
    assert texts == list(corpus(30, seed=6))
    scene, _ = draw(0, seed=6)
    assert questions_of(scene, 0, seed=6)[0].text in texts
    assert next(islice(corpus(30, seed=7), 1)) != texts[0]


def test_the_command_line_writes_a_held_out_split_and_names_a_wrong_family(tmp_path: Path, capsys) -> None:
    main(tmp_path / "set", count=8, seed=4, held_out=True, captions=True, family=list(ALL))
    assert "TextVQA" in capsys.readouterr().out
    assert (tmp_path / "set" / "questions.json").exists()
    with pytest.raises(typer.Exit) as stopped:
        main(tmp_path / "other", count=8, family=["video"])
    assert stopped.value.exit_code == 2
    assert "video" in capsys.readouterr().err
    command = typer.Typer()
    command.command()(main)
    with pytest.raises(SystemExit) as refused:
        command(["--out", str(tmp_path / "other"), "--workers", "0"])
    assert refused.value.code == 2
    assert not (tmp_path / "other").exists()
