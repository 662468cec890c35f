"""The table of tiles, and the model that it is measured on."""

import json

import numpy as np
import torch

from llava_stf import load_model
from llava_stf.world import draw
from llava_stf_eval.measurement.make_tiled import make_tiled
from llava_stf_eval.tables.tiles import table


def test_a_row_for_each_kind_with_the_mean_of_its_seeds(tmp_path):
    for seed, share in ((0, 0.5), (1, 0.54)):
        families = {"text": 0.25, "open": share, "presence": 0.75}
        asked = {"images": 250, "seed": seed, "questions": 700 + seed, "families": families}
        result = {**asked, "accuracy": share, "vision_tokens": 336}
        (tmp_path / f"all-{seed}.json").write_text(json.dumps([result]))
    (tmp_path / "pool-0.json").write_text(json.dumps([{**result, "vision_tokens": 88}]))
    _, _, *rows = table(tmp_path).splitlines()
    assert rows == [
        "| all tokens of its tiles | 336 | 52.0 ± 2.8 | 25.0 ± 0.0 | 52.0 ± 2.8 | 75.0 ± 0.0 |",
        "| mean pooling, a quarter | 88 | 54.0 | 25.0 | 54.0 | 75.0 |",
    ]


@torch.inference_mode()
def test_a_tile_is_what_the_bundled_model_makes_of_its_square(tmp_path):
    make_tiled(tmp_path / "next")
    tiled, bundled = load_model(tmp_path / "next", vision_tokens="all"), load_model("tiny-full", dtype="float32")
    image = draw(3, side=224)[1]
    inputs = tiled.processor(images=[image], text=["<image>"], return_tensors="pt")
    tokens = tiled.model.model.get_image_features(inputs["pixel_values"], inputs["image_sizes"]).pooler_output[0]
    rows = tokens[64:].view(16, 17, -1)
    assert not rows[:, 16].any()
    for row, column in np.ndindex(2, 2):
        square = image[112 * row : 112 * row + 112, 112 * column : 112 * column + 112]
        pixels = bundled.processor(images=[square], text=["<image>"], return_tensors="pt")["pixel_values"]
        expected = bundled.model.model.get_image_features(pixels).pooler_output[0].view(8, 8, -1)
        found = rows[8 * row : 8 * row + 8, 8 * column : 8 * column + 8]
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
