"""Short queries about scenes: true answers, balanced by what is known."""

import re

import numpy as np

from llava_stf.world import COLOURS, PLACES, SHAPES, draw
from llava_stf.world.choices import CHINESE
from llava_stf.world.pairs import ask_long_pairs, ask_pairs
from llava_stf.world.questions import UNANSWERABLE

SCENES = [draw(index, seed=5)[0] for index in range(80)]


def things_of(scene):
    return [(thing.shape, thing.colour, PLACES[thing.place]) for thing in scene.objects]


def test_answers_follow_from_the_scene():
    for scene in SCENES:
        for pair in ask_pairs(scene, np.random.default_rng(0), 99, {}):
            things = things_of(scene)
            if scene.degraded or pair.kind.endswith(" not there"):
                assert pair.answer == UNANSWERABLE
                continue
            asked, _, wanted = pair.query.rpartition(" ")
            if pair.kind in ("there", "not there"):
                assert (pair.answer == "yes") == any((wanted, asked) == (shape, colour) for shape, colour, _ in things)
            elif pair.kind.startswith(("shape to", "colour to", "place to")) and wanted in ("colour", "shape", "at"):
                column = ("shape", "colour", "at").index(wanted)
                assert {thing[column] for thing in things if asked in thing} == {pair.answer}
            elif pair.kind in ("word", "number"):
                assert pair.answer == scene.text.string
            elif pair.kind == "count":
                assert pair.answer == str(len(scene.objects))
            elif pair.kind == "count of":
                assert pair.answer == str(sum(asked in thing for thing in things_of(scene)))
            elif pair.kind == "verify":
                one, direction, other = re.fullmatch("(.+) (left of|right of|above|below) (.+)", pair.query).groups()
                axis = "column" if "of" in direction else "row"
                found = [
                    getattr(thing, axis) for name in (one, other) for thing in scene.objects if name in names_of(thing)
                ]
                before = found[0] < found[1]
                assert found[0] != found[1]
                assert (pair.answer == "yes") == (before == (direction in ("left of", "above")))
            elif pair.kind == "neighbour":
                assert pair.answer in {thing[("shape", "colour").index(wanted)] for thing in things}


def names_of(thing):
    return thing.shape, f"{thing.colour} {thing.shape}"


def test_letters_and_rules_lead_to_what_short_queries_answer():
    seen = set()
    for index, scene in enumerate(SCENES):
        short = {pair.query: pair.answer for pair in ask_pairs(scene, np.random.default_rng(0), 99, {})}
        for pair in ask_long_pairs(scene, np.random.default_rng(index), 99, {}):
            seen.add(pair.kind)
            if pair.kind == "rule":
                first, second, asked = pair.query.split(", ")
                says = dict(rule.split() for rule in (first, second))
                truth = short[asked if asked.endswith(" shape") else f"{asked} colour"]
                assert pair.answer == says[truth]
                continue
            (*known, wanted), *options = (part.split() for part in re.split(r" [ABCD] ", pair.query))
            known, options = " ".join(known), [" ".join(option) for option in options]
            english = next((name for name, chinese in CHINESE.items() if chinese == known), known)
            truth = short[
                {"shapes count": "shapes", "word text": "word"}.get(f"{english} {wanted}", f"{english} {wanted}")
            ]
            option = options["ABCD".index(pair.answer)]
            assert pair.truth == option
            assert option == (truth if english == known and option not in CHINESE.values() else CHINESE[truth])
            assert len(set(options)) == 4
    assert seen == {"rule", *(f"letter of {what}" for what in ("count", "place", "colour", "shape", "word"))}


def test_what_is_known_is_asked_less():
    scene = next(scene for scene in SCENES if len(scene.objects) == 4 and not scene.degraded)
    kinds = [
        pair.kind
        for seed in range(60)
        for pair in ask_pairs(scene, np.random.default_rng(seed), 4, {"place to shape": 1.0, "place to colour": 0.0})
    ]
    assert kinds.count("place to shape") < kinds.count("place to colour") / 2
    assert len(ask_pairs(scene, np.random.default_rng(0), 4, {})) == 4


def test_a_degraded_scene_answers_nothing():
    scene = next(scene for scene in SCENES if scene.degraded)
    pairs = ask_pairs(scene, np.random.default_rng(0), 9, {})
    assert {pair.answer for pair in pairs} == {UNANSWERABLE}
    assert {pair.query.split()[0] in (*COLOURS, *SHAPES) for pair in pairs} == {True}
