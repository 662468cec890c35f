"""Asking: one by one, in batches, as a stream and in conversation must tell one story, and bad prompts are refused."""

import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from llava_stf import load_model
from llava_stf.errors import CheckpointError, FusionError, ImageError, PromptError
from llava_stf.inference import LlavaStf, generation, measure_first_token
from llava_stf.models.llava_stf.conversation import SYSTEM_PROMPT
from llava_stf.world import draw

POSITIONS = 512  # of the small models' LLM


@pytest.fixture(scope="module", params=["stf_folder", "plain_folder"])
def llava(request: pytest.FixtureRequest) -> LlavaStf:
    folder = request.getfixturevalue(request.param)
    return LlavaStf(AutoModelForImageTextToText.from_pretrained(folder), AutoProcessor.from_pretrained(folder))


@pytest.fixture(scope="module")
def images() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 255, (40 + 9 * i, 50, 3), dtype=np.uint8) for i in range(6)]


@pytest.fixture(scope="module")
def pairs(images: list[np.ndarray]) -> list[tuple[object, str]]:
    """Six prompts of six lengths, two of them with two images."""
    single = [(image, "What is it? " * (i + 1)) for i, image in enumerate(images[:4])]
    return [*single, (images[:2], "The same?"), (images[4:], "First <image>, second <image>: the same?")]


def test_it_unpacks_to_model_and_processor(llava: LlavaStf) -> None:
    model, processor = llava
    assert (model, processor) == (llava.model, llava.processor)


def test_vision_tokens_are_what_the_prompt_holds(llava: LlavaStf, images: list[np.ndarray]) -> None:
    model, processor = llava
    ids = processor(images=images[0], text="<image>")["input_ids"]
    assert llava.vision_tokens == np.sum(np.array(ids) == model.config.image_token_id)


