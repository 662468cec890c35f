"""The lessons on option letters in small: what is learned and scored, when a lesson ends, what is rehearsed."""

import dataclasses

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from llava_stf.models.llava_stf.conversation import IGNORE_INDEX
from llava_stf.training.assemble_tiny import train_tokenizer
from llava_stf.training.lessons import COURSE, WINDOW, Lesson, Progress, answer_loss, collate, draw_exercises
from llava_stf.world.exercises import Exercise, letter_pairs

EXERCISE = Exercise("A. red\nB. blue\nred A\nblue B\n", ((18, 20), (25, 27)))


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(200)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(vocab_size=768, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)
    )


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


def test_an_answer_is_right_if_all_its_tokens_are(tokenizer, model, monkeypatch):
    exercise = Exercise("Which? top left", ((6, 15),))
    batch = collate([(exercise, 0), (EXERCISE, 0)], tokenizer)
    logits = torch.nn.functional.one_hot(batch["input_ids"].roll(-1, 1), len(tokenizer)).float() * 20
    monkeypatch.setattr("llava_stf.training.lessons.last_states", lambda *_: logits.flatten(0, 1))
    monkeypatch.setattr("llava_stf.training.lessons.logits_of", lambda _, __, states: states)
    loss, right = answer_loss(model.model, model.lm_head, batch, torch.float32)
    assert right.tolist() == [True, True, True]
    assert loss.item() < 1e-4
    last = int((batch["answers"][0] == 0).nonzero()[-1])
    logits[0, last - 1] = 0
    logits[0, last - 1, 5] = 20
    assert answer_loss(model.model, model.lm_head, batch, torch.float32)[1].tolist() == [False, True, True]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_steps_lower_the_loss(tokenizer, model, dtype):
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    batch = collate([(EXERCISE, 0)], tokenizer)
    losses = []
    for _ in range(12):
        loss, right = answer_loss(model.model, model.lm_head, batch, dtype)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    assert right.all()


def test_a_lesson_ends_at_its_goal_or_its_last_step():
    course = [Lesson(name, letter_pairs, steps=3, goal=0.9) for name in "ab"]
    progress = Progress()
    progress.advance(course, [0] * (WINDOW - 1), [True] * (WINDOW - 1))
    assert progress.lesson == 0  # good, but too few answers to say so
    progress.advance(course, [0], [True])
    assert (progress.step, progress.lesson, progress.step_in_lesson) == (2, 1, 0)
    for _ in range(3):
        progress.advance(course, [1] * WINDOW, [False] * WINDOW)
    assert (progress.step, progress.lesson, progress.step_in_lesson) == (5, 2, 0)
    assert [progress.share_right(number) for number in range(3)] == [1.0, 0.0, 0.0]
    assert Progress(**progress.state()) == progress


def test_only_the_last_answers_of_a_lesson_count():
    progress = Progress()
    course = [Lesson("pairs", letter_pairs, steps=9, goal=1.01)]
    progress.advance(course, [0] * WINDOW, [False] * WINDOW)
    progress.advance(course, [0] * (WINDOW // 2), [True] * (WINDOW // 2))
    assert progress.share_right(0) == 0.5


def drawn(course, progress):
    """The numbers of the lessons that 50 steps draw from, without answers that come in between."""
    steps = [dataclasses.replace(progress, step=step) for step in range(50)]
    return [number for step in steps for _, number in draw_exercises(course, step, seed=0)]


def test_a_lesson_is_rehearsed_as_far_as_it_was_answered_wrong():
    """Weights 0.1, 0.4 and 1.1: the second of three lessons gets a quarter."""
    course = [Lesson(name, letter_pairs, 9) for name in "abcd"]
    progress = Progress(lesson=2, recent=[[True] * 10, [True] * 7 + [False] * 3, []])
    numbers = drawn(course, progress)
    assert 0.2 <= numbers.count(1) / len(numbers) <= 0.3
    assert 0 < numbers.count(0) < numbers.count(1) < numbers.count(2)
    assert 3 not in numbers  # not begun
    assert draw_exercises(course, progress, seed=0) == draw_exercises(course, progress, seed=0)
    assert draw_exercises(course, progress, seed=0) != draw_exercises(course, progress, seed=1)


def test_when_the_course_is_over_all_lessons_are_rehearsed():
    course = [Lesson(name, letter_pairs, 9) for name in "ab"]
    progress = Progress(lesson=2, step_in_lesson=9, recent=[[True] * 10, [False] * 10, []])
    numbers = drawn(course, progress)
    assert set(numbers) == {0, 1}
    assert numbers.count(0) < 0.2 * numbers.count(1)
    progress.advance(course, [0, 1], [False, True])
    assert (progress.lesson, progress.step) == (2, 1)
    assert [answers[-1] for answers in progress.recent[:2]] == [False, True]


def test_every_lesson_of_the_course_fits_the_language_model(tokenizer):
    """Answers, and no text longer than the 1024 positions."""
    for number in range(len(COURSE)):
        progress = Progress(lesson=number, recent=[[True]] * number + [[]])
        exercises = draw_exercises(COURSE, progress, seed=0)
        assert number in [lesson for _, lesson in exercises]
        batch = collate(exercises, tokenizer)
        assert batch["input_ids"].shape[1] <= 1024
        assert set(batch["answers"].unique().tolist()) == set(range(len(batch["lessons"]))) | {IGNORE_INDEX}
