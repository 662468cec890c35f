"""Images in place of those of a data file."""

import json
import sys
from itertools import islice

import numpy as np
import pytest
from PIL import Image

from llava_stf.encoders.pretrain.data import ArrayImages
from llava_stf.errors import DataError
from llava_stf.world import SIDE
from llava_stf_eval.measurement import image_sources
from llava_stf_eval.measurement.image_sources import crops, noise, write_images


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "instruct.json"
    path.write_text(json.dumps([{"id": str(n), "image": f"images/{n}.png", "conversations": []} for n in range(3)]))
    return path


def test_images_are_shown_whole_first_and_then_in_parts():
    array = np.random.default_rng(3).integers(0, 256, (4, SIDE, SIDE, 3), dtype=np.uint8)
    found = [np.asarray(image) for image in islice(crops(ArrayImages(array), np.random.default_rng(0)), 12)]
    assert {image.tobytes() for image in found[:4]} == {image.tobytes() for image in array}
    assert len({image.tobytes() for image in found}) == 12
    assert {image.shape for image in found} == {(SIDE, SIDE, 3)}


def test_noise_has_every_value_and_repeats_itself_by_its_seed():
    one, again, other = (next(noise(np.random.default_rng(seed))) for seed in (0, 0, 1))
    assert one.tobytes() == again.tobytes() != other.tobytes()
    assert len(np.unique(np.asarray(one))) == 256


def test_each_record_has_an_image_at_its_path(data, tmp_path, monkeypatch, capsys):
    output = tmp_path / "noise"
    monkeypatch.setattr(sys, "argv", ["image_sources", str(data), str(output), "--noise"])
    image_sources.main()
    assert capsys.readouterr().out == f"{output}: 3 images\n"
    assert [Image.open(output / f"images/{n}.png").size for n in range(3)] == [(SIDE, SIDE)] * 3


@pytest.mark.parametrize("image", ["../out.png", "/out.png", ["a.png", "b.png"], None])
def test_a_path_that_leads_elsewhere_is_refused(tmp_path, image):
    path = tmp_path / "data.json"
    path.write_text(json.dumps([{"image": image, "conversations": []}]))
    with pytest.raises(DataError, match="needs the relative path of one image"):
        write_images(path, tmp_path / "out", noise(np.random.default_rng(0)))
    assert not (tmp_path / "out").exists()
