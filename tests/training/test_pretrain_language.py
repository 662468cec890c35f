"""The language model's lessons in small: what is learned and scored, when a lesson ends, and an exact resume."""

from functools import partial

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, CLIPVisionModel, LlamaConfig, LlamaForCausalLM

from llava_stf import load_model
from llava_stf.errors import LlavaStfError
from llava_stf.models.llava_stf.conversation import IGNORE_INDEX
from llava_stf.training.assemble_tiny import assemble_tiny, language_config, train_tokenizer
from llava_stf.training.course import COURSE, WINDOW, Lesson, Progress, draw_exercises
from llava_stf.training.lookup_weights import LOOKBACK, set_lookup_weights
from llava_stf.training.pretrain_language import (
    answer_loss,
    collate,
    pretrain_language,
    told_accuracy,
    train_step,
)
from llava_stf.training.pretrain_tower import tower_config
from llava_stf.world import draw
from llava_stf.world.exercises import Exercise, letter_pairs, options_first
from llava_stf.world.families import FAMILIES

EXERCISE = Exercise("A. red\nB. blue\nred A\nblue B\n", ((18, 20), (25, 27)))


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(200)


def small_config(tokenizer):
    return LlamaConfig(vocab_size=768, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)


def test_only_the_answers_tokens_are_learned(tokenizer):
    short = Exercise("red A\n", ((3, 5),))
    batch = collate([(EXERCISE, 3), (short, 1)], tokenizer)
    pieces = tokenizer.convert_ids_to_tokens(batch["input_ids"][0].tolist())
    assert [p for p, n in zip(pieces, batch["answers"][0].tolist(), strict=True) if n == 0] == ["▁A"]
    assert [p for p, n in zip(pieces, batch["answers"][0].tolist(), strict=True) if n == 1] == ["▁B"]
    assert batch["lessons"].tolist() == [3, 3, 1]
    length = len(tokenizer(short.text)["input_ids"])
    assert (batch["answers"][1] == 2).sum() == 1
    assert (batch["answers"][1, length:] == IGNORE_INDEX).all()
    assert (batch["input_ids"][1, length:] == tokenizer.pad_token_id).all()


def test_an_answer_is_right_if_all_its_tokens_are(tokenizer, monkeypatch):
    exercise = Exercise("Which? top left", ((6, 15),))
    batch = collate([(exercise, 0), (EXERCISE, 0)], tokenizer)
    model = LlamaForCausalLM(small_config(tokenizer))
    logits = torch.nn.functional.one_hot(batch["input_ids"].roll(-1, 1), len(tokenizer)).float() * 20
    monkeypatch.setattr("llava_stf.training.pretrain_language.last_states", lambda *_: logits.flatten(0, 1))
    monkeypatch.setattr("llava_stf.training.pretrain_language.logits_of", lambda _, __, states: states)
    loss, right = answer_loss(model.model, model.lm_head, batch)
    assert right.tolist() == [True, True, True]
    assert loss.item() < 1e-4
    last = int((batch["answers"][0] == 0).nonzero()[-1])
    logits[0, last - 1] = 0
    logits[0, last - 1, 5] = 20
    assert answer_loss(model.model, model.lm_head, batch)[1].tolist() == [False, True, True]


def test_a_step_lowers_the_loss(tokenizer):
    torch.manual_seed(0)
    model = LlamaForCausalLM._from_config(small_config(tokenizer), attn_implementation="eager")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    batch = collate([(EXERCISE, 0)], tokenizer)
    first, _ = train_step(model, optimizer, batch)
    for _ in range(10):
        last, right = train_step(model, optimizer, batch)
    assert last < 0.5 * first
    assert right.all()


def test_a_lesson_ends_at_its_goal_or_its_last_step():
    lesson = Lesson("pairs", letter_pairs, steps=3, goal=0.9)
    progress = Progress()
    progress.advance(lesson, [0] * (WINDOW - 1), [True] * (WINDOW - 1))
    assert progress.lesson == 0  # good, but too few answers to say so
    progress.advance(lesson, [0], [True])
    assert (progress.step, progress.lesson, progress.step_in_lesson) == (2, 1, 0)
    for _ in range(3):
        progress.advance(lesson, [1] * WINDOW, [False] * WINDOW)
    assert (progress.step, progress.lesson, progress.step_in_lesson) == (5, 2, 0)
    assert [progress.share_right(number) for number in range(3)] == [1.0, 0.0, 0.0]
    assert Progress(**progress.state()) == progress


