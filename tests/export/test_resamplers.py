"""Projectors of other papers in an export."""

import pytest
from PIL import Image

from llava_stf import load_model
from llava_stf.export.write import export_model
from llava_stf.reduction import apply_reduction

QUESTIONS = [(Image.radial_gradient("L").convert("RGB"), "What is it?"), (Image.new("RGB", (60, 40), "red"), "Where?")]


@pytest.mark.parametrize("name", ["tokenpacker", "mqt"])
def test_an_export_answers_as_the_model(plain_folder, tmp_path, name):
    llava = load_model(plain_folder, vision_tokens="all", device="cpu", dtype="float32")
    apply_reduction(*llava, name, vision_tokens=4)
    exported = load_model(export_model(llava, tmp_path / name))
    assert exported.vision_tokens == 4
    expected = llava.ask_batch(QUESTIONS, batch_size=2, max_new_tokens=5)
    assert exported.ask_batch(QUESTIONS, batch_size=2, max_new_tokens=5) == expected
