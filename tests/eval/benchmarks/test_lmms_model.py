"""The model class for lmms-eval: answers, order, batches, stop strings, memory, journal, and options."""

import json
import logging

import numpy as np
import pytest
import torch
from PIL import Image

from llava_stf import Video, load_model
from llava_stf.errors import FusionError, LlavaStfError, PromptError
from llava_stf.loading.testing_videos import tiny_llava_next_video
from llava_stf.reduction import apply_reduction
from llava_stf.reduction.fastv import FastV
from llava_stf.world import draw
from llava_stf_eval.benchmarks.models import ModelOptions
from llava_stf_eval.benchmarks.prompts import without_instructions

pytest.importorskip("lmms_eval", reason="lmms-eval is installed by hand, see eval/README.md")

SETTINGS = {"max_new_tokens": 12, "temperature": 0.0, "top_p": 1.0, "num_beams": 1, "do_sample": False, "until": []}
QUESTIONS = [
    "Is there a green triangle?",
    "What does the text say?",
    "How many shapes are there?\nA. 4\nB. 3\nC. 2\nD. 1",
    "What colour is the square?",
    "What shape is blue?",
]


@pytest.fixture(scope="module")
def images():
    return [Image.fromarray(draw(index, split="held_out")[1]) for index in range(2)]


def requests_of(model, documents, settings=SETTINGS, task="drawn"):
    """Requests for documents (images, question, own settings or none), as lmms-eval makes them."""
    from lmms_eval.api.instance import Instance

    def doc_to_messages(document):
        content = [{"type": "image", "url": image} for image in document[0]]
        return [{"role": "user", "content": [*content, {"type": "text", "text": document[1]}]}]

    model.task_dict[task] = {"test": documents}
    return [
        Instance(
            request_type="generate_until",
            arguments=(
                document[1], doc_to_messages, document[2] if len(document) > 2 else settings, index, task, "test",
            ),
            idx=0,
            metadata={"task": task, "doc_id": index, "repeats": 1},
        )
        for index, document in enumerate(documents)
    ]  # fmt: skip


def build(arguments="pretrained=tiny,dtype=float32", **more):
    """The model as lmms-eval's command line makes it."""
    from llava_stf_eval.benchmarks.lmms_model import LlavaStfLmms

    return LlavaStfLmms.create_from_arg_string(arguments, {"batch_size": "3", **more})


@pytest.fixture(scope="module")
def model():
    return build()


@pytest.fixture(scope="module")
def llava():
    return load_model("tiny", dtype="float32")


def test_lmms_eval_finds_the_class_by_the_manifest():
    from lmms_eval.models.registry_v2 import ModelRegistryV2

    from llava_stf_eval.benchmarks.lmms_model import LlavaStfLmms
    from llava_stf_eval.plugin import manifest

    registry = ModelRegistryV2()
    registry.register_manifest(manifest())
    assert registry.get_model_class("llava_stf") is LlavaStfLmms


def test_answers_come_in_request_order_and_are_those_of_asking_one_by_one(model, llava, images):
    longer = {**SETTINGS, "max_new_tokens": 3}
    documents = [
        ([images[0]], QUESTIONS[0]),
        ([], "What is two and two?"),
        ([images[1]], QUESTIONS[1], longer),
        (images, QUESTIONS[2]),
        ([images[1]], QUESTIONS[3]),
        ([images[0]], QUESTIONS[4], longer),
        ([images[1]], QUESTIONS[0]),
    ]
    expected = []
    for asked, question, *own in documents:
        limit = (own[0] if own else SETTINGS)["max_new_tokens"]
        expected.append(llava.chat(asked).ask(question, max_new_tokens=limit))
    found = model.generate_until(requests_of(model, documents))
    assert [result.text for result in found] == expected
    assert len(set(expected)) > 2  # else the order would not show


def test_token_counts_are_of_the_prompt_and_the_answer(llava, images):
    full = build("pretrained=tiny-full,dtype=float32")
    less = build("pretrained=tiny-full,dtype=float32,method=stf,vision_tokens=16")
    documents = [([images[0]], QUESTIONS[0]), (images, QUESTIONS[1]), ([], QUESTIONS[2])]
    whole, quarter = (m.generate_until(requests_of(m, documents)) for m in (full, less))
    saved = [a.token_counts.input_tokens - b.token_counts.input_tokens for a, b in zip(whole, quarter, strict=True)]
    assert saved == [64 - 16, 2 * (64 - 16), 0]
    for result in whole:
        ids = full.processor.tokenizer(result.text, add_special_tokens=False)["input_ids"]
        assert result.token_counts.output_tokens == len(ids) + 1  # the end token


