"""Images in tiles for the eye: what is drawn is what the model takes."""

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from llava_stf import load_model
from llava_stf.analysis.tiled_view import view_tiles
from llava_stf.cli import app
from llava_stf.errors import FusionError
from llava_stf.loading.testing import tiny_llava_next
from llava_stf.loading.testing_videos import tiny_llava_onevision


def gradient(width, height):
    rows, columns = np.mgrid[0:height, 0:width]
    pixels = np.stack([columns * 255 // width, rows * 255 // height, np.full_like(rows, 90)], axis=-1)
    return Image.fromarray(pixels.astype(np.uint8))


@pytest.fixture(scope="module", params=[tiny_llava_next, tiny_llava_onevision], ids=["next", "onevision"])
def folder(request, tmp_path_factory):
    model, processor = request.param()
    folder = tmp_path_factory.mktemp("tiles")
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("size", [(150, 40), (60, 190), (112, 112), (260, 260), (500, 6)])
@pytest.mark.parametrize("tokens", [None, "all", 1])
def test_rows_columns_and_newlines_are_those_of_the_prompt(folder, size, tokens):
    llava = load_model(folder, vision_tokens=tokens)
    seen = view_tiles(llava, gradient(*size))
    rows, columns = seen.shape
    ids = llava.processor(images=gradient(*size), text="<image>")["input_ids"][0]
    found = list(ids).count(llava.processor.image_token_id)
    assert found == seen.tokens == seen.cells**2 + rows * (columns + 1)


def test_joined_tiles_are_the_image_in_the_middle_of_its_padding(folder):
    seen = view_tiles(load_model(folder), gradient(100, 90))
    side = seen.joined.shape[0] // seen.tiles[0]
    window = side / seen.cells
    # Without the windows at the edges, which padding may reach into.
    top, bottom = round((seen.rows.start + 1) * window), round((seen.rows.stop - 1) * window)
    left, right = round((seen.columns.start + 1) * window), round((seen.columns.stop - 1) * window)
    red = seen.joined[top:bottom, left:right, 0].mean(0)
    assert np.all(np.diff(red) > -0.02)  # the red of the image rises from left to right over all tiles
    assert red[-1] - red[0] > 0.4
    assert seen.base.shape == (side, side, 3)


def test_command_draws_tiles_and_says_their_tokens(folder, tmp_path):
    gradient(150, 60).save(tmp_path / "image.png")
    arguments = ["show", str(tmp_path / "image.png"), "--model", str(folder), "--output", str(tmp_path / "show.png")]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    assert f"{view_tiles(load_model(folder), gradient(150, 60)).tokens} tokens" in done.output
    with Image.open(tmp_path / "show.png") as drawn:
        assert drawn.width > 500


def test_other_models_and_other_drawings_are_refused(stf_folder, folder):
    from llava_stf.analysis.visualise import visualise, visualise_selection

    with pytest.raises(FusionError, match="in no tiles"):
        view_tiles(load_model(stf_folder), gradient(20, 20))
    with pytest.raises(FusionError, match="What MBTF reads is for models that take one square image"):
        visualise(load_model(folder), gradient(20, 20), contributions=True)
    with pytest.raises(FusionError, match="what a method keeps is for"):
        visualise_selection(load_model(folder, vision_tokens="all"), gradient(20, 20), "divprune", vision_tokens=None)