def test_only_the_last_answers_of_a_lesson_count():
    progress = Progress()
    lesson = Lesson("pairs", letter_pairs, steps=9, goal=1.01)
    progress.advance(lesson, [0] * WINDOW, [False] * WINDOW)
    progress.advance(lesson, [0] * (WINDOW // 2), [True] * (WINDOW // 2))
    assert progress.share_right(0) == 0.5


@pytest.mark.parametrize(("alone", "least", "most"), [(False, 0.2, 0.4), (True, 0.0, 0.0)])
def test_a_lesson_is_rehearsed_as_far_as_it_was_answered_wrong(alone, least, most):
    """Weights 0.1, 0.4 and 1.1: the second of three lessons gets a quarter."""
    course = [Lesson(name, letter_pairs, 9, batch_size=400) for name in "ab"]
    course.append(Lesson("c", letter_pairs, 9, batch_size=400, alone=alone))
    progress = Progress(lesson=2, recent=[[True] * 10, [True] * 7 + [False] * 3, []])
    numbers = [number for _, number in draw_exercises(course, progress, seed=0)]
    assert least <= numbers.count(1) / 400 <= most
    assert numbers.count(0) <= numbers.count(1) <= numbers.count(2)
    assert draw_exercises(course, progress, seed=0) == draw_exercises(course, progress, seed=0)


def test_when_the_course_is_over_all_lessons_are_rehearsed():
    course = [Lesson(name, letter_pairs, 9, batch_size=400) for name in "ab"]
    progress = Progress(lesson=2, recent=[[True] * 10, [False] * 10, []])
    numbers = [number for _, number in draw_exercises(course, progress, seed=0)]
    assert set(numbers) == {0, 1}
    assert numbers.count(0) < 0.2 * numbers.count(1)
    progress.count([0, 1], [False, True])
    assert (progress.lesson, progress.step) == (2, 1)
    assert [share[-1] for share in progress.recent[:2]] == [False, True]


def test_first_heads_look_back(tokenizer):
    """Head h of the first layer reads the token h + 1 before, whatever the tokens are: its state is that token's."""
    torch.manual_seed(0)
    config = language_config(tokenizer)
    config.initializer_range = config.hidden_size**-0.5
    model = LlamaForCausalLM._from_config(config, attn_implementation="eager")
    set_lookup_weights(model)
    ids = torch.randint(3, len(tokenizer), (4, 40))
    weights = model(input_ids=ids, output_attentions=True).attentions[0].mean(0)
    for head in range(LOOKBACK):
        back = weights[head].diagonal(-(head + 1))[8:]
        assert back.mean() > 0.5
        assert (weights[head, -20:].argmax(-1) == torch.arange(20, 40) - head - 1).float().mean() > 0.9


def test_a_resumed_run_is_the_run_that_never_stopped(tmp_path, tokenizer, monkeypatch):
    monkeypatch.setattr("llava_stf.training.pretrain_language.train_tokenizer", lambda: tokenizer)
    monkeypatch.setattr("llava_stf.training.pretrain_language.SCENES", 2)
    course = (
        Lesson("pairs", letter_pairs, 3, batch_size=2),
        Lesson("turns", options_first, 3, batch_size=2, fades=True),
    )
    run = partial(pretrain_language, course=course, config=small_config, save_steps=2)
    assert run(tmp_path / "whole")
    assert not run(tmp_path / "parts", stop_after=4)
    with pytest.raises(LlavaStfError, match="--resume"):
        run(tmp_path / "parts")
    assert run(tmp_path / "parts", resume=True)
    whole, parts = (AutoModelForCausalLM.from_pretrained(tmp_path / name).state_dict() for name in ("whole", "parts"))
    assert all(torch.equal(whole[name], value) for name, value in parts.items())
    assert len(AutoTokenizer.from_pretrained(tmp_path / "whole")) == len(tokenizer)


def test_the_course_ends_with_whole_conversations(tokenizer):
    assert COURSE[-1].fades
    assert COURSE[-1].alone
    assert COURSE[-1].goal > 1  # its steps are all taken
    assert language_config(tokenizer).vocab_size >= len(tokenizer)


def test_told_accuracy_is_that_of_held_out_scenes(tokenizer):
    torch.manual_seed(0)
    model = LlamaForCausalLM._from_config(small_config(tokenizer), attn_implementation="eager")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    answers_yes = Exercise("ASSISTANT: yes</s>", ((10, 18),))
    for _ in range(20):
        train_step(model, optimizer, collate([(answers_yes, 0)], tokenizer))
    accuracy = told_accuracy(model, tokenizer, 30)
    assert set(accuracy) == set(FAMILIES)
    assert 0.2 < accuracy["presence"] < 0.8  # always "yes"
    assert accuracy["choice"] == 0


def test_the_bundled_model_is_built_on_the_result(tmp_path, tokenizer, monkeypatch):
    monkeypatch.setattr("llava_stf.training.pretrain_language.train_tokenizer", lambda: tokenizer)
    monkeypatch.setattr("llava_stf.training.pretrain_language.SCENES", 2)
    course = (Lesson("pairs", letter_pairs, 1, batch_size=2),)
    pretrain_language(tmp_path / "language", course=course, config=small_config)
    CLIPVisionModel(tower_config()).save_pretrained(tmp_path / "tower")
    assemble_tiny(tmp_path / "tower", tmp_path / "start", language=tmp_path / "language")
    llava = load_model(tmp_path / "start", vision_tokens="all")
    trained = AutoModelForCausalLM.from_pretrained(tmp_path / "language").state_dict()
    state = llava.model.model.language_model.state_dict()
    assert all(torch.equal(state[name], trained[f"model.{name}"]) for name in state)
    assert torch.equal(llava.model.lm_head.weight, trained["lm_head.weight"])
    assert llava.processor.tokenizer.get_vocab() == tokenizer.get_vocab()
    assert isinstance(llava.ask(draw(0)[1], "How many shapes are there?", max_new_tokens=3), str)
