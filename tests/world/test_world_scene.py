"""Scenes and their pixels: bounds, determinism, what is drawn where, and the dense labels."""

import numpy as np
import pytest

from llava_stf.errors import DataError
from llava_stf.world import CHARACTERS, COLOURS, SHAPES, SIDE, SIZES, WORDS, draw, patch_labels, render, sample_scene
from llava_stf.world.scene import POPULAR, with_more_texts

SCENES = [draw(index, seed=11) for index in range(300)]
READABLE = [(scene, pixels) for scene, pixels in SCENES if not scene.degraded]


def test_every_box_is_inside_the_image_and_no_two_places_are_shared() -> None:
    for scene, _ in SCENES:
        boxes = [thing.box for thing in scene.objects]
        places = [thing.place for thing in scene.objects]
        if scene.text is not None:
            boxes += [scene.text.box, *scene.text.character_boxes]
            places.append(scene.text.place)
        assert all(0 <= x0 < x1 <= SIDE and 0 <= y0 < y1 <= SIDE for x0, y0, x1, y1 in boxes)
        assert len(set(places)) == len(places)
        assert 1 <= len(scene.objects) <= 4


def test_sizes_places_and_letters_keep_their_limits() -> None:
    for scene, _ in SCENES:
        for thing in scene.objects:
            x0, y0, x1, y1 = thing.box
            smallest, largest = SIZES[thing.size]
            assert x1 - x0 == y1 - y0
            assert smallest <= x1 - x0 <= largest
            assert (3 * (x0 + x1) // (2 * SIDE), 3 * (y0 + y1) // (2 * SIDE)) == (thing.place % 3, thing.place // 3)
        if scene.text is not None:
            assert all(y1 - y0 <= 14 and x1 - x0 <= 16 for x0, y0, x1, y1 in scene.text.character_boxes)
            assert len(scene.text.character_boxes) == len(scene.text.string)


def test_the_same_image_is_drawn_again_and_another_seed_or_split_gives_another() -> None:
    scene, pixels = draw(7, seed=3)
    again, same = draw(7, seed=3)
    assert again == scene
    assert np.array_equal(same, pixels)
    for index, seed, split in ((8, 3, "train"), (7, 4, "train"), (7, 3, "held_out")):
        assert not np.array_equal(draw(index, seed=seed, split=split)[1], pixels)


def test_larger_images_show_things_as_large_and_farther_apart() -> None:
    far = False
    for scene, pixels in (draw(index, seed=11, side=224) for index in range(100)):
        assert pixels.shape == (224, 224, 3)
        for thing in scene.objects:
            x0, y0, x1, y1 = thing.box
            smallest, largest = SIZES[thing.size]
            assert smallest <= x1 - x0 == y1 - y0 <= largest
            assert (3 * (x0 + x1) // 448, 3 * (y0 + y1) // 448) == (thing.place % 3, thing.place // 3)
            far |= abs((x0 + x1) / 2 - (2 * thing.column + 1) * 224 / 6) > 10
            if not scene.degraded:
                patch = patch_labels(scene, 16)["shape"][(y0 + y1) // 28, (x0 + x1) // 28]
                assert patch in (0, SHAPES.index(thing.shape) + 1)
        if scene.text is not None:
            assert all(0 <= x0 < x1 <= 224 and 0 <= y0 < y1 <= 224 for x0, y0, x1, y1 in scene.text.character_boxes)
            assert scene.text.font_size <= 17
    assert far


def test_the_two_splits_share_no_image() -> None:
    train = {draw(index, seed=seed)[1].tobytes() for seed in (0, 1) for index in range(100)}
    held_out = {draw(index, seed=seed, split="held_out")[1].tobytes() for seed in (0, 1) for index in range(100)}
    assert len(train) == len(held_out) == 200
    assert not train & held_out


def test_unknown_splits_negative_seeds_and_too_many_objects_are_refused() -> None:
    with pytest.raises(DataError, match="held_out"):
        draw(0, split="test")
    with pytest.raises(DataError, match="seed"):
        draw(0, seed=-1)
    with pytest.raises(DataError, match="1 to 5"):
        sample_scene(np.random.default_rng(0), max_objects=6)
    for side in (56, 99_999):
        with pytest.raises(DataError, match=f"at least 112 px a side and at most 4,096, found {side}"):
            draw(0, side=side)


def test_pixels_are_uint8_and_shapes_have_their_colour() -> None:
    for scene, pixels in READABLE:
        assert pixels.shape == (SIDE, SIDE, 3)
        assert pixels.dtype == np.uint8
        for thing in scene.objects:
            x0, y0, x1, y1 = thing.box
            middle, side = ((x0 + x1) // 2, (y0 + y1) // 2), x1 - x0
            inset = max(1, side // 9)  # inside the ring's band, which is left of the middle
            x, y = (x0 + inset, middle[1]) if thing.shape == "ring" else middle
            seen = pixels[y - 1 : y + 2, x : x + 2].reshape(-1, 3).mean(axis=0)
            nearest = min(COLOURS, key=lambda colour: float(np.abs(seen - COLOURS[colour]).sum()))
            assert nearest == thing.colour, (thing, seen)


def test_text_stands_out_in_every_character_box() -> None:
    texts = [(scene, pixels) for scene, pixels in READABLE if scene.text is not None]
    assert len(texts) > 100
    for scene, pixels in texts:
        assert scene.text is not None
        for x0, y0, x1, y1 in scene.text.character_boxes:
            grey = pixels[y0:y1, x0:x1].astype(float).mean(axis=2)
            assert np.ptp(grey) > 90


def test_degraded_images_keep_no_detail() -> None:
    degraded = [(scene, pixels) for scene, pixels in SCENES if scene.degraded]
    assert 0.06 < len(degraded) / len(SCENES) < 0.19
    assert {scene.degradation for scene, _ in degraded} == {"blur", "dark", "noise"}
    for scene, pixels in degraded:
        if scene.degradation == "dark":
            assert pixels.mean() < 12
        elif scene.degradation == "noise":
            assert np.abs(np.diff(pixels.astype(float), axis=0)).mean() > 30
        else:
            grey = pixels.astype(float).mean(axis=2)
            averaged = grey.reshape(28, 4, 28, 4).mean(axis=(1, 3))
            assert np.abs(np.diff(averaged, axis=0)).max() < 60  # no edge of a shape is left


def test_attributes_and_popular_pairs_have_their_shares() -> None:
    things = [thing for index in range(800) for thing in sample_scene(np.random.default_rng([5, index])).objects]
    for values, attribute, most in (
        (SHAPES, "shape", 0.21),
        (tuple(COLOURS), "colour", 0.18),
        (tuple(SIZES), "size", 0.55),
    ):
        shares = [sum(getattr(thing, attribute) == value for thing in things) / len(things) for value in values]
        assert min(shares) > 0.4 / len(values)
        assert max(shares) < most
    popular = sum((thing.colour, thing.shape) in POPULAR for thing in things) / len(things)
    assert popular > 2 * len(POPULAR) / (len(SHAPES) * len(COLOURS))


def test_words_are_short_different_and_drawable() -> None:
    assert len(set(WORDS)) == len(WORDS) == 24
    assert all(3 <= len(word) <= 5 and set(word.upper()) <= set(CHARACTERS) for word in WORDS)
    assert not set(WORDS) & set(COLOURS)


@pytest.mark.parametrize("grid", [4, 8])
def test_patch_labels_agree_with_the_boxes(grid: int) -> None:
    side = SIDE / grid
    for scene, _ in READABLE:
        labels = patch_labels(scene, grid)
        assert labels["degraded"] == 0
        for row in range(grid):
            for column in range(grid):
                patch = (column * side, row * side, (column + 1) * side, (row + 1) * side)
                areas = [shared(thing.box, patch) for thing in scene.objects]
                best = int(np.argmax(areas))
                found = tuple(int(labels[name][row, column]) for name in ("shape", "colour", "size"))
                if areas[best] < 0.2 * side * side:
                    assert found == (0, 0, 0)
                elif sorted(areas)[-2:].count(areas[best]) == 1:
                    thing = scene.objects[best]
                    assert SHAPES[found[0] - 1] == thing.shape
                    assert tuple(COLOURS)[found[1] - 1] == thing.colour
                    assert tuple(SIZES)[found[2] - 1] == thing.size
                    assert labels["place"][row, column] == thing.place + 1


def test_patch_labels_mark_middles_and_place_texts() -> None:
    for scene, _ in READABLE:
        labels = patch_labels(scene)
        middles = {((y0 + y1) // 2 // 14, (x0 + x1) // 2 // 14) for x0, y0, x1, y1 in (o.box for o in scene.objects)}
        assert {(int(row), int(column)) for row, column in np.argwhere(labels["centre"])} == middles
        bare = labels["shape"] == 0
        written = bare & ((labels["char_left"] > 0) | (labels["char_right"] > 0))
        assert set(labels["place"][written].tolist()) <= {scene.text.place + 1 if scene.text else None}
        assert not labels["place"][bare & ~written].any()


def test_character_labels_spell_the_text_from_left_to_right() -> None:
    spelled = 0
    for scene, _ in READABLE:
        labels = patch_labels(scene)
        halves = np.stack([labels["char_left"], labels["char_right"]], axis=2).reshape(8, 16)
        if scene.text is None:
            assert not halves.any()
            continue
        string = scene.text.string.upper()
        assert {CHARACTERS[label - 1] for label in halves[halves > 0]} <= set(string)
        spelled += "".join(CHARACTERS[label - 1] for label in halves[halves > 0]) == string
        orders = labels["order"][labels["order"] > 0].tolist()
        assert orders[0] == 1
        assert orders == sorted(set(orders))
        assert ((labels["order"] > 0) == (halves.reshape(8, 8, 2) > 0).any(axis=2)).all()
    assert spelled > 0.9 * sum(scene.text is not None for scene, _ in READABLE)  # two narrow ones may share a half


def test_more_texts_stand_on_free_places_and_are_labelled() -> None:
    written = 0
    for index, (scene, _) in enumerate(READABLE[:40]):
        crowded = with_more_texts(scene, np.random.default_rng(index))
        assert crowded.objects == scene.objects
        assert crowded.text == scene.text
        parts = [*crowded.objects, *crowded.texts]
        assert len({part.place for part in parts}) == len(parts)
        assert not any(shared(text.box, part.box) for text in crowded.more_texts for part in parts if part is not text)
        labels = patch_labels(crowded)
        said = np.sort(np.concatenate([labels[side][labels[side] > 0] for side in ("char_left", "char_right")]))
        asked = sorted(CHARACTERS.index(letter) + 1 for text in crowded.texts for letter in text.string.upper())
        written += said.tolist() == asked
        pixels, bare = (render(one, np.random.default_rng(0)).astype(int) for one in (crowded, scene))
        for x0, y0, x1, y1 in (text.box for text in crowded.more_texts):
            assert np.abs(pixels - bare)[y0:y1, x0:x1].max() > 60
    assert written > 0.8 * 40  # two narrow characters may share a half


def test_degraded_images_have_empty_labels() -> None:
    scene = next(scene for scene, _ in SCENES if scene.degraded)
    labels = patch_labels(scene)
    assert labels.pop("degraded") == 1
    assert all(labels[name].shape == (8, 8) and not labels[name].any() for name in labels)


def shared(box: tuple[int, int, int, int], patch: tuple[float, float, float, float]) -> float:
    width = min(box[2], patch[2]) - max(box[0], patch[0])
    height = min(box[3], patch[3]) - max(box[1], patch[1])
    return max(0.0, width) * max(0.0, height)
