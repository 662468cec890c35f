"""Pre-training runs: what comes out, exact resume, accumulation, what is refused."""

import json
import logging

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoModel, CLIPImageProcessorPil

from llava_stf.encoders.pretrain.__main__ import main
from llava_stf.encoders.pretrain.config import from_values
from llava_stf.encoders.pretrain.loop import pretrain
from llava_stf.errors import DataError, LlavaStfError

BATCH, IMAGES = 8, 20


@pytest.fixture(scope="module")
def npz(tmp_path_factory):
    """20 random images of 8 pixels."""
    path = tmp_path_factory.mktemp("data") / "images.npz"
    images = np.random.default_rng(0).integers(0, 256, (IMAGES, 8, 8, 3), dtype=np.uint8)
    np.savez(path, train_images=images)
    return path


@pytest.fixture
def configure(npz, tmp_path):
    """The config of a tiny run of four steps: `configure(field=value, ...)`."""

    def make(**changes):
        values = {
            "method": "patchmix",
            "data": str(npz),
            "output": str(tmp_path / "run"),
            "size": "tiny",
            "depth": 1,
            "image_size": 8,
            "patch_size": 4,
            "epochs": 2,
            "warmup_epochs": 1,
            "per_device_batch_size": BATCH,
            "options": {"hidden": 16, "out": 8},
            "num_workers": 0,
            "cpu_threads": 1,
            "logging_steps": 1,
        }
        return from_values(values | changes)

    return make


def weights(folder):
    return load_file(folder / "model.safetensors")


def assert_equal_weights(folder, other):
    expected = weights(other)
    assert all(torch.equal(value, expected[name]) for name, value in weights(folder).items())


@pytest.mark.parametrize("method", ["patchmix", "mocov3", "aps", "mos"])
def test_the_result_is_an_ordinary_vit_folder(configure, method, caplog):
    with caplog.at_level(logging.INFO):
        output = pretrain(configure(method=method))
    assert "samples/s" in caplog.text
    encoder = AutoModel.from_pretrained(output, add_pooling_layer=False)
    processor = CLIPImageProcessorPil.from_pretrained(output)
    image = Image.fromarray(np.zeros((10, 12, 3), np.uint8))
    pixels = processor(image, return_tensors="pt").pixel_values
    assert encoder(pixel_values=pixels).last_hidden_state.shape == (1, 5, 192)


def test_a_resumed_run_ends_with_the_same_weights(configure, tmp_path):
    learns = {"base_learning_rate": 0.1, "options": {"hidden": 16, "out": 8, "momentum": 0.5}}
    whole = pretrain(configure(output=str(tmp_path / "whole"), **learns))
    assert pretrain(configure(stop_after=2, **learns)) is None
    assert (tmp_path / "run" / "checkpoint-2").is_dir()
    assert not (tmp_path / "run" / "config.json").exists()
    resumed = pretrain(configure(resume=True, **learns))
    assert_equal_weights(resumed, whole)
    # The momentum encoder, which is saved, lags a step: what the last step did shows in the checkpoint alone.
    assert_equal_weights(resumed / "checkpoint-4", whole / "checkpoint-4")
    assert (weights(whole)["layernorm.weight"] - 1).abs().max() > 1e-4


def test_accumulated_steps_learn_and_count_their_images(configure, caplog):
    with caplog.at_level(logging.INFO):
        pretrain(configure(per_device_batch_size=4, gradient_accumulation=2))
    assert "step 4/4" in caplog.text


def test_bfloat16_leaves_float32_weights(configure):
    assert weights(pretrain(configure(mixed_precision="bf16")))["layernorm.weight"].dtype == torch.float32


def test_another_config_is_not_resumed(configure, tmp_path):
    pretrain(configure(stop_after=1))
    with pytest.raises(LlavaStfError, match=r"weight_decay 0\.05 is now 0\.1.*resume with the old one"):
        pretrain(configure(resume=True, weight_decay=0.1))
    with pytest.raises(LlavaStfError, match="already holds a run"):
        pretrain(configure())
    assert pretrain(configure(overwrite=True, weight_decay=0.1)) == tmp_path / "run"