def test_new_tokens_end_at_the_limit_and_text_before_a_stop_string(model, images):
    documents = [
        ([images[0]], QUESTIONS[0]),
        ([images[0]], QUESTIONS[0], {**SETTINGS, "max_new_tokens": 1}),
        ([images[0]], QUESTIONS[0], {**SETTINGS, "until": ["never", "e"]}),
        ([images[0]], QUESTIONS[0], {**SETTINGS, "until": "s"}),
    ]
    whole, one, *cut = model.generate_until(requests_of(model, documents))
    assert whole.text == "yes"
    assert one.token_counts.output_tokens == 1
    assert [result.text for result in cut] == ["y", "ye"]


def test_settings_without_meaning_are_said_once(model, images, caplog):
    documents = [([images[0]], question, {**SETTINGS, "image_sizes": 3}) for question in QUESTIONS]
    with caplog.at_level(logging.WARNING):
        model.generate_until(requests_of(model, documents))
    assert caplog.text.count("image_sizes mean nothing") == 1


def test_bundled_models_are_asked_without_instructions_unless_told(model, llava, images):
    question = f"{QUESTIONS[0]}\nAnswer the question using a single word or phrase."
    assert without_instructions(question) == QUESTIONS[0]
    told = build("pretrained=tiny,dtype=float32,instructions=true")
    (bare,) = model.generate_until(requests_of(model, [([images[0]], question)]))
    (whole,) = told.generate_until(requests_of(told, [([images[0]], question)]))
    assert bare.text == llava.ask(images[0], QUESTIONS[0])
    assert whole.text == llava.ask(images[0], question)
    assert whole.token_counts.input_tokens > bare.token_counts.input_tokens


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: you tried to ..."),
    ],
    ids=["cuda", "python", "cpu"],
)
def test_a_batch_without_memory_is_halved_and_said(error, images, monkeypatch, caplog):
    model = build(batch_size=8)
    documents = [([images[index % 2]], question) for index, question in enumerate(QUESTIONS)]
    expected = [result.text for result in model.generate_until(requests_of(model, documents))]
    rows, generate = [], model.llava.generate

    def short_of_memory(inputs, **rest):
        rows.append(len(inputs["input_ids"]))
        if rows[-1] > 2:
            raise error
        return generate(inputs, **rest)

    monkeypatch.setattr(model.llava, "generate", short_of_memory)
    with caplog.at_level(logging.WARNING):
        found = [result.text for result in model.generate_until(requests_of(model, documents))]
    assert found == expected
    assert rows == [5, 2, 2, 1]
    assert "batch of 5" in caplog.text
    assert "2 at a time" in caplog.text


