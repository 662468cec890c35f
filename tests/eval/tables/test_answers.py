"""What is set beside each other in a table must be answers to the same questions."""

import json
import re

import pytest

from llava_stf.errors import DataError
from llava_stf_eval.tables import bundled, distillation, resamplers, tiles
from llava_stf_eval.tables.answers import read_answers

RESULT = {"images": 250, "seed": 0, "questions": 700, "families": {"text": 0.5, "open": 0.6, "presence": 0.7},
          "accuracy": 0.6, "vision_tokens": 16}  # fmt: skip


@pytest.fixture
def write(tmp_path):
    def write(name, **changed):
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps([RESULT | changed]))
        return path

    return write


def refuses(one, other):
    return pytest.raises(DataError, match=f"{re.escape(str(one))} about .* and {re.escape(str(other))} about")


def test_answers_come_in_the_order_of_their_files(write):
    paths = [write("b"), write("a", accuracy=0.4, vision_tokens=4)]
    assert read_answers(paths) == [[RESULT], [RESULT | {"accuracy": 0.4, "vision_tokens": 4}]]


@pytest.mark.parametrize(
    ("content", "named"), [("[", "is damaged"), ("{}", "holds no results"), ('[{"model": "tiny"}]', "holds no results")]
)
def test_a_file_of_something_else_is_named(tmp_path, content, named):
    (tmp_path / "pool-0.json").write_text(content)
    for ask in (bundled.table, tiles.table):
        with pytest.raises(DataError, match=rf"pool-0\.json {named}"):
            ask(tmp_path)
    with pytest.raises(DataError, match=r"Cannot read .*speed\.json: No such file"):
        resamplers.table(tmp_path, tmp_path / "speed.json")


@pytest.mark.parametrize("ask", [bundled.table, tiles.table, distillation.read_runs])
def test_a_folder_without_any_is_no_table(tmp_path, ask):
    with pytest.raises(DataError, match=r"found none; run scripts/measure_|Cannot read .*untrained\.json"):
        ask(tmp_path / "none")


def test_a_family_that_was_not_asked_is_left_blank(write):
    folder = write("pool-0", families={"text": 0.5}).parent
    assert "| 50.0 |" in bundled.table(folder)
    assert tiles.table(folder).endswith("| 16 | 60.0 | 50.0 | | |")


@pytest.mark.parametrize(
    "other",
    [{"images": 50}, {"questions": 690}, {"families": {"text": 0.5}}, {"seed": 1}],
    ids=lambda one: "".join(one),
)
def test_answers_to_other_questions_are_refused(write, other):
    first, _, last = paths = [write("a"), write("b"), write("c", **other)]
    with refuses(first, last):
        read_answers(paths)


def test_of_other_seeds_as_many_images_are_enough(write):
    paths = [write("a-0"), write("a-1", seed=1, questions=703), write("b-1", seed=1, questions=703)]
    assert [result["seed"] for (result,) in read_answers(paths, of_one_seed=False)] == [0, 1, 1]
    with refuses(paths[0], few := write("b-2", seed=2, images=50)):
        read_answers([*paths, few], of_one_seed=False)
    with refuses(paths[1], other := write("c-1", seed=1, questions=700)):
        read_answers([*paths, other], of_one_seed=False)


@pytest.mark.parametrize(
    ("kind", "tabulate"),
    [
        pytest.param("fused", bundled.table, id="bundled"),
        pytest.param("fused", lambda folder: bundled.lead(folder, "fused", "pool"), id="lead"),
        pytest.param("fused", lambda folder: resamplers.table(folder, folder / "speed.json"), id="resamplers"),
        pytest.param("stf", tiles.table, id="tiles"),
    ],
)
def test_no_table_holds_a_quick_try_beside_a_run(write, tmp_path, kind, tabulate):
    (tmp_path / "speed.json").write_text('{"rows": []}')
    first, other = write("pool-0", images=50), write(f"{kind}-0")
    with refuses(*((first, other) if tabulate is bundled.table else (other, first))):  # in the table's order
        tabulate(tmp_path)
