"""A conversation that goes on answers as one that is read anew, and reads only what is new."""

import itertools
import random

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from llava_stf import apply_stf, load_model
from llava_stf.inference import LlavaStf, user_turn
from llava_stf.inference.prefix import Prefix, PrefixCache, Prompt, places_of, shared
from llava_stf.inference.reading import Reading, reuses
from llava_stf.loading.testing import tiny_llava_next, write_tiny_llava
from llava_stf.reduction import apply_reduction
from llava_stf.reduction.fastv import FastV
from llava_stf.world import draw

SIZES = [(60, 60), (50, 200), (300, 90), (110, 115)]
QUESTIONS = ("What?", "And now?", "Red,\nor blue?", "Why?")


def next_model(**fields: object) -> LlavaStf:
    model, processor = tiny_llava_next(**fields)
    apply_stf(model, processor, window=[2, 4])
    return LlavaStf(model, processor)


@pytest.fixture(scope="module", params=["stf", "plain", "next"])
def llava(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> LlavaStf:
    if request.param == "next":
        return next_model()
    if request.param == "plain":
        folder = write_tiny_llava(tmp_path_factory.mktemp("long"), stf=False, positions=1024)
        return load_model(folder, vision_tokens="all", device="cpu")
    return load_model(request.getfixturevalue("stf_folder"), device="cpu")


@pytest.fixture(scope="module")
def stf(stf_folder: str) -> LlavaStf:
    return load_model(stf_folder, device="cpu")


@pytest.fixture(scope="module")
def images() -> list[Image.Image]:
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 255, (*size, 3), dtype=np.uint8)) for size in SIZES]


def anew(llava: LlavaStf, messages: list, images: list, **options: object) -> str:
    """The answer to a conversation that is read as a whole, its images by their pixels."""
    vision_tokens = options.pop("vision_tokens", None)
    return llava._answers(llava.encode([messages], [images], vision_tokens), 5, options)[0]


