"""Answers, re-derived from the scene by reading the question's own words; balance; negatives; captions."""

import re
from collections import Counter

from llava_stf.world import (
    ALL,
    COLOURS,
    PLACES,
    SHAPES,
    UNANSWERABLE,
    Question,
    Scene,
    Thing,
    ask,
    caption,
    generator,
    prior_accuracy,
    questions_of,
    sample_scene,
)
from llava_stf.world.choices import CHINESE
from llava_stf.world.scene import POPULAR

SCENES = [sample_scene(generator("train", 21, index, 0)) for index in range(2500)]
ASKED = [(scene, question) for index, scene in enumerate(SCENES) for question in questions_of(scene, index, seed=21)]
ENGLISH = {chinese: english for english, chinese in CHINESE.items()}
PLACE = r"(?:at the |in the )"


def named(scene: Scene, words: str) -> list[Thing]:
    """The objects that "star" or "red star" or "red" or "red shape" can mean."""
    wanted = set(words.split()) - {"shape"}
    return [thing for thing in scene.objects if wanted <= {thing.shape, thing.colour}]


def only(things: list[Thing]) -> Thing:
    assert len(things) == 1, "the question is ambiguous"
    return things[0]


def standing(scene: Scene, direction: str, words: str) -> list[Thing]:
    anchor = only(named(scene, words))
    x, y = {"left of": (-1, 0), "right of": (1, 0), "above": (0, -1), "below": (0, 1)}[direction]
    return [
        thing
        for thing in scene.objects
        if (thing.place % 3 - anchor.place % 3) * x + (thing.place // 3 - anchor.place // 3) * y > 0
    ]


def truth(scene: Scene, text: str) -> str | None:
    """What the first line asks, from the scene alone; None where nothing in the scene answers it."""
    if match := re.fullmatch(rf"What (shape|colour) is {PLACE}(.+)\?", text):
        thing = only([thing for thing in scene.objects if thing.place == PLACES.index(match[2])])
        return thing.shape if match[1] == "shape" else thing.colour
    if match := re.fullmatch(r"What (shape|colour) is (left of|right of|above|below) the (.+)\?", text):
        thing = only(standing(scene, match[2], match[3]))
        return thing.shape if match[1] == "shape" else thing.colour
    if match := re.fullmatch(r"What colour is the (\w+)\?|What is the colour of the (\w+)\?", text):
        found = named(scene, match[1] or match[2])
        return only(found).colour if found else None
    if match := re.fullmatch(r"What (?:shape )?is (\w+)\?", text):
        found = named(scene, match[1])
        return only(found).shape if found else None
    if match := re.fullmatch(r"Where is the (\w+)\?", text):
        return PLACES[only(named(scene, match[1])).place]
    if match := re.fullmatch(r"Is the (\w+) small or large\?", text):
        return only(named(scene, match[1])).size
    if match := re.fullmatch(r"How many (.+) are there\?", text):
        words = re.sub(r"(cross)es$|s$", r"\1", match[1])
        return str(len(scene.objects) if words == "shape" else len(named(scene, words)))
    if match := re.fullmatch(r"Is the (.+) (left of|right of|above|below) the (.+)\?", text):
        return "yes" if only(named(scene, match[1])) in standing(scene, match[2], match[3]) else "no"
    if match := re.fullmatch(r"Is there an? (\w+ \w+)\?", text):
        return "yes" if named(scene, match[1]) else "no"
    if text == "Is there any text?":
        return "yes" if scene.text else "no"
    if match := re.fullmatch(r"What is the number\?|What (number) is shown\?|What (word) is (?:shown|written)\?", text):
        number = match[2] is None
        return scene.text.string if scene.text and scene.text.string.isdigit() == number else None
    if text == "What does the text say?":
        return scene.text.string if scene.text else None
    if text == "What is the first letter?":
        return scene.text.string[0] if scene.text else None
    raise AssertionError(f"the check cannot read {text!r}")


def truth_in_chinese(scene: Scene, text: str) -> str | None:
    if match := re.fullmatch(r"(.+)是什么颜色？", text):
        return truth(scene, f"What colour is the {ENGLISH[match[1]]}?")
    if match := re.fullmatch(r"(.+)在哪里？", text):
        return truth(scene, f"Where is the {ENGLISH[match[1]]}?")
    if match := re.fullmatch(r"(.+)的是什么形状？", text):
        return truth(scene, f"What shape is {ENGLISH[match[1]]}?")
    if match := re.fullmatch(r"(.+)是什么形状？", text):
        return truth(scene, f"What shape is at the {ENGLISH[match[1]]}?")
    return truth(scene, {"有几个图形？": "How many shapes are there?", "写的是什么词？": "What word is written?"}[text])


def right_answer(scene: Scene, question: Question) -> str | None:
    """The answer as it should be: a word, or the letter before the option that is true."""
    lines = question.text.split("\n")
    if question.family == "poor" and scene.degraded:
        return UNANSWERABLE
    if question.family == "science":
        rule = dict(re.findall(r"(\w+) is (\w+)[,.]", lines[0]))
        match = re.fullmatch(r"What is the (.+)\?", lines[1])
        assert match
        thing = only(named(scene, match[1]))
        answer: str | None = rule.get(thing.colour, rule.get(thing.shape))
    elif question.family == "choice_cn":
        answer = truth_in_chinese(scene, lines[0])
        answer = CHINESE.get(answer or "", answer)
    else:
        answer = truth(scene, lines[0])
    if question.family == "poor":
        return UNANSWERABLE if answer is None else answer
    if not question.options:
        return answer
    shown = [line.split(". ", 1) for line in lines if re.match(r"[A-D]\. ", line)]
    assert [letter for letter, _ in shown] == list("ABCD"[: len(shown)])
    assert tuple(option for _, option in shown) == question.options
    return next(letter for letter, option in shown if option == answer)


def test_every_answer_follows_from_the_scene() -> None:
    for scene, question in ASKED:
        assert right_answer(scene, question) == question.answer, (scene, question)


def test_every_family_is_asked_and_degraded_images_get_the_poor_family_only() -> None:
    assert {question.family for _, question in ASKED} == set(ALL)
    degraded = [question for scene, question in ASKED if scene.degraded]
    assert degraded
    assert all(question.family == "poor" and question.answer == UNANSWERABLE for question in degraded)


def test_options_are_different_from_each_other() -> None:
    assert all(len(set(question.options)) == len(question.options) for _, question in ASKED)


def test_no_family_is_answered_by_its_most_frequent_answer() -> None:
    priors = prior_accuracy(question for _, question in ASKED)
    assert max(priors.values()) <= 0.55, priors
    assert max(priors["choice"], priors["choice_cn"]) <= 0.29


def test_yes_and_no_and_letters_are_balanced() -> None:
    for family in ("relation", "text", "presence"):
        answers = Counter(question.answer for _, question in ASKED if question.family == family)
        assert 0.44 < answers["yes"] / (answers["yes"] + answers["no"]) < 0.56, (family, answers)
    for family, letters in (("science", "AB"), ("choice", "ABCD"), ("choice_cn", "ABCD")):
        answers = Counter(question.answer for _, question in ASKED if question.family == family)
        assert all(0.86 < answers[letter] * len(letters) / answers.total() < 1.14 for letter in letters), (
            family,
            answers,
        )


def test_presence_is_balanced_within_each_kind_and_its_negatives_are_what_they_are_called() -> None:
    for kind in ("random", "popular", "adversarial"):
        asked = [(scene, q) for scene, q in ASKED if q.family == "presence" and q.kind == kind]
        assert len(asked) > 200
        assert 0.4 < sum(q.answer == "yes" for _, q in asked) / len(asked) < 0.6
        for scene, question in asked:
            if question.answer == "yes":
                continue
            match = re.fullmatch(r"Is there an? (\w+) (\w+)\?", question.text)
            assert match
            pair = (match[1], match[2])
            assert pair not in {(thing.colour, thing.shape) for thing in scene.objects}
            if kind == "popular":
                assert pair in POPULAR
            if kind == "adversarial":
                assert pair[0] in {thing.colour for thing in scene.objects}
                assert pair[1] in {thing.shape for thing in scene.objects}


def test_the_wording_of_a_poor_question_does_not_give_it_away() -> None:
    for kind in ("colour", "shape", "word", "number"):
        answers = [q.answer for _, q in ASKED if q.family == "poor" and q.kind == kind]
        assert 0.38 < answers.count(UNANSWERABLE) / len(answers) < 0.64, kind


def test_families_and_the_number_of_questions_can_be_chosen() -> None:
    scene = next(scene for scene in SCENES if len(scene.objects) > 2 and not scene.degraded)
    asked = ask(scene, generator("train", 0, 0, 1), families=("presence", "choice"), count=6)
    assert 4 <= len(asked) <= 6
    assert {question.family for question in asked} == {"presence", "choice"}
    assert len({question.text for question in asked}) == len(asked)
    assert len(ask(scene, generator("train", 0, 0, 1), count=2)) <= 2


def test_five_objects_can_be_asked_about_too() -> None:
    for index in range(300):
        scene = sample_scene(generator("train", 4, index, 0), max_objects=5)
        for question in questions_of(scene, index, seed=4):
            assert right_answer(scene, question) == question.answer, (scene, question)


def test_a_caption_names_everything_in_raster_order() -> None:
    for scene in SCENES[:400]:
        text = caption(scene)
        if scene.degraded:
            assert not any(word in text for word in (*COLOURS, *SHAPES))
            continue
        parts = text.removesuffix(".").split(", ")
        assert len(parts) == len(scene.objects) + (scene.text is not None)
        places = [PLACES.index(re.split(PLACE, part)[1]) for part in parts]
        assert places == sorted(places)
        for thing in scene.objects:
            assert f"a {thing.size} {thing.colour} {thing.shape} " in text
        if scene.text is not None:
            assert f" {scene.text.string} " in text
