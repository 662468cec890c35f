"""Shared fixtures: where the reference data stands, small random models, and a small data set in LLaVA's format."""

import json
import logging
import multiprocessing
import os
import runpy
import signal
from collections.abc import Callable, Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
import torch
from hypothesis import settings
from PIL import Image, ImageFile

# Triton reads it at its first import: without a GPU its interpreter runs the kernels' tests.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

# The first example of a test pays for imports, and a shared machine has no steady clock.
settings.register_profile("default", deadline=None)
settings.load_profile("default")

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

# A shell that starts the tests in the background has them ignore SIGINT, and what they start would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Outputs of the authors' own code on tiny models (golden/README.md).
GOLDEN = Path(__file__).resolve().parent / "golden"
COLOURS = {"red": (220, 30, 30), "green": (30, 160, 30), "blue": (30, 30, 220)}


def pytest_runtest_setup(item):
    # What other tests of the process have set for all of it: lmms-eval by its import, a server by its logging.
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    logging.disable(logging.NOTSET)
    logging.getLogger("llava_stf").setLevel(logging.NOTSET)
    logging.getLogger("llava_stf").propagate = True
    if item.get_closest_marker("gpu") is not None and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")


@pytest.fixture(scope="session")
def start() -> Iterator[Callable[..., BaseProcess]]:
    """Starts a program of the package in a process of its own, as `start(arguments)`; without more the command line.

    It is forked from a process that has imported torch, transformers and the package, which takes a new interpreter six
    seconds. `program` is another `module:function` or `path.py:function`, `output` the file for what it prints, `files`
    how many it may open, and keywords are environment variables.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["llava_stf.cli", "llava_stf.training.distill", "llava_stf.serving.app"])
    started = []

    def start_one(arguments, *, program="llava_stf.cli:main", output=os.devnull, files=None, **environment):
        told = {"program": program, "arguments": [str(argument) for argument in arguments], "output": str(output)}
        told |= {"environment": environment, "files": files}
        script = str(Path(__file__).with_name("forked.py"))
        started.append(context.Process(target=runpy.run_path, args=(script, {"told": told})))
        started[-1].start()
        return started[-1]

    yield start_one
    for process in started:
        process.kill()
        process.join()


@pytest.fixture(scope="session")
def golden_stf():
    """The folder of LLaVA-STF's reference data."""
    return GOLDEN / "stf_official_tiny"


@pytest.fixture(scope="session")
def golden_ssl():
    """The folder of reference data of the pre-training methods: `patchmix`, `aps`, `mgc`."""
    return GOLDEN / "ssl"


@pytest.fixture(scope="session")
def golden_reduction():
    """The folder of reference data of the token-reduction methods."""
    return GOLDEN / "reduction"


@pytest.fixture(scope="session")
def plain_folder(tmp_path_factory):
    """A saved plain LLaVA with random weights: 3 tower blocks, 4x4 patches."""
    from llava_stf.loading.testing import write_tiny_llava

    return write_tiny_llava(tmp_path_factory.mktemp("plain"), stf=False)


@pytest.fixture(scope="session")
def stf_folder(tmp_path_factory):
    """A saved LLaVA-STF with random weights."""
    from llava_stf.loading.testing import write_tiny_llava

    return write_tiny_llava(tmp_path_factory.mktemp("stf"), stf=True)


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
    from llava_stf.loading.testing import write_tiny_llava

    return write_tiny_llava(tmp_path_factory.mktemp("base"), stf=False)


@pytest.fixture
def llava_processor(llava_base):
    from transformers import AutoProcessor

    return AutoProcessor.from_pretrained(llava_base)
