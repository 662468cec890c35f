"""Exercises in text: what is asked has the answer that is marked."""

import numpy as np
import pytest

from llava_stf.world.choices import CHINESE
from llava_stf.world.exercises import (
    QUESTIONS_PER_LIST,
    Exercise,
    letter_pairs,
    options_first,
    options_last,
    rules,
)

ENGLISH = {chinese: english for english, chinese in CHINESE.items()}


def answers(exercise):
    return [exercise.text[start:end] for start, end in exercise.answers]


def test_parts_keep_their_places():
    exercise = Exercise.of([("red", False), (" A", True), ("\nblue", False), (" B", True)])
    assert exercise.text == "red A\nblue B"
    assert answers(exercise) == [" A", " B"]


def options_of(text):
    """Every line "A. red" of a text: the word by its letter."""
    return {line[0]: line[3:] for line in text.split("\n") if line[1:3] == ". "}


def test_a_pair_is_an_option_and_its_letter():
    asked_letters = set()
    for seed in range(20):
        exercise = letter_pairs(np.random.default_rng(seed))
        options = options_of(exercise.text)
        pairs = exercise.text.splitlines()[len(options) :]
        assert len(pairs) == QUESTIONS_PER_LIST
        for answer, pair in zip(answers(exercise), pairs, strict=True):
            left, right = pair.removesuffix(answer), answer.strip()
            assert pair.endswith(answer)
            asked_letters.add(left in options)
            assert options.get(left) == right or options.get(right) == left
    assert asked_letters == {True, False}


def test_a_turn_asks_for_the_letter_of_an_option():
    for seed in range(20):
        exercise = options_first(np.random.default_rng(seed))
        options = options_of(exercise.text)
        turns = exercise.text.split("USER: Which is ")[1:]
        assert len(turns) == len(exercise.answers) == QUESTIONS_PER_LIST
        for turn, answer in zip(turns, answers(exercise), strict=True):
            asked, said = turn.split("? ASSISTANT:")
            assert said == answer == f" {answer[1]}</s>"
            assert options[answer[1]] == asked


@pytest.mark.parametrize("repeated", [False, True])
@pytest.mark.parametrize("translated", [False, True])
def test_options_last_asks_for_one_of_them(repeated, translated):
    for seed in range(20):
        exercise = options_last(np.random.default_rng(seed), repeated=repeated, translated=translated, turns=3)
        turns = exercise.text.split("USER: Which is ")[1:]
        for turn, answer in zip(turns, answers(exercise), strict=True):
            asked = turn.partition("?\n")[0]
            before = turn.removesuffix(f" ASSISTANT:{answer}")
            assert before.endswith(f"\n{asked}?") == repeated
            option = options_of(before)[answer[1]]
            assert option == asked if not translated else asked in (CHINESE.get(option), ENGLISH.get(option))


def test_a_rule_is_answered_as_its_context_says():
    letters = set()
    for seed in range(20):
        exercise = rules(np.random.default_rng(seed))
        turns = exercise.text.split("USER: Context: ")[1:]
        assert len(turns) == len(exercise.answers)
        for turn, answer in zip(turns, answers(exercise), strict=True):
            context, question = turn.split(".\nWhat is ")
            says = dict(rule.split(" is ") for rule in context.split(", "))
            options = options_of(turn.split(" ASSISTANT:")[0])
            said = answer.removesuffix("</s>").strip()
            letters.add(said in options)
            assert options.get(said, said) == says[question.split("?")[0]]
    assert letters == {True, False}