@pytest.fixture
def read(llava: LlavaStf, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Tokens of a row in each pass of the language model, and -1 for each of the vision tower."""
    passes: list[int] = []
    hooks = [
        llava.model.model.language_model.register_forward_pre_hook(
            lambda module, args, kwargs: passes.append(kwargs["inputs_embeds"].shape[1]), with_kwargs=True
        ),
        llava.model.model.vision_tower.register_forward_pre_hook(lambda module, args: passes.append(-1)),
    ]
    yield passes
    for hook in hooks:
        hook.remove()


def test_ten_turns_with_images_at_three_answer_as_read_anew(
    llava: LlavaStf, images: list[Image.Image], read: list[int]
) -> None:
    chat, new = llava.chat(), dict(zip((0, 3, 6), images, strict=False))
    before = 0
    for turn in range(10):
        if turn in new:
            chat.add_image(new[turn])
        messages = list(chat.messages)
        question = QUESTIONS[turn % 4]
        read.clear()
        if turn % 3 == 2:
            answer = "".join(chat.stream(question, max_new_tokens=5)).strip()
        else:
            answer = chat.ask(question, max_new_tokens=5)
        passes = list(read)
        assert passes.count(-1) == (turn in new)
        expected = anew(llava, [*messages, chat.messages[-2]], chat.images)
        assert answer == expected
        length = max(read[len(passes) :])  # of the whole prompt
        # The turn, the steps of its answer, and what became of the last answer when it was tokenised again.
        assert sum(tokens for tokens in passes if tokens > 0) <= length - before + 5 + 8
        before = length


def test_ten_turns_with_the_bundled_model_answer_as_a_model_that_is_new_at_each() -> None:
    chat = load_model("tiny", device="cpu", dtype="float32").chat()
    asked = ("What is in the image?", "How many objects are there?", "Is there a circle?", "What colour is it?")
    for turn in range(10):
        if turn in (0, 3, 6):
            chat.add_image(Image.fromarray(draw(turn, seed=0, split="held_out")[1]))
        messages = list(chat.messages)
        answer = chat.ask(asked[turn % 4], max_new_tokens=12)
        new = load_model("tiny", device="cpu", dtype="float32")
        inputs = new.encode([[*messages, chat.messages[-2]]], [chat.images])
        assert answer == new._answers(inputs, 12, {})[0]


def test_a_history_that_was_cut_or_edited_answers_as_read_anew(llava: LlavaStf, images: list[Image.Image]) -> None:
    rng = random.Random(1)
    chat = llava.chat(images[:1])
    chat.ask("What?", max_new_tokens=5)
    for _ in range(8):
        change = rng.choice(("cut", "answer", "image", "question", "none"))
        if change == "cut" and len(chat.messages) > 2:
            del chat.messages[-2:]
        elif change == "answer":
            chat.messages[-1] = {"role": "assistant", "content": [{"type": "text", "text": "Nothing </s> at all."}]}
        elif change == "image":
            chat.images[0] = rng.choice(images)
        elif change == "question":
            chat.messages[0]["content"][-1]["text"] += "!"
        messages = list(chat.messages)
        answer = chat.ask(rng.choice(QUESTIONS), max_new_tokens=5)
        assert answer == anew(llava, [*messages, chat.messages[-2]], chat.images)


def test_a_stream_that_is_closed_dropped_or_fails_leaves_a_chat_that_goes_on(
    stf: LlavaStf, images: list[Image.Image]
) -> None:
    chat = stf.chat(images[0])
    stream = chat.stream("What?", max_new_tokens=30, min_new_tokens=30)
    next(stream)
    stream.close()
    chat.stream("Never heard", max_new_tokens=5)

    def fails(ids: torch.Tensor, scores: object, **kwargs: object) -> torch.Tensor:
        raise RuntimeError("out of everything")

    with pytest.raises(RuntimeError, match="out of everything"):
        chat.ask("Why?", stopping_criteria=[fails])
    messages = list(chat.messages)
    assert len(messages) == 2
    answer = chat.ask("And?", max_new_tokens=5)
    assert answer == anew(stf, [*messages, chat.messages[-2]], chat.images)


def test_other_ways_to_generate_read_the_conversation_anew(stf: LlavaStf, images: list[Image.Image]) -> None:
    chat = stf.chat(images[0])
    for options in (
        {},
        {"num_beams": 2},
        {"use_cache": False},
        {},
        {"prefill_chunk_size": 4},
    ):
        messages = list(chat.messages)
        answer = chat.ask("What?", max_new_tokens=5, **options)
        assert answer == anew(stf, [*messages, chat.messages[-2]], chat.images, **options)


def test_weights_that_change_are_noticed(stf: LlavaStf, images: list[Image.Image]) -> None:
    chat = stf.chat(images[0])
    chat.ask("What?", max_new_tokens=5)
    weights = [stf.model.model.multi_modal_projector, stf.model.model.language_model.layers[0]]
    for part in weights:
        parameter = next(part.parameters())
        with torch.no_grad():
            parameter.mul_(-3)
        messages = list(chat.messages)
        answer = chat.ask("What?", max_new_tokens=5)
        expected = anew(stf, [*messages, chat.messages[-2]], chat.images)
        with torch.no_grad():
            parameter.div_(-3)
        assert answer == expected


def test_a_batch_of_prompts_that_begin_alike_reads_the_begin_once(
    llava: LlavaStf, images: list[Image.Image], read: list[int]
) -> None:
    known = PrefixCache(2**20)
    images = [ImageOps.mirror(image) for image in images]  # which were not encoded before
    asked = [([user_turn(question, 1)], images[:1]) for question in QUESTIONS] + [([user_turn("Both?", 2)], images[:2])]
    expected = [anew(llava, *each) for each in asked]
    read.clear()
    for prompts in (asked[:1], asked, asked[1:], [*asked, ([user_turn("Hm?", 1)], images[2:3])]):
        reading = Reading(llava, [llava.compose(*each) for each in prompts], known)
        new = llava.generate(reading.inputs, max_new_tokens=5)
        for prefix in reading.prefixes(new, [5] * len(prompts)):
            known.put(prefix)
        texts = llava.processor.tokenizer.batch_decode(
            new[:, reading.inputs["input_ids"].shape[1] :], skip_special_tokens=True
        )
        assert [text.strip() for text in texts[: len(expected)]] == (
            expected[1:] if prompts == asked[1:] else expected
        )[: len(prompts)]
        assert known.nbytes <= known.limit
    assert read.count(-1) == 3  # of four batches
    assert min(reading.cached[:4]) > 20


def test_images_have_budgets_of_their_own(images: list[Image.Image], plain_folder: str) -> None:
    llava = load_model(plain_folder, vision_tokens=[16, 4, 1], device="cpu")
    prompts = []
    for budgets in itertools.product((16, 1), (4, None)):
        seen = [
            llava.compose("<image>", [image], tokens).images[0] for image, tokens in zip(images, budgets, strict=False)
        ]
        ids = llava.processor.prompt_ids("<image>\nA<image>", [image.count for image in seen])
        prompts.append(Prompt(ids, seen))
    together = Reading(llava, prompts)
    assert together.inputs["inputs_embeds"].shape[:2] == together.inputs["input_ids"].shape  # they end with images
    ids = llava.generate(together.inputs, max_new_tokens=5)
    for row, prompt in enumerate(prompts):
        alone = llava.generate(Reading(llava, [prompt]).inputs, max_new_tokens=5)
        assert ids[row, -5:].tolist() == alone[0, -5:].tolist()
    assert len({tuple(row) for row in ids[:, -5:].tolist()}) > 1


@pytest.mark.parametrize("vision_tokens", [4, 1])
def test_a_chat_has_its_budget(plain_folder: str, images: list[Image.Image], vision_tokens: int) -> None:
    llava = load_model(plain_folder, vision_tokens=[4, 1], device="cpu")
    chat = llava.chat(images[0], vision_tokens=vision_tokens)
    for _ in range(2):
        messages = list(chat.messages)
        answer = chat.ask("What?", max_new_tokens=5)
        turns = [*messages, chat.messages[-2]]
        assert answer == anew(llava, turns, chat.images, vision_tokens=vision_tokens)


def test_a_method_that_reads_the_prompt_starts_over(plain_folder: str, images: list[Image.Image]) -> None:
    llava = load_model(plain_folder, vision_tokens="all", device="cpu")
    apply_reduction(llava.model, llava.processor, FastV(full_layers=1), vision_tokens=4)
    assert not reuses(llava)
    chat = llava.chat(images[0])
    for _ in range(3):
        messages = list(chat.messages)
        answer = chat.ask("What?", max_new_tokens=5)
        assert answer == anew(llava, [*messages, chat.messages[-2]], chat.images)


def test_a_window_that_slides_over_a_prompt_starts_over() -> None:
    llava = next_model()
    text = llava.model.config.text_config
    found = []
    for window in (None, text.max_position_embeddings, text.max_position_embeddings - 1):
        text.sliding_window = window
        found.append(reuses(llava))
    assert found == [True, True, False]


def test_the_prefix_that_shares_most_is_found_among_many() -> None:
    rng = random.Random(0)

    def prompt() -> tuple[np.ndarray, list[tuple[object, int, int]]]:
        ids = [rng.choice((1, 2)) for _ in range(rng.randint(6, 12))]
        if rng.random() < 0.7:
            first = rng.randint(0, 2)
            ids[first : first + 2] = [9, 9]
            return np.asarray(ids), [((rng.choice((b"one", b"two")), 2), first, first + 2)]
        return np.asarray(ids), []

    known = PrefixCache(10**6)
    for _ in range(300):
        ids, places = prompt()
        asked = ids[:-1], places
        most = max((shared((kept.ids, kept.images), asked) for kept in known._kept), default=0)
        found, length = known.find(ids, places)
        assert length == most
        assert found is None if not most else shared((found.ids, found.images), asked) == most
        known.put(Prefix(ids, places, [(torch.zeros(1, len(ids), 1),) * 2]))
        assert known.nbytes == sum(kept.nbytes for kept in known._kept)
        begins = [(kept.ids, kept.images) for kept in known._kept]
        assert all(shared(one, other) < len(one[0]) for one, other in itertools.permutations(begins, 2))


def test_shared_tokens_cut_no_image(llava: LlavaStf, images: list[Image.Image]) -> None:
    image_id = llava.model.config.image_token_id

    def prompt(text: str, *shown: Image.Image) -> tuple:
        made = llava.compose(text, shown)
        return np.asarray(made.ids), places_of(np.asarray(made.ids), made.images, image_id)

    one = prompt("A<image>B<image>C", images[0], images[1])
    ends = [place[2] for place in one[1]]
    assert shared(one, one) == len(one[0])
    assert shared(one, prompt("A<image>B<image>D", images[0], images[1])) == len(one[0]) - 1
    assert shared(one, prompt("A<image>B<image>C", images[0], images[2])) == one[1][1][1]
    assert shared(one, prompt("A<image>B<image>C", images[3], images[1])) == one[1][0][1]
    assert shared(one, prompt("A<image>C", images[0])) in (ends[0], ends[0] + 1)  # with a word-start piece
    assert shared(one, prompt("A")) == one[1][0][1]