def test_ask_is_greedy_generation_from_the_authors_prompt(llava: LlavaStf, images: list[np.ndarray]) -> None:
    model, processor = llava
    image = Image.fromarray(images[0])
    prompt = f"{SYSTEM_PROMPT} USER: <image>\nWhat is it? ASSISTANT:"
    inputs = processor(images=image, text=prompt, return_tensors="pt")
    ids = model.generate(**inputs, max_new_tokens=12, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    assert llava.ask(image, "What is it?", max_new_tokens=12) == processor.decode(ids, skip_special_tokens=True).strip()


@pytest.mark.parametrize("batch_size", [1, 4, 16])
def test_a_batch_gives_the_answers_of_single_questions_in_order(
    llava: LlavaStf, pairs: list[tuple[object, str]], batch_size: int
) -> None:
    single = [llava.ask(images, question, max_new_tokens=12) for images, question in pairs]
    assert len(set(single)) > 3
    assert llava.ask_batch(pairs, batch_size=batch_size, max_new_tokens=12) == single


def test_an_empty_batch_has_no_answers(llava: LlavaStf) -> None:
    assert llava.ask_batch([]) == []


def test_the_stream_joins_to_the_answer(llava: LlavaStf, pairs: list[tuple[object, str]]) -> None:
    for images, question in pairs:
        pieces = list(llava.stream(images, question, max_new_tokens=12))
        assert all(pieces)
        assert "".join(pieces).strip() == llava.ask(images, question, max_new_tokens=12)


def test_generate_options_are_passed_on(llava: LlavaStf, images: list[np.ndarray]) -> None:
    torch.manual_seed(0)
    answers = {llava.ask(images[0], "What?", max_new_tokens=8, do_sample=True, temperature=5.0) for _ in range(3)}
    assert len(answers) == 3


def test_closing_the_stream_ends_the_generation(llava: LlavaStf, images: list[np.ndarray]) -> None:
    steps: list[int] = []

    def slow(ids: torch.Tensor, scores: object, **kwargs: object) -> torch.Tensor:
        steps.append(ids.shape[1])
        time.sleep(0.02)
        return torch.zeros(len(ids), dtype=torch.bool)

    threads = threading.active_count()
    stream = llava.stream(images[0], "What?", max_new_tokens=150, min_new_tokens=150, stopping_criteria=[slow])
    next(stream)
    heard = len(steps)
    stream.close()
    assert len(steps) <= heard + 2
    assert threading.active_count() == threads


def test_an_error_while_streaming_reaches_the_caller(llava: LlavaStf, images: list[np.ndarray]) -> None:
    def fails(ids: torch.Tensor, scores: object, **kwargs: object) -> torch.Tensor:
        raise RuntimeError("out of everything")

    with pytest.raises(RuntimeError, match="out of everything"):
        list(llava.stream(images[0], "What?", max_new_tokens=8, stopping_criteria=[fails]))


def test_a_chat_asks_with_all_turns_and_images_before(llava: LlavaStf, images: list[np.ndarray]) -> None:
    model, processor = llava
    chat = llava.chat(images[0])
    first = chat.ask("One?", max_new_tokens=5)
    second = "".join(chat.stream("Two?", max_new_tokens=5)).strip()
    chat.add_image(images[1])
    third = chat.ask("Three?", max_new_tokens=5)
    prompt = (
        f"{SYSTEM_PROMPT} USER: <image>\nOne? ASSISTANT: {first}</s>USER: Two? ASSISTANT: {second}</s>"
        "USER: <image>\nThree? ASSISTANT:"
    )
    assert processor.apply_chat_template(chat.messages[:-1], add_generation_prompt=True) == prompt
    opened = [Image.fromarray(image) for image in images[:2]]
    inputs = processor(images=opened, text=prompt, return_tensors="pt")
    ids = model.generate(**inputs, max_new_tokens=5, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    assert third == processor.decode(ids, skip_special_tokens=True).strip()


def test_a_chat_without_an_image_is_about_text(llava: LlavaStf, images: list[np.ndarray]) -> None:
    chat = llava.chat()
    chat.ask("Hello?", max_new_tokens=3)
    chat.add_image(images[0])
    chat.ask("And this?", max_new_tokens=3)
    assert [message["role"] for message in chat.messages] == ["user", "assistant", "user", "assistant"]
    assert len(chat.images) == 1


def test_a_failed_turn_leaves_no_trace_and_keeps_its_image(llava: LlavaStf, images: list[np.ndarray]) -> None:
    chat = llava.chat(images[0])
    for question in ("", "x" * POSITIONS, "<image> <image>?"):
        with pytest.raises(PromptError):
            chat.ask(question)
    with pytest.raises(ImageError):
        chat.add_image("missing.png")
    assert (chat.messages, chat.images) == ([], [])
    assert chat.ask("What?", max_new_tokens=4) == llava.ask(images[0], "What?", max_new_tokens=4)


def test_a_stream_closed_early_is_remembered_as_far_as_it_was_heard(llava: LlavaStf, images: list[np.ndarray]) -> None:
    chat = llava.chat(images[0])
    stream = chat.stream("What?", max_new_tokens=100, min_new_tokens=100)
    heard = next(stream)
    stream.close()
    assert chat.messages[-1]["content"][0]["text"] == heard.strip()


@pytest.mark.parametrize("question", ["", "  \n", "<image>"])
def test_an_empty_question_is_refused(llava: LlavaStf, images: list[np.ndarray], question: str) -> None:
    for ask in (llava.ask, llava.stream):
        with pytest.raises(PromptError, match="question is empty"):
            ask(images[0], question)


def test_an_empty_image_list_is_refused(llava: LlavaStf) -> None:
    for ask in (llava.ask, llava.stream):
        with pytest.raises(PromptError, match="at least one"):
            ask([], "What?")


def test_markers_that_do_not_match_the_images_are_refused(llava: LlavaStf, images: list[np.ndarray]) -> None:
    with pytest.raises(PromptError, match="1 <image> markers for 2 images"):
        llava.ask(images[:2], "Is <image> it?")


def test_a_prompt_that_does_not_fit_is_refused_with_numbers(llava: LlavaStf, images: list[np.ndarray]) -> None:
    with pytest.raises(PromptError, match=rf"The prompt has \d+ tokens, {2 * llava.vision_tokens} of them.*511"):
        llava.ask(images[:2], "x" * POSITIONS)
    with pytest.raises(PromptError, match="has positions for 511"):
        llava.ask_batch([(images[0], "What?"), (images[0], "x" * POSITIONS)])


def test_an_answer_ends_at_the_last_position_also_in_a_batch(llava: LlavaStf, images: list[np.ndarray]) -> None:
    frame = llava.encode([[_turn("")]], [[Image.fromarray(images[0])]])["input_ids"].shape[1]
    room = 5
    pairs = [(images[0], "What?"), (images[1], "x" * (POSITIONS - frame - room))]
    options = {"max_new_tokens": 40, "bad_words_ids": [[llava.processor.tokenizer.eos_token_id]]}
    single = [llava.ask(images, question, **options) for images, question in pairs]
    assert 1 <= len(single[1]) <= room < len(single[0])
    assert llava.ask_batch(pairs, **options) == single


@pytest.mark.parametrize("name", ["max_new_tokens", "batch_size"])
@pytest.mark.parametrize("count", [0, None, 1.5, "3"])
def test_counts_below_one_are_refused(llava: LlavaStf, images: list[np.ndarray], name: str, count: Any) -> None:
    with pytest.raises(PromptError, match=f"{name} must be a whole number of at least 1"):
        llava.ask_batch([(images[0], "What?")], **{name: count})


def test_arguments_of_another_kind_are_a_sentence(llava: LlavaStf, images: list[np.ndarray]) -> None:
    for question in (None, b"What?", ["What?"], images[0]):
        with pytest.raises(PromptError, match="A question is a text"):
            llava.ask(images[0], question)  # type: ignore[arg-type]
    for pairs in ([images[0]], [(images[0],)], [(images[0], "What?", 1)], "ab"):
        with pytest.raises(PromptError, match="Expected pairs"):
            llava.ask_batch(pairs)  # type: ignore[arg-type]
    for content in (None, 5, [{"text": "What?"}], ["What?"], [{"type": "text", "text": None}]):
        with pytest.raises(PromptError, match="of a message is"):
            llava.encode([[{"role": "user", "content": content}]], [[]])
    for count in ([4], 4.0, True, "4"):
        with pytest.raises(FusionError, match="vision tokens"):
            llava.ask(images[0], "What?", vision_tokens=count)  # type: ignore[arg-type]


def test_stop_strings_and_prompt_lookup_need_no_more_than_the_option(llava: LlavaStf, images: list[np.ndarray]) -> None:
    pairs = [(images[0], "What?"), (images[1], "What is it?")]
    expected = llava.ask_batch(pairs, max_new_tokens=6)
    assert llava.ask_batch(pairs, max_new_tokens=6, prompt_lookup_num_tokens=2) == expected
    stop = next(character for character in expected[0] if character.isalnum())
    stopped = llava.ask(*pairs[0], max_new_tokens=6, stop_strings=[stop])
    assert stopped == expected[0][: expected[0].index(stop) + 1].strip()


@pytest.mark.parametrize("name", ["tiny", "tiny-full"])
def test_a_prompt_that_is_read_in_parts_keeps_its_images(name: str) -> None:
    bundled = load_model(name, dtype="float32")
    pairs = [(draw(index, split="held_out")[1], "What shape is at the top?") for index in range(4)]
    expected = bundled.ask_batch(pairs)
    assert len(set(expected)) > 1
    assert [bundled.ask(*pair, prefill_chunk_size=8) for pair in pairs] == expected
    assert bundled.ask_batch(pairs, prefill_chunk_size=45) == expected


@pytest.mark.parametrize("name", ["tiny", "tiny-full"])
def test_every_sequence_of_a_prompt_sees_its_images_or_it_is_said(name: str) -> None:
    """transformers before 5.19 would show the first of two images twice to one sequence, the second to the other."""
    bundled = load_model(name, dtype="float32")
    first, second = (Image.fromarray(draw(index, split="held_out")[1]) for index in (1, 2))
    text = {"type": "text", "text": "What colour is the triangle?"}
    likeliest = {"num_return_sequences": 2, "do_sample": True, "top_k": 1, "max_new_tokens": 4}
    for images in ([first], [first, second], [second, first]):
        turn = {"role": "user", "content": [*[{"type": "image"}] * len(images), text]}
        inputs = bundled.encode([[turn]], [images])
        if len(images) > 1 and not generation._REPEATS_PROMPTS:
            with pytest.raises(PromptError, match=r"^transformers \S+ mixes up the images of a prompt .* 5\.19"):
                bundled.generate(inputs, **likeliest)
            continue
        expected = bundled.generate(inputs, max_new_tokens=4).tolist() * 2
        assert bundled.generate(inputs, **likeliest).tolist() == expected


def test_old_transformers_are_asked_for_one_sequence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generation, "_REPEATS_PROMPTS", False)
    bundled = load_model("tiny", dtype="float32")
    pair = [draw(index, split="held_out")[1] for index in (1, 2)]
    with pytest.raises(PromptError, match="mixes up the images of a prompt that has several where num_beams is 2"):
        bundled.ask(pair, "The same?", num_beams=2)
    turns = [
        {"role": "user", "content": [*[{"type": "image"}] * count, {"type": "text", "text": "?"}]} for count in (2, 0)
    ]
    uneven = bundled.encode([[turn] for turn in turns], [[Image.fromarray(image) for image in pair], []])
    with pytest.raises(PromptError, match="num_return_sequences is 3"):  # as many images as prompts
        bundled.generate(uneven, num_return_sequences=3, do_sample=True)
    assert bundled.ask(pair[0], "What shape is at the top?", num_beams=2)
    assert bundled.ask(pair, "The same?")


def test_a_model_without_numbers_is_a_sentence(llava: LlavaStf, images: list[np.ndarray]) -> None:
    norm = llava.model.model.language_model.norm.weight
    kept = norm.data.clone()
    norm.data.fill_(float("nan"))
    try:
        with pytest.raises(CheckpointError, match="NaN"):
            llava.ask(images[0], "What?")
        with pytest.raises(CheckpointError, match="NaN"):
            list(llava.stream(images[0], "What?"))
    finally:
        norm.data.copy_(kept)


def test_without_a_tokenizer_nothing_can_be_asked(llava: LlavaStf, images: list[np.ndarray]) -> None:
    with pytest.raises(CheckpointError, match="without a tokenizer"):
        LlavaStf(llava.model, None).ask(images[0], "What?")


def test_a_path_is_an_image_too(llava: LlavaStf, images: list[np.ndarray], tmp_path: Path) -> None:
    file = tmp_path / "a.png"
    Image.fromarray(images[0]).save(file)
    expected = llava.ask(images[0], "What?", max_new_tokens=4)
    assert llava.ask(str(file), "What?", max_new_tokens=4) == expected
    assert llava.ask(file.read_bytes(), "What?", max_new_tokens=4) == expected


def test_placeholders_are_never_answered(llava: LlavaStf, images: list[np.ndarray]) -> None:
    """Even where the placeholder's row of the head would win every time."""
    head = llava.model.get_output_embeddings().weight
    before = head.detach().clone()
    with torch.no_grad():
        head[llava.model.config.image_token_id :] = 100 * head[:1].sign()
        head[:3] = 0
    ids = llava.generate(llava.encode([[_turn("What?")]], [[Image.fromarray(images[0])]]), max_new_tokens=8)[0, -8:]
    with torch.no_grad():
        head.copy_(before)
    assert int(ids.max()) < llava.model.config.image_token_id


def test_a_batch_of_conversations_gets_the_next_answers(llava: LlavaStf, images: list[np.ndarray]) -> None:
    chat = llava.chat(images[0])
    first = chat.ask("One?", max_new_tokens=5)
    history = list(chat.messages)
    second = chat.ask("Two?", max_new_tokens=5)
    loaded = [Image.fromarray(image) for image in images]
    conversations = [
        [_turn("One?")],
        [*history, {"role": "user", "content": "Two?"}],
        f"{SYSTEM_PROMPT} USER: <image>\nOne? ASSISTANT:",
        [{"role": "user", "content": "Two?"}],
    ]
    images = [loaded[:1], loaded[:1], loaded[:1], []]
    answers = llava.reply_batch(conversations, images, max_new_tokens=5)
    assert answers[:3] == [first, second, first]
    assert answers[3] == llava.chat().ask("Two?", max_new_tokens=5)


def test_messages_that_the_template_does_not_know_are_refused(llava: LlavaStf) -> None:
    with pytest.raises(PromptError, match=r"chat template refuses.*narrator"):
        llava.reply_batch([[{"role": "narrator", "content": "Once"}]], [[]])


def _turn(question: str) -> dict[str, object]:
    return {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}


def test_time_to_first_token_is_the_median_of_the_runs(llava: LlavaStf, images: list[np.ndarray]) -> None:
    start = time.perf_counter()
    seconds = measure_first_token(llava, images[0], "What?", runs=3)
    assert 0 < 3 * seconds < 3 * (time.perf_counter() - start)