def test_errors_are_raised_and_never_an_empty_answer(model, images, monkeypatch):
    with pytest.raises(PromptError, match="positions"):
        model.generate_until(requests_of(model, [([images[0]], "word " * 2000)]))
    with pytest.raises(PromptError, match=r"Document 0 of drawn.*empty"):
        model.generate_until(requests_of(model, [([images[0]], " ")]))

    def fail(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(model.llava, "generate", fail)
    with pytest.raises(torch.OutOfMemoryError):
        model.generate_until(requests_of(model, [([images[0]], QUESTIONS[0])]))


def test_other_kinds_of_tasks_are_refused_in_a_sentence(model):
    with pytest.raises(NotImplementedError, match="several rounds"):
        model.generate_until_multi_round([])
    with pytest.raises(NotImplementedError, match="rank"):
        model.loglikelihood([])


def test_clean_keeps_the_model_for_the_next_task(model, images):
    documents = [([images[0]], QUESTIONS[0])]
    before = model.generate_until(requests_of(model, documents))
    model.clean()
    assert model.generate_until(requests_of(model, documents, task="next")) == before


class Killed(Exception):
    pass


def test_a_stopped_run_asks_only_the_rest_and_gives_the_same_answers(tmp_path, images):
    documents = [([images[index % 2]], f"{q} ") for index, q in enumerate(QUESTIONS * 2)]
    whole = build("pretrained=tiny")
    expected = whole.generate_until(requests_of(whole, documents))

    def stop(done, total):
        if done >= 6:
            raise Killed

    journal = tmp_path / "answers.jsonl"
    first = build("pretrained=tiny", journal=journal, progress=stop)
    with pytest.raises(Killed):
        first.generate_until(requests_of(first, documents))
    journal.write_bytes(journal.read_bytes() + b'{"seconds": 1.0, "ans')  # killed in the middle of a line
    seen = []
    second = build("pretrained=tiny", journal=journal, progress=lambda done, total: seen.append((done, total)))
    assert second.generate_until(requests_of(second, documents)) == expected
    assert seen == [(9, 10), (10, 10)]
    assert len([json.loads(line) for line in journal.read_text().splitlines()]) == 4


def test_answers_to_other_questions_are_not_taken_for_these(tmp_path, images):
    journal = tmp_path / "answers.jsonl"
    first = build(journal=journal)
    first.generate_until(requests_of(first, [([images[0]], QUESTIONS[0])]))
    again, fresh = build(journal=journal), build()
    documents = [([images[0]], QUESTIONS[1])]
    assert again.generate_until(requests_of(again, documents)) == fresh.generate_until(requests_of(fresh, documents))


def test_every_reduction_option_is_a_key_of_model_args(images):
    model = build("pretrained=tiny-full,method=random,vision_tokens=9,seed=3,dtype=float32")
    full = build("pretrained=tiny-full,vision_tokens=all,dtype=float32")
    documents = [([images[0]], QUESTIONS[0])]
    (few,), (all_,) = (m.generate_until(requests_of(m, documents)) for m in (model, full))
    assert all_.token_counts.input_tokens - few.token_counts.input_tokens == 64 - 9
    assert model.llava.model.model.reduction.seed == 3


@pytest.mark.parametrize(
    ("options", "error", "sentence"),
    [
        (ModelOptions("tiny-full", method="fastvv"), LlavaStfError, "did you mean 'fastv'"),
        (ModelOptions("tiny", method="full"), FusionError, "plain LLaVA"),
        (ModelOptions("tiny", method="divprune"), FusionError, "plain LLaVA"),
        (ModelOptions("tiny-full", method="mqt"), LlavaStfError, "train with --reduction mqt"),
        (ModelOptions("tiny", vision_tokens=1), FusionError, "16 or 64 or 4 vision tokens"),
        (ModelOptions("tiny-full", vision_tokens=5), FusionError, "5"),
        (ModelOptions("tiny-full", method="full", vision_tokens=16), FusionError, "keeps all 64"),
        (ModelOptions("tiny-full", method="stf", vision_tokens="all"), FusionError, "that is 'full'"),
        (ModelOptions("tiny-full", method="random", vision_tokens=65), FusionError, "64 patches"),
        (ModelOptions("no/such/model"), LlavaStfError, "no such file or folder"),
        (ModelOptions("tiny-full", method="tome", method_options={"oder": "x"}), FusionError, "did you mean 'order'"),
        (ModelOptions("tiny-full", method="tome", method_options={"order": "x"}), FusionError, "authors or raster"),
        (ModelOptions("tiny-full", method="fastv", method_options={"full_layers": "9"}), FusionError, "LLM layers, 6"),
        (ModelOptions("tiny-full", method="fastv", method_options={"full_layers": "x"}), FusionError, "a whole number"),
        (ModelOptions("tiny-full", method="random", method_options={"order": "x"}), FusionError, "has no options"),
        (ModelOptions("tiny-full", method_options={"order": "raster"}), FusionError, "'full' has no options"),
    ],
    ids=lambda value: value.method or value.pretrained if isinstance(value, ModelOptions) else "",
)
def test_what_a_model_cannot_do_is_said_before_it_is_loaded(options, error, sentence, monkeypatch):
    monkeypatch.setattr("llava_stf.loading.load.read_model", lambda *_: pytest.fail("the weights were read"))
    with pytest.raises(error, match=sentence):
        options.resolved()


@pytest.mark.parametrize(
    ("options", "method", "tokens"),
    [
        (ModelOptions("tiny"), "stf", 16),
        (ModelOptions("tiny-full"), "full", 64),
        (ModelOptions("tiny-full", vision_tokens=4), "stf", 4),
        (ModelOptions("tiny-full", method="stf"), "stf", 16),
        (ModelOptions("tiny-full", method="pool"), "pool", 16),
    ],
    ids=lambda value: value.pretrained if isinstance(value, ModelOptions) else str(value),
)
def test_method_and_budget_follow_from_the_checkpoint(options, method, tokens):
    resolved = options.resolved()
    assert (resolved.method, resolved.vision_tokens) == (method, tokens)


def test_options_of_a_method_are_keys_of_model_args():
    model = build("pretrained=tiny-full,method=fastv,vision_tokens=16,full_layers=3,dtype=float32")
    assert model.llava.model.model.reduction.method == FastV(full_layers=3)
    assert model.options.method_options == {"full_layers": 3}
    assert model.options.mean_tokens() == (3 * 64 + 3 * 16) / 6
    plain = ModelOptions("tiny-full", method="visionzip", method_options={"class_token": "true"}).resolved()
    assert plain.method_options == {}  # the published method, by whatever words
    ours = ModelOptions("tiny-full", method="visionzip", method_options={"class_token": "False"}).resolved()
    assert ours.resolved().method_options == {"class_token": False}


def test_unknown_arguments_are_refused():
    with pytest.raises(LlavaStfError, match="no option 'vision_token'"):
        build("pretrained=tiny,vision_token=16")
    with pytest.raises(LlavaStfError, match="batch_size"):
        build("pretrained=tiny", batch_size="auto")


@pytest.fixture(scope="module")
def video_model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("video")
    for part in tiny_llava_next_video():
        part.save_pretrained(folder)
    return build(f"pretrained={folder},dtype=float32,frames=4")


def moving(frames):
    """A square that goes to the right, as a task on actions would show it."""
    clip = np.zeros((frames, 48, 64, 3), dtype=np.uint8)
    for at in range(frames):
        clip[at, 10:30, 40 * at // frames : 40 * at // frames + 20] = 255
    return clip


def video_requests(model, documents):
    """Requests as tasks on videos make them: the video, then a question with lettered options."""
    requests = requests_of(model, documents, task="actions")

    def doc_to_messages(document):
        content = [{"type": "video", "url": document[0]}, {"type": "text", "text": document[1]}]
        return [{"role": "user", "content": content}]

    return [replace_arguments(request, doc_to_messages) for request in requests]


def replace_arguments(request, doc_to_messages):
    request.arguments = (request.args[0], doc_to_messages, *request.args[2:])
    return request


def test_videos_are_asked_about_in_batches_of_any_lengths(video_model):
    from llava_stf_eval.benchmarks.lmms_model import request_key

    question = "Where does it go?\nA. left\nB. right"
    requests = video_requests(video_model, [(moving(9), question), (moving(3), question), (moving(6), question)])
    found = video_model.generate_until(requests)
    llava = load_model(video_model.options.pretrained, dtype="float32")
    clips = [Video(moving(frames), 4) for frames in (9, 3, 6)]
    assert [result.text for result in found] == [
        llava.ask(clip, question, max_new_tokens=SETTINGS["max_new_tokens"]) for clip in clips
    ]
    keys = [request_key("actions", number, 0, question) for number in range(3)]
    assert [len(video_model.images(key)) for key in keys] == [4, 3, 4]


def test_a_video_where_a_model_takes_images_alone_is_named(model):
    with pytest.raises(FusionError, match="takes images alone"):
        model.generate_until(video_requests(model, [(moving(3), "Where does it go?")]))


@pytest.mark.parametrize("name", ["pool", "tokenpacker"])
def test_a_trained_folder_is_of_the_method_that_its_projector_is(plain_folder, tmp_path, name):
    model, processor = load_model(plain_folder, vision_tokens="all")
    apply_reduction(model, processor, name, vision_tokens=4)
    for part in (model, processor):
        part.save_pretrained(tmp_path / "trained")
    options = ModelOptions(str(tmp_path / "trained")).resolved()
    assert (options.method, options.vision_tokens, options.mean_tokens()) == (name, 4, 4)
    assert options.load().vision_tokens == 4
    with pytest.raises(FusionError, match=f"take --method {name}"):
        ModelOptions(str(tmp_path / "trained"), method="stf").resolved()