def test_too_few_images_for_a_batch_are_refused(configure):
    with pytest.raises(DataError, match=r"a step takes 32 images.* has 20"):
        pretrain(configure(per_device_batch_size=32))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"per_device_batch_size": 1}, "per_device_batch_size must be at least 2"),
        ({"per_device_batch_size": 2}, "mixes of 2 images need batches of at least 3, found 2"),
        ({"patch_size": 3}, "patch_size must divide image_size, found 3 and 8: 6 would do"),
        ({"patch_size": 16}, "patch_size must divide image_size, found 16 and 8: 16 would do"),
        ({"options": {"crop_scale": [0.5, 0.1]}}, "crop_scale must rise from above 0 to at most 1"),
        ({"options": {"crop_scale": 5}}, r"crop_scale must be 2 float with commas, found 5"),
        ({"options": {"temperature": 0}}, "temperature must be above 0"),
        ({"options": {"momentum": 1.5}}, "momentum must be between 0 and 1"),
        ({"options": {"drop_path": 1}}, "drop_path must be at least 0 and below 1"),
        ({"options": {"hidden": 0}}, "hidden must be at least 1"),
        ({"options": {"local_crops": -1}}, "local_crops must be at least 0"),
        ({"method": "mgc", "options": {"cell_patches": [1, 2, 3]}}, "must divide the encoder's grid of 2 x 2"),
        ({"method": "aps", "options": {"subsets": 9}}, "9 disjoint subsets"),
        ({"method": "mos", "options": {"sides": [3]}}, "sides must divide the image of 8 pixels"),
    ],
)
def test_values_that_cannot_be_are_refused_in_one_sentence(configure, tmp_path, changes, message):
    with pytest.raises(LlavaStfError, match=message) as error:
        pretrain(configure(**changes))
    assert "\n" not in str(error.value)
    assert not list(tmp_path.glob("run/checkpoint-*"))


def test_a_loss_that_is_not_finite_stops_the_run(configure, tmp_path):
    with pytest.raises(LlavaStfError, match=r"is nan at step \d.*no checkpoint was written yet"):
        pretrain(configure(base_learning_rate=1e30, warmup_epochs=0))
    assert not (tmp_path / "run" / "config.json").exists()


def test_corrupt_images_are_named_counted_and_passed_over_up_to_the_limit(configure, tmp_path, caplog):
    folder = tmp_path / "pictures"
    (folder / "deeper").mkdir(parents=True)
    for number in range(IMAGES):
        Image.new("RGB", (12, 10), (number, 0, 0)).save(folder / "deeper" / f"{number}.png")
    (folder / "broken.jpg").write_bytes(b"no image")
    run = {"data": str(folder), "source_size": 8}
    with pytest.raises(DataError, match=r"^[^ ]*broken\.jpg is .*1 of \d+ samples seen are bad"):
        pretrain(configure(**run, epochs=6))
    with caplog.at_level(logging.WARNING):
        pretrain(configure(**run, epochs=6, max_bad_images=0.1, overwrite=True))
    assert "broken.jpg" in caplog.text
    assert "others took their place" in caplog.text


def test_the_command_reports_errors_in_one_sentence(npz, capsys, tmp_path):
    run = ["--method", "patchmix", "--data", str(npz), "--output", str(tmp_path / "run")]
    assert main([*run, "--epohs", "3"]) == 2
    assert "Unknown flag '--epohs': did you mean '--epochs'?" in capsys.readouterr().err
    assert main([*run, "--image_size", "8", "--patch_size", "4", "--option", "temprature=1"]) == 2
    assert "did you mean 'temperature'?" in capsys.readouterr().err
    assert main(["--method", "patchmax", *run[2:]]) == 2
    assert "method must be patchmix or aps" in capsys.readouterr().err


def test_flags_and_options_win_over_the_file(tmp_path, npz):
    from llava_stf.encoders.objectives.patchmix import PatchMixOptions
    from llava_stf.encoders.pretrain.config import method_options, parse

    file = tmp_path / "config.yaml"
    file.write_text(
        f"method: mos\ndata: {npz}\noutput: x\nimage_size: 8\npatch_size: 4\noptions:\n  hidden: 8\n  out: 4\n"
    )
    config = parse(
        ["--config", str(file), "--method", "patchmix", "--option", "hidden=16", "--option", "crop_scale=[0.2,1]"]
    )
    assert config.method == "patchmix"
    options = method_options(PatchMixOptions, "corrected", config.options)
    assert (options.hidden, options.out, options.crop_scale, options.identity_smoothing) == (16, 4, (0.2, 1.0), 0)
    with pytest.raises(LlavaStfError, match="hidden must be int, found 'wide'"):
        method_options(PatchMixOptions, "released", {"hidden": "wide"})
    assert json.loads(json.dumps(config.identity()))["options"]["hidden"] == 16


def test_the_command_ends_with_the_use_of_the_encoder(configure, caplog):
    config = configure()
    flags = [f"--{name}={value}" for name, value in vars(config).items() if name != "options" and value is not None]
    assert main([*flags, "--option", "hidden=16", "--option", "out=8"]) == 0
    measured, assembled = (record.message for record in caplog.records[-2:])
    assert f"llava-stf encoders eval knn {config.output} --data" in measured
    assert f"--vision-encoder {config.output}" in assembled
    assert not [record for record in caplog.records if record.name.startswith("accelerate")]
