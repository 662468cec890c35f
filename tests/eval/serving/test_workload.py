"""Images that all differ, and arrivals that are random but the same for every server."""

import base64
import io

import numpy as np
import pytest
from PIL import Image

from llava_stf.errors import LlavaStfError
from llava_stf_eval.serving.workload import Load, arrivals, questions


def test_poisson_arrivals_have_the_asked_rate_and_exponential_gaps() -> None:
    times = arrivals(4000, 5.0, seed=1)
    assert times[0] == 0
    assert len(times) == 4000
    gaps = np.diff(times)
    assert (gaps > 0).all()
    assert gaps.sum() == pytest.approx(4000 / 5.0, rel=0.01)  # but the last gap, which nobody waits for
    assert gaps.std() / gaps.mean() == pytest.approx(1, abs=0.06)  # of an exponential 1; 4000 draws: error 0.02
    assert np.mean(gaps > 0.2) == pytest.approx(np.exp(-1), abs=0.03)


def test_arrivals_are_those_of_their_seed() -> None:
    assert arrivals(50, 2.0, seed=3) == arrivals(50, 2.0, seed=3)
    assert arrivals(50, 2.0, seed=3) != arrivals(50, 2.0, seed=4)
    assert np.allclose(arrivals(50, 4.0, seed=3), np.array(arrivals(50, 2.0, seed=3)) / 2)


def test_drawn_images_all_differ_and_are_those_of_their_seed() -> None:
    asked = list(questions(None, 0, 12))
    assert len({question.image for question in asked}) == 12
    assert asked == list(questions(None, 0, 12))
    assert asked[0] != next(questions(None, 1, 1))
    kind, _, data = asked[0].image.partition(",")
    assert kind == "data:image/png;base64"
    assert Image.open(io.BytesIO(base64.b64decode(data))).size == (112, 112)
    assert [part["type"] for part in asked[0].content] == ["image_url", "text"]


def test_images_of_a_folder_are_sent_as_they_are(tmp_path) -> None:
    for number, name in enumerate(["b.jpg", "a.png", "c.webp"]):
        Image.new("RGB", (8, 8), (number * 80, 0, 0)).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no image")
    asked = list(questions(tmp_path, 0, 3))
    kinds = [question.image.partition(";")[0] for question in asked]
    assert kinds == ["data:image/png", "data:image/jpeg", "data:image/webp"]
    assert base64.b64decode(asked[1].image.partition(",")[2]) == (tmp_path / "b.jpg").read_bytes()
    with pytest.raises(LlavaStfError, match=r"4 requests need as many images.* has 3"):
        questions(tmp_path, 0, 4)
    with pytest.raises(LlavaStfError, match="Expected a folder of images"):
        questions(tmp_path / "none", 0, 1)


def test_loads_are_named() -> None:
    assert [Load(clients=1).name, Load(clients=8).name, Load(rate=2.5).name] == [
        "1 client",
        "8 clients",
        "Poisson, 2.5 a second",
    ]
