"""Exercises in text: what is asked has the answer that is marked, and told images read as conversations do."""

import numpy as np
import pytest

from llava_stf.models.llava_stf.conversation import SYSTEM_PROMPT
from llava_stf.world import caption, generator, questions_of, sample_scene
from llava_stf.world.exercises import DRILLS, Exercise, conversation, letter_drill, lettered_fact, options_last, told


def answers(exercise):
    return [exercise.text[start:end] for start, end in exercise.answers]


def test_parts_keep_their_places():
    exercise = Exercise.of([("red", False), (" A", True), ("\nblue", False), (" B", True)])
    assert exercise.text == "red A\nblue B"
    assert answers(exercise) == [" A", " B"]


@pytest.mark.parametrize("form", DRILLS)
def test_drill_answers_with_the_letter_of_the_asked_option(form):
    before, between, _ = DRILLS[form]
    for seed in range(20):
        exercise = letter_drill(np.random.default_rng(seed), form)
        listed, start = {}, 0
        for line in exercise.text.splitlines():
            if line[1:3] != ". ":
                break
            listed[line[3:]] = line[0]
        for (begin, end), answer in zip(exercise.answers, answers(exercise), strict=True):
            asked = exercise.text[start:begin].removesuffix(between).rpartition(before or "\n")[2].rpartition("\n")[2]
            assert answer == f" {listed[asked]}"
            start = end


def test_options_last_asks_for_one_of_them():
    for seed in range(20):
        exercise = options_last(np.random.default_rng(seed), spoken=1.0)
        question, *options = exercise.text.split(" ASSISTANT:")[0].removeprefix("USER: ").split("\n")
        asked = question.removeprefix("Which is ").removesuffix("?")
        words, letter = answers(exercise)
        assert words == f" {asked}"
        assert f"{letter.strip().removesuffix('</s>')}. {asked}" in options
        assert answers(options_last(np.random.default_rng(seed))) == [letter]


def test_lettered_fact_has_one_letter():
    for seed in range(20):
        (answer,) = answers(lettered_fact(np.random.default_rng(seed), max_objects=2))
        assert answer in {" A</s>", " B</s>", " C</s>", " D</s>"}


def test_conversation_tells_the_scene_and_asks_as_with_an_image():
    scene = sample_scene(generator("held_out", 0, 1, 0))
    questions = questions_of(scene, 1, split="held_out")
    exercise = conversation(scene, questions)
    assert exercise.text.startswith(f"{SYSTEM_PROMPT} USER: {caption(scene)}\n{questions[0].text} ASSISTANT: ")
    assert answers(exercise) == [f" {question.answer}</s>" for question in questions]
    assert exercise.text.count("USER: ") == len(questions)


def test_told_draws_the_same_from_the_same_stream():
    first, second, other = (told(np.random.default_rng(seed)) for seed in (3, 3, 4))
    assert first == second
    assert first != other
