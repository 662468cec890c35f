"""A tiny LLaVA with random weights and a small data set in LLaVA's format."""

import json

import pytest
from PIL import Image

COLOURS = {"red": (220, 30, 30), "green": (30, 160, 30), "blue": (30, 30, 220)}


def turns(*texts):
    return [{"from": ("human", "gpt")[i % 2], "value": text} for i, text in enumerate(texts)]


@pytest.fixture(scope="session")
def records():
    """Twelve samples: nine with one image, two of text alone, one with two images."""
    samples = [
        {
            "id": f"s{i}",
            "image": f"{colour}.png",
            "conversations": turns("<image>\nWhat colour is it?", colour, f"Is it {colour}?", "Yes, it is."),
        }
        for i, colour in enumerate(list(COLOURS) * 3)
    ]
    return [
        *samples,
        {"id": "t0", "conversations": turns("How are you?", "I am a square.")},
        {"id": "t1", "conversations": turns("And who is that? 你好", "A circle.")},
        {"id": "m0", "image": ["red.png", "blue.png"], "conversations": turns("<image>\n<image>\nSame?", "No.")},
    ]


@pytest.fixture(scope="session")
def data_folder(tmp_path_factory, records):
    """instruct.json, instruct.jsonl, align.json and three PNG files."""
    folder = tmp_path_factory.mktemp("data")
    for name, rgb in COLOURS.items():
        Image.new("RGB", (40, 60), rgb).save(folder / f"{name}.png")
    captions = [
        {"id": name, "image": f"{name}.png", "conversations": turns("Describe it.\n<image>", f"a {name} square")}
        for name in COLOURS
    ]
    (folder / "instruct.json").write_text(json.dumps(records, indent=1, ensure_ascii=False), encoding="utf-8")
    lines = [json.dumps(record, ensure_ascii=False) for record in records]
    (folder / "instruct.jsonl").write_text("\n".join(lines) + "\n\n", encoding="utf-8")
    (folder / "align.json").write_text(json.dumps(captions))
    return folder


@pytest.fixture(scope="session")
def llava_base(tmp_path_factory):
    """The folder of a plain LLaVA with 4x4 patches."""
    from llava_stf.testing import write_tiny_llava

    return write_tiny_llava(tmp_path_factory.mktemp("base"), stf=False)


@pytest.fixture
def llava_processor(llava_base):
    from transformers import AutoProcessor

    return AutoProcessor.from_pretrained(llava_base)


@pytest.fixture
def run(tmp_path, llava_base, data_folder):
    """Trains in this process and returns the output folder."""

    from llava_stf.training.config import from_values
    from llava_stf.training.finetune import finetune

    def start(name="out", data="instruct.json", **options):
        values = {
            "base": str(llava_base),
            "data": str(data_folder / data),
            "output": str(tmp_path / name),
            "per_device_batch_size": 4,
            "max_steps": 3,
            "learning_rate": 1e-2,
            "num_workers": 0,
            "cpu_threads": 1,
            "logging_steps": 1,
            "bf16": False,
        }
        finetune(from_values({**values, **options}))
        return tmp_path / name

    return start
