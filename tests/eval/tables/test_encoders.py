"""Comparisons of encoders: the untrained one, and tables of what was measured."""

import json

import numpy as np
import pytest
import torch
from transformers import AutoModel, CLIPImageProcessorPil

from llava_stf.errors import DataError
from llava_stf.models.vision.towers import load_tower
from llava_stf_eval.tables.encoders import (
    encoder_table,
    read_encoders,
    read_towers,
    tower_table,
    write_bundled,
    write_untrained,
)


def test_the_untrained_encoder_is_the_one_that_its_seed_draws(tmp_path):
    data = tmp_path / "images.npz"
    np.savez(data, train_images=np.zeros((4, 32, 32, 3), np.uint8))
    shape = ["--size", "tiny", "--depth", "1", "--image-size", "32", "--patch-size", "8"]
    options = [*shape, "--data", str(data), "--warmup-epochs", "0"]
    for name, seed in (("one", "3"), ("again", "3"), ("other", "4")):
        write_untrained(tmp_path / name, [*options, "--seed", seed])
    one, again, other = (AutoModel.from_pretrained(tmp_path / name).state_dict() for name in ("one", "again", "other"))
    weight = "embeddings.patch_embeddings.projection.weight"
    assert all(torch.equal(value, again[name]) for name, value in one.items() if "pooler" not in name)
    assert not torch.equal(one[weight], other[weight])
    assert CLIPImageProcessorPil.from_pretrained(tmp_path / "one").crop_size["height"] == 32


def test_the_bundled_tower_is_an_encoder_of_its_own(tmp_path):
    write_bundled(tmp_path / "tower")
    tower, preprocessor = load_tower(tmp_path / "tower", {"dtype": torch.float32})
    assert tower.config.image_size == preprocessor["crop_size"]["height"] == 112


def test_encoders_that_were_measured_stand_in_the_table_in_a_fixed_order(tmp_path):
    for name, accuracy in (("mos", 41.0), ("random", 30.04)):
        for pooling in ("class", "mean"):
            (tmp_path / f"{name}.knn-{pooling}.json").write_text(json.dumps({"knn": {"10": 1.0, "20": accuracy}}))
            (tmp_path / f"{name}.linear-{pooling}.json").write_text(
                json.dumps({"linear": {"last": 50.0, "best": 60.0}})
            )
    (tmp_path / "mos.seconds").write_text("60.5 10.1\n40.0 10.0\n")  # stopped once
    (tmp_path / "aps.knn-mean.json").write_text(json.dumps({"knn": {"20": 35.0}}))  # stopped after it
    lines = encoder_table(read_encoders(tmp_path)).splitlines()
    assert lines[2:] == [
        "| random weights | 30.0 | 30.0 | 50.0 | 50.0 | |",
        "| APS | | 35.0 | | | |",
        "| MOS (reconstruction) | 41.0 | 41.0 | 50.0 | 50.0 | 121 |",
    ]


def test_towers_are_compared_with_one_state_and_with_many(tmp_path):
    for states, accuracy in (("one", 0.5), ("many", 0.625)):
        result = {"accuracy": accuracy, "families": {"count": accuracy, "text": 0.25}}
        (tmp_path / f"llava-embedded-{states}.json").write_text(json.dumps([result]))
    (tmp_path / "llava-random-one.json").write_text("[]")  # its twin is not measured yet
    lines = tower_table(read_towers(tmp_path)).splitlines()
    assert lines[0] == "| tower | states | all | count | text |"
    assert lines[2:] == [
        "| the bundled model's own | one | 50.0 | 50.0 | 25.0 |",
        "| the bundled model's own | many | 62.5 | 62.5 | 25.0 |",
    ]


def test_a_folder_in_which_nothing_was_measured_is_refused(tmp_path):
    for read in (read_encoders, read_towers):
        with pytest.raises(DataError, match="found none; run scripts/measure_"):
            read(tmp_path)


def test_an_untrained_encoder_needs_its_data_named(tmp_path):
    from llava_stf.errors import LlavaStfError

    with pytest.raises(LlavaStfError, match="--data is required"):
        write_untrained(tmp_path / "out", [])
