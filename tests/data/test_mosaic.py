"""Mosaics are made of pieces of the images and of nothing else."""

from itertools import islice, pairwise, product

import numpy as np
import pytest
from PIL import Image

from llava_stf.data.mosaic import Squares, mosaics

SIDE = 20


@pytest.fixture
def files(tmp_path):
    """Three squares of `SIDE` pixels, which stay as they are, and a wide image of one colour."""
    rng = np.random.default_rng(5)
    paths = [tmp_path / f"{number}.png" for number in range(4)]
    for path in paths[:3]:
        Image.fromarray(rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)).save(path)
    Image.new("RGB", (4 * SIDE, 2 * SIDE), (9, 99, 199)).save(paths[3])
    return paths


def squares(files):
    return Squares(files, SIDE, np.random.default_rng(0), max_bad_samples=0)


def test_each_pass_shows_every_image_once(files):
    wide = Image.new("RGB", (SIDE, SIDE), (9, 99, 199))
    known = {wide.tobytes(), *(Image.open(path).tobytes() for path in files[:3])}
    seen = [square.tobytes() for square in islice(squares(files), 40)]
    assert all(set(seen[start : start + 4]) == known for start in range(0, 40, 4))
    assert len({tuple(seen[start : start + 4]) for start in range(0, 40, 4)}) > 1


@pytest.mark.parametrize(("pieces", "edges"), [(1, [0, 20]), (3, [0, 6, 13, 20])])
def test_every_piece_is_a_place_of_an_image(files, pieces, edges):
    arrays = [np.asarray(square) for square in islice(squares(files), 4)]
    spans = list(pairwise(edges))
    mixed = 0
    for mosaic in islice(mosaics(squares(files), pieces=pieces, rng=np.random.default_rng(1)), 6):
        pixels = np.asarray(mosaic)
        sources = [
            {number for number, array in enumerate(arrays) if holds(array, pixels[top:bottom, left:right])}
            for (top, bottom), (left, right) in product(spans, spans)
        ]
        assert all(sources)
        mixed += len(set.union(*sources)) > 1
    assert mixed == (0 if pieces == 1 else 6)


def holds(array, piece):
    height, width = piece.shape[:2]
    places = product(range(SIDE - height + 1), range(SIDE - width + 1))
    return any(np.array_equal(array[y : y + height, x : x + width], piece) for y, x in places)
