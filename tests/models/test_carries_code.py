"""A checkpoint with its code is read where this package is not, with equal answers."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from llava_stf import load_model
from llava_stf.loading.testing import write_tiny_llava

QUESTION = "USER: <image>\nWhat is it, </s> or <s>? ASSISTANT:"
# A finder that knows no module of ours stands for an environment in which none is installed.
READER = """
import sys

class Nowhere:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("llava_stf", "llava_stf_kernels", "llava_stf_eval"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Nowhere())
import json
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

folder, image, question = sys.argv[1:]
model = AutoModelForImageTextToText.from_pretrained(folder, trust_remote_code=True).eval()
processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
inputs = processor(images=Image.open(image), text=question, return_tensors="pt")
with torch.no_grad():
    logits = model(**inputs).logits[0, -1, :8].tolist()
    ids = model.generate(**inputs, max_new_tokens=6, do_sample=False)[0].tolist()
model.save_pretrained(folder + "-again")
processor.save_pretrained(folder + "-again")
assert not [name for name in sys.modules if name.partition(".")[0] in ("llava_stf", "llava_stf_kernels")]
print(json.dumps({"logits": logits, "ids": ids}))
"""


def read_elsewhere(folder: Path, image: Path) -> dict:
    settings = os.environ | {"HF_MODULES_CACHE": str(folder.parent / "modules")}
    command = [sys.executable, "-c", READER, str(folder), str(image), QUESTION]
    done = subprocess.run(command, capture_output=True, text=True, env=settings, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("method", ["stf", "pool"])
def test_answers_are_equal_where_the_package_is_not_installed(method, plain_folder, tmp_path):
    from llava_stf import apply_pooling, apply_stf

    model, processor = load_model(plain_folder, vision_tokens="all", device="cpu")
    {"stf": apply_stf, "pool": apply_pooling}[method](model, processor)
    folder, image = tmp_path / "model", tmp_path / "image.png"
    model.save_pretrained(folder, with_code=True)
    processor.save_pretrained(folder, with_code=True)
    Image.radial_gradient("L").convert("RGBA").save(image)
    inputs = processor(images=Image.open(image), text=QUESTION, return_tensors="pt")
    with torch.no_grad():
        logits = model(**inputs).logits[0, -1, :8]
        ids = model.generate(**inputs, max_new_tokens=6, do_sample=False)[0].tolist()
    for place in (folder, Path(f"{folder}-again")):
        found = read_elsewhere(place, image)
        assert found["ids"] == ids
        torch.testing.assert_close(torch.tensor(found["logits"]), logits)


def test_code_is_carried_on_request_alone(stf_folder, tmp_path):
    model, processor = load_model(stf_folder)
    model.save_pretrained(tmp_path / "with", with_code=True)
    processor.save_pretrained(tmp_path / "with", with_code=True)
    llava = load_model(tmp_path / "with")  # its own classes, not those in the folder
    assert type(llava.model) is type(model)
    llava.model.save_pretrained(tmp_path / "without")
    llava.processor.save_pretrained(tmp_path / "without")
    for name in ("with", "without"):
        texts = [(tmp_path / name / file).read_text() for file in ("config.json", "processor_config.json")]
        assert [("auto_map" in text) for text in texts] == [name == "with"] * 2
        assert bool(list((tmp_path / name).glob("*.py"))) == (name == "with")


def test_a_transparent_image_is_what_load_image_makes_of_it(stf_folder, tmp_path):
    from llava_stf.images import load_image

    processor = load_model(stf_folder).processor
    image = Image.new("RGBA", (56, 56), (200, 30, 90, 40))
    expected = processor(images=load_image(image), text="<image>", return_tensors="pt")
    found = processor(images=[image], text="<image>", return_tensors="pt")
    assert torch.equal(found["pixel_values"], expected["pixel_values"])


def test_saving_leaves_the_config_as_it_was(tmp_path):
    model, processor = load_model(write_tiny_llava(tmp_path / "model"))
    before = model.config.to_dict()
    model.save_pretrained(tmp_path / "copy", with_code=True)
    assert (model.config.to_dict(), hasattr(processor, "auto_map")) == (before, False)
