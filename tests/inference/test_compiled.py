"""Compiled generation: the eager model's answers, every shape compiled once, eager where nothing can be compiled."""

import logging
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch._dynamo.utils import counters
from transformers.generation.streamers import BaseStreamer

from llava_stf import load_model, remove_stf
from llava_stf.errors import PromptError
from llava_stf.images import load_image
from llava_stf.inference import LlavaStf, user_turn
from llava_stf.inference.compiled import CompiledGeneration, compile_generation
from llava_stf.inference.static_caches import cache_bucket, prompt_bucket
from llava_stf.world import draw

QUESTION = "What is in it?"
Graphs = list[int]


@pytest.fixture(scope="module")
def images() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 255, (56, 56, 3), dtype=np.uint8) for _ in range(4)]


@pytest.fixture(params=["stf_folder", "plain_folder"])
def folder(request: pytest.FixtureRequest) -> Path:
    return request.getfixturevalue(request.param)


def traced(model: Any, processor: Any) -> tuple[LlavaStf, Graphs]:
    """The model with compiled generation, and a list that gets an entry for every graph; graphs run uncompiled."""
    graphs: Graphs = []

    def backend(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Callable[..., Any]:
        graphs.append(len(graph.graph.nodes))
        return graph.forward

    return LlavaStf(model, processor, CompiledGeneration(model, backend)), graphs


def untouched(folder: Path) -> LlavaStf:
    return load_model(folder, device="cpu", vision_tokens="all" if "plain" in folder.name else None)


class NewIds(BaseStreamer):
    """Collects the generated ids of every row, which an answer's text may hide."""

    def __init__(self) -> None:
        self.steps: list[list[int]] = []

    def put(self, value: torch.Tensor) -> None:
        self.steps.append(value.tolist())

    def end(self) -> None:
        self.steps = self.steps[1:]  # the first is the prompt


def ids_of(llava: LlavaStf, pairs: Sequence[tuple[Any, str]], max_new_tokens: int = 8) -> list[list[int]]:
    streamer = NewIds()
    llava.ask_batch(pairs, max_new_tokens=max_new_tokens, streamer=streamer)
    return streamer.steps


def test_another_request_of_a_bucket_compiles_nothing(folder: Path, images: list[np.ndarray]) -> None:
    llava, graphs = traced(*untouched(folder))
    llava.ask(images[0], QUESTION, max_new_tokens=8)
    first = len(graphs)
    assert first >= 3, "tower with projector, prefill and decoding"
    llava.ask(images[1], QUESTION, max_new_tokens=8)
    llava.ask(images[0], QUESTION + "???", max_new_tokens=8)
    llava.ask(images[0], QUESTION, max_new_tokens=30)
    "".join(llava.stream(images[2], QUESTION, max_new_tokens=8))
    llava.chat(images[3]).ask(QUESTION, max_new_tokens=8)
    assert len(graphs) == first


def test_another_bucket_compiles_its_prefill_alone(stf_folder: Path, images: list[np.ndarray]) -> None:
    llava, graphs = traced(*untouched(stf_folder))
    llava.ask(images[0], QUESTION, max_new_tokens=40)
    first = len(graphs)
    llava.ask(images[0], QUESTION * 4, max_new_tokens=40)
    assert len(graphs) == first + 1


def test_ids_are_the_eager_models(folder: Path, images: list[np.ndarray]) -> None:
    eager = untouched(folder)
    llava, _ = traced(*eager)
    full = QUESTION + "?" * (-prompt_length(eager, images[0]) % 32)  # no padding but that of the bucket above
    requests: dict[str, list[tuple[Any, str]]] = {
        "one": [(images[0], QUESTION)],
        "prompt as long as a bucket": [(images[0], full)],
        "several images": [(images[:2], QUESTION)],
        "rows of different lengths and image counts": [(images[3], QUESTION), (images[:2], "<image> or <image>?")],
    }
    for name, pairs in requests.items():
        assert ids_of(llava, pairs) == ids_of(eager, pairs), name


def prompt_length(llava: LlavaStf, image: np.ndarray) -> int:
    """Tokens of the prompt that asks `QUESTION` about one image."""
    lengths: list[int] = []

    def note(ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        lengths.append(ids.shape[1] - 1)
        return torch.ones(ids.shape[0], dtype=torch.bool)

    llava.ask(image, QUESTION, stopping_criteria=[note])
    return lengths[0]


@pytest.mark.parametrize("name", ["tiny", "tiny-full"])
def test_answers_of_the_bundled_models_are_the_eager_ones(name: str) -> None:
    eager = load_model(name, device="cpu", dtype="float32")
    llava, _ = traced(*eager)
    image = draw(3, split="held_out")[1]
    questions = "How many shapes are there?", "What shape is at the top?"
    conversations = llava.chat(image), eager.chat(image)
    for question in questions:
        assert len({chat.ask(question) for chat in conversations}) == 1
    without_image = llava.chat(), eager.chat()
    assert len({chat.ask(questions[0]) for chat in without_image}) == 1


def test_a_smaller_last_batch_keeps_order_and_shape(stf_folder: Path, images: list[np.ndarray]) -> None:
    eager = untouched(stf_folder)
    llava, graphs = traced(*eager)
    pairs = [(image, QUESTION) for image in images[:3]]
    llava.ask_batch(pairs[:2], batch_size=2, max_new_tokens=8)
    first = len(graphs)
    answers = llava.ask_batch(pairs, batch_size=2, max_new_tokens=8)
    assert answers == [eager.ask(*pair, max_new_tokens=8) for pair in pairs]
    assert len(graphs) == first


def test_a_cache_is_left_clean_when_others_push_it_out(
    stf_folder: Path, images: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llava_stf.inference.static_caches.MAX_CACHES", 1)
    eager = untouched(stf_folder)
    llava, _ = traced(*eager)
    for length in (8, 290, 8):
        assert ids_of(llava, [(images[0], QUESTION)], length) == ids_of(eager, [(images[0], QUESTION)], length)


def test_beam_search_runs_eagerly_and_says_so_once(
    stf_folder: Path, images: list[np.ndarray], caplog: pytest.LogCaptureFixture
) -> None:
    eager = untouched(stf_folder)
    llava, graphs = traced(*eager)
    with caplog.at_level(logging.WARNING, logger="llava_stf"):
        answers = [llava.ask(images[0], QUESTION, max_new_tokens=8, num_beams=2) for _ in range(2)]
    assert answers == 2 * [eager.ask(images[0], QUESTION, max_new_tokens=8, num_beams=2)]
    said = "Generation with num_beams is not compiled and runs eagerly."
    assert [record.message for record in caplog.records] == [said]
    assert graphs == []


def test_errors_of_a_request_reach_its_caller(stf_folder: Path, images: list[np.ndarray]) -> None:
    llava, _ = traced(*untouched(stf_folder))
    with pytest.raises(ValueError, match="nonsense"):
        llava.ask(images[0], QUESTION, nonsense=1)
    with pytest.raises(ValueError, match="nonsense"):
        list(llava.stream(images[0], QUESTION, nonsense=1))


def test_the_model_itself_stays_ordinary(plain_folder: Path, tmp_path: Path, images: list[np.ndarray]) -> None:
    eager = load_model(plain_folder, device="cpu")
    llava, graphs = traced(*load_model(plain_folder, device="cpu"))
    model, processor = llava
    before = list(model.state_dict())
    answer = llava.ask(images[0], QUESTION, max_new_tokens=8)
    assert list(model.state_dict()) == before
    assert type(model) is type(eager.model)

    compiled_graphs = len(graphs)
    inputs = processor(images=images[0], text="<image>\n", return_tensors="pt")
    ids = model.generate(**inputs, max_new_tokens=8, do_sample=False)
    assert torch.equal(ids, eager.model.generate(**inputs, max_new_tokens=8, do_sample=False))
    assert len(graphs) == compiled_graphs

    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    assert load_model(tmp_path, device="cpu").ask(images[0], QUESTION, max_new_tokens=8) == answer

    remove_stf(model, processor)
    plain = LlavaStf(model, processor)
    assert ids_of(llava, [(images[0], QUESTION)]) == ids_of(plain, [(images[0], QUESTION)])


def test_a_model_over_several_devices_is_not_compiled(stf_folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    model, _ = load_model(stf_folder, device="cpu")
    model.hf_device_map = {"model.vision_tower": "cpu", "model.language_model": "disk"}
    with caplog.at_level(logging.WARNING, logger="llava_stf"):
        assert compile_generation(model) is None
    assert [record.message for record in caplog.records] == [
        "Nothing is compiled and everything runs eagerly: the model is spread over cpu, disk, expected one device."
    ]


def test_without_a_compiler_everything_runs_eagerly(stf_folder: Path, tmp_path: Path) -> None:
    code = (
        "import sys, numpy as np\n"
        "from llava_stf import load_model\n"
        "request = np.zeros((56, 56, 3), dtype=np.uint8), 'Why?'\n"
        "compiled, eager = (load_model(sys.argv[1], device='cpu', compile=flag) for flag in (True, False))\n"
        "assert compiled.ask(*request, max_new_tokens=4) == eager.ask(*request, max_new_tokens=4)\n"
    )
    environment = os.environ | {"CXX": "/nonexistent/c++", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}
    run = subprocess.run([sys.executable, "-c", code, stf_folder], env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stderr.count("Nothing is compiled and everything runs eagerly: ") == 1
    assert "C++ compiler" in run.stderr


def compile_and_repeat(folder: Path, images: list[np.ndarray], device: str) -> None:
    """Real compilation, as users get it: equal ids, and no graph after the first request, streamed ones included."""
    eager = load_model(folder, device=device)
    llava = load_model(folder, device=device, compile=True)
    expected = [ids_of(eager, [(image, QUESTION)]) for image in images]
    answers = [ids_of(llava, [(images[0], QUESTION)])]
    graphs = counters["stats"]["unique_graphs"]
    answers += [ids_of(llava, [(image, QUESTION)]) for image in images[1:]]
    assert answers == expected
    said = "".join(llava.stream(images[0], QUESTION, max_new_tokens=8))
    assert said.strip() == eager.ask(images[0], QUESTION, max_new_tokens=8)
    assert counters["stats"]["unique_graphs"] == graphs


def test_compiled_for_the_cpu(stf_folder: Path, images: list[np.ndarray]) -> None:
    compile_and_repeat(stf_folder, images, "cpu")


@pytest.mark.gpu
def test_compiled_into_cuda_graphs(folder: Path, images: list[np.ndarray]) -> None:
    skipped = counters["inductor"]["cudagraph_skips"]
    compile_and_repeat(folder, images, "cuda")
    assert counters["inductor"]["cudagraph_skips"] == skipped


@given(st.integers(1, 100_000))
def test_buckets_hold_their_requests_and_waste_little(length: int) -> None:
    assert length <= prompt_bucket(length) < max(length + 32, length * 9 / 8)
    assert length <= cache_bucket(length) < max(length + 256, length * 3 / 2)


def test_buckets_are_few() -> None:
    assert len({prompt_bucket(length) for length in range(1, 4097)}) <= 40
    assert len({cache_bucket(length) for length in range(1, 4097)}) <= 8


def test_the_record_of_a_generation_is_given_as_without_compiling(
    stf_folder: Path, images: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    logger = logging.getLogger("llava_stf.inference.compiled")
    monkeypatch.setattr(logger, "warning", lambda text, *values: said.append(text % values))
    eager = untouched(stf_folder)
    llava, graphs = traced(*eager)
    inputs = llava.encode([[user_turn(QUESTION, 1)]], [[load_image(images[0])]])
    options = {"max_new_tokens": 4, "return_dict_in_generate": True, "output_scores": True}
    found, expected = llava.generate(inputs, **options), eager.generate(inputs, **options)
    assert type(found) is type(expected)
    assert torch.equal(found.sequences, expected.sequences)
    assert len(found.scores) == len(expected.scores)
    assert said == ["Generation with return_dict_in_generate is not compiled and runs eagerly."]
    llava.model.generation_config.return_dict_in_generate = True
    assert llava.ask(images[0], QUESTION, max_new_tokens=4) == eager.ask(images[0], QUESTION, max_new_tokens=4)
    assert graphs, "an answer in words is compiled all the same"


def test_several_answers_to_a_question_are_refused(stf_folder: Path, images: list[np.ndarray]) -> None:
    llava = untouched(stf_folder)
    for ask in (llava.ask, llava.stream):
        with pytest.raises(PromptError, match="num_return_sequences is 2"):
            list(ask(images[0], QUESTION, max_new_tokens=4, do_sample=True, num_return_sequences=2))
