"""Measuring encoders: kNN as the authors compute it, linear probe, labelled data, features."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPVisionModel,
    ResNetConfig,
    ResNetModel,
    SiglipVisionConfig,
    SiglipVisionModel,
    ViTConfig,
    ViTModel,
)

from llava_stf.cli import main
from llava_stf.encoders.knn import knn_accuracy
from llava_stf.encoders.labelled import evaluation_batch, features, load_encoder, open_labelled
from llava_stf.encoders.linear import linear_probe
from llava_stf.encoders.pretrain.loop import image_processor
from llava_stf.errors import CheckpointError, DataError, ImageError, LlavaStfError, ModelNotFoundError


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    """A saved random encoder of 8-pixel images, loaded as a user's."""
    folder = tmp_path_factory.mktemp("encoder")
    vit = ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, image_size=8, patch_size=4
    )
    torch.manual_seed(0)
    ViTModel(vit, add_pooling_layer=False).save_pretrained(folder)
    image_processor(8, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)).save_pretrained(folder)
    return load_encoder(folder)


@pytest.fixture(scope="module")
def npz(tmp_path_factory):
    """Images of 8 pixels of two classes, dark and bright."""
    rng = np.random.default_rng(0)
    arrays = {}
    for part, count in (("train", 40), ("test", 20)):
        labels = np.arange(count) % 2
        noise = rng.integers(0, 60, (count, 8, 8, 3))
        arrays[f"{part}_images"] = (noise + 150 * labels[:, None, None, None]).astype(np.uint8)
        arrays[f"{part}_labels"] = labels.astype(np.uint8)
    path = tmp_path_factory.mktemp("data") / "labelled.npz"
    np.savez(path, **arrays)
    return path


def test_knn_is_the_authors(golden_ssl):
    golden = golden_ssl / "patchmix"
    data = load_file(golden / "knn.safetensors")
    for case in json.loads((golden / "cases.json").read_text())["knn"]["results"]:
        found = knn_accuracy(
            data["train_features"],
            data["train_labels"],
            data["test_features"],
            data["test_labels"],
            neighbours=[case["k"]],
            temperature=case["temperature"],
        )
        assert found[case["k"]] == pytest.approx(case["top1"], abs=1e-4)


def test_knn_of_more_neighbours_than_images_is_refused():
    rows, labels = torch.randn(5, 3), torch.zeros(5, dtype=torch.long)
    with pytest.raises(DataError, match="at most the number of training images, 5, found 6"):
        knn_accuracy(rows, labels, rows, labels, neighbours=[6])


def test_the_feature_is_the_normed_class_token_of_the_prepared_image(encoder, npz):
    train, _ = open_labelled(str(npz))
    rows = features(encoder, train, batch_size=7)
    batch = evaluation_batch(encoder, train, torch.arange(3))
    assert batch.shape == (3, 3, 8, 8)
    assert -2 <= batch.min() <= batch.max() <= 2
    torch.testing.assert_close(rows[:3], encoder.model(pixel_values=batch).last_hidden_state[:, 0])


def test_the_mean_of_the_patches_leaves_the_class_token_out(encoder, npz):
    train, _ = open_labelled(str(npz))
    states = encoder.model(pixel_values=evaluation_batch(encoder, train, torch.arange(len(train)))).last_hidden_state
    torch.testing.assert_close(features(replace(encoder, pooling="mean"), train), states[:, 1:].mean(dim=1))


def test_a_whole_llava_is_no_encoder_of_random_weights(plain_folder):
    with pytest.raises(CheckpointError, match=r"lacks \d+ tensors of a CLIPVisionModel"):
        load_encoder(plain_folder)


def test_an_encoder_without_class_token_is_measured_by_its_mean(npz, tmp_path):
    config = SiglipVisionConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, image_size=8, patch_size=4
    )
    SiglipVisionModel(config).save_pretrained(tmp_path)
    image_processor(8, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)).save_pretrained(tmp_path)
    train, _ = open_labelled(str(npz))
    with pytest.raises(LlavaStfError, match="has no class token"):
        features(load_encoder(tmp_path), train)
    assert features(load_encoder(tmp_path, pooling="mean"), train).shape == (40, 16)


@pytest.mark.parametrize("augment", [False, True])
def test_a_linear_probe_separates_dark_from_bright(encoder, npz, augment):
    train, test = open_labelled(str(npz))
    frozen = {name: value.clone() for name, value in encoder.model.state_dict().items()}
    result = linear_probe(encoder, train, test, epochs=15, batch_size=8, learning_rate=3.0, augment=augment)
    assert result.best >= result.last > 90
    assert all(torch.equal(value, frozen[name]) for name, value in encoder.model.state_dict().items())


def test_folders_of_classes_read_as_the_array(npz, tmp_path):
    with np.load(npz) as arrays:
        for part, folder in (("train", "train"), ("test", "val")):
            for number, (pixels, label) in enumerate(
                zip(arrays[f"{part}_images"], arrays[f"{part}_labels"], strict=True)
            ):
                target = tmp_path / folder / ("dark", "light")[label]
                target.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(target / f"{number:03}.png")
    shutil.copytree(tmp_path / "train" / "dark", tmp_path / "train" / ".ipynb_checkpoints")
    train, test = open_labelled(str(tmp_path))
    assert (len(train), len(test)) == (40, 20)
    assert train.labels.tolist() == [0] * 20 + [1] * 20
    expected, _ = open_labelled(str(npz))
    assert np.array_equal(np.array(train.images[1]), np.array(expected.images[2]))


def test_a_data_set_of_hugging_face_reads_as_the_array(npz, tmp_path):
    datasets = pytest.importorskip("datasets", reason="the package datasets is not installed")
    with np.load(npz) as arrays:
        splits = {
            part: datasets.Dataset.from_dict(
                {"image": list(map(Image.fromarray, arrays[f"{part}_images"])), "label": arrays[f"{part}_labels"]},
                features=datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")}),
            )
            for part in ("train", "test")
        }
        datasets.DatasetDict(splits).save_to_disk(tmp_path / "set")
        train, _ = open_labelled(str(tmp_path / "set"))
        assert train.labels.tolist() == arrays["train_labels"].tolist()
        assert np.array_equal(np.array(train.images[2]), arrays["train_images"][2])
    with pytest.raises(DataError, match="no column photo, but image, label"):
        open_labelled(str(tmp_path / "set"), image_column="photo")


def test_missing_parts_are_named(tmp_path):
    np.savez(tmp_path / "half.npz", train_images=np.zeros((2, 8, 8, 3), np.uint8))
    with pytest.raises(DataError, match="holds no array train_labels, but train_images"):
        open_labelled(str(tmp_path / "half.npz"))
    (tmp_path / "broken.npz").write_bytes(b"PK no zip")
    with pytest.raises(DataError, match=r"cannot read .*broken\.npz"):
        open_labelled(str(tmp_path / "broken.npz"))
    with pytest.raises(ModelNotFoundError, match="no encoder with an image processor"):
        load_encoder(tmp_path)


def write_classes(folder, *names):
    for name in names:
        (folder / name).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(folder / name / "0.png")


def test_images_without_a_class_that_is_trained_on_are_told(tmp_path):
    write_classes(tmp_path / "more" / "train", "cat")
    write_classes(tmp_path / "more" / "test", "cat", "dog", ".cache")
    with pytest.raises(DataError, match=r"test holds images of classes that .*train does not have: dog$"):
        open_labelled(str(tmp_path / "more"))
    write_classes(tmp_path, "flat/train", "flat/test", "unsorted")
    with pytest.raises(DataError, match=r"holds no images in a folder per class \(none\)"):
        open_labelled(str(tmp_path / "flat"))
    with pytest.raises(DataError, match="holds no labelled images: a folder has train/ and test/"):
        open_labelled(str(tmp_path / "unsorted"))
    arrays = {"train_images": np.zeros((2, 8, 8, 3), np.uint8), "train_labels": np.array([0, 1])}
    np.savez(
        tmp_path / "hidden.npz", **arrays, test_images=arrays["train_images"], test_labels=np.array([-1, -1])
    )  # as the test splits of some data sets
    with pytest.raises(DataError, match=r"the test part of .* has the label -1: classes count from 0"):
        open_labelled(str(tmp_path / "hidden.npz"))


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["cat", "dog"], "must hold whole numbers, found 'cat'"),
        ([0, None], "found None"),
    ],
)
def test_a_data_set_needs_a_number_for_every_image(tmp_path, labels, message):
    datasets = pytest.importorskip("datasets", reason="the package datasets is not installed")
    rows = {"image": [Image.new("RGB", (8, 8)) for _ in labels], "label": labels}
    kind = datasets.Value("string" if "cat" in labels else "int64")
    split = datasets.Dataset.from_dict(rows, features=datasets.Features({"image": datasets.Image(), "label": kind}))
    datasets.DatasetDict({"train": split, "test": split}).save_to_disk(tmp_path / "set")
    with pytest.raises(DataError, match=message):
        open_labelled(str(tmp_path / "set"))


def test_a_seed_that_cannot_be_is_refused(encoder, npz, capsys):
    for seed in ("-1", str(2**70)):
        arguments = ["encoders", "eval", "linear", str(encoder.model.name_or_path), "--data", str(npz), "--seed", seed]
        assert main(arguments) == 2
        assert "Invalid value for '--seed'" in capsys.readouterr().err


def test_nearest_neighbours_of_few_images_are_refused(encoder, tmp_path, capsys):
    arrays = {"train_images": np.zeros((8, 8, 8, 3), np.uint8), "train_labels": np.arange(8) % 2}
    np.savez(tmp_path / "few.npz", **arrays, **{name.replace("train", "test"): array for name, array in arrays.items()})
    folder = str(encoder.model.name_or_path)
    assert main(["encoders", "eval", "knn", folder, "--data", str(tmp_path / "few.npz"), "--device", "cpu"]) == 2
    printed = capsys.readouterr()
    assert "10 nearest neighbours need as many training images, found 8." in printed.err
    assert not printed.out


@pytest.mark.parametrize(
    "options", [["knn"], ["linear", "--epochs", "30", "--no-augment"], ["knn", "--pooling", "mean"]], ids=" ".join
)
def test_the_command_prints_accuracies(encoder, npz, options, capsys):
    protocol, *rest = options
    arguments = ["encoders", "eval", protocol, str(encoder.model.name_or_path), "--data", str(npz), "--device", "cpu"]
    assert main([*arguments, *rest]) == 0
    record = json.loads(capsys.readouterr().out)
    assert (record["train"], record["test"]) == (40, 20)
    assert all(accuracy == 100 for accuracy in record[protocol].values())


def test_a_labelled_image_that_cannot_be_read_is_named(encoder, npz, tmp_path):
    """Figures on other images than asked for would not be comparable, so none is passed over."""
    for part in ("train", "test"):
        (tmp_path / part / "a").mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / part / "a" / "good.png")
    (tmp_path / "test" / "a" / "broken.png").write_bytes(b"no image")
    _, test = open_labelled(str(tmp_path))
    with pytest.raises(ImageError, match=r"test/a/broken\.png is"):
        features(encoder, test)


def test_a_device_that_is_not_there_is_refused(encoder, npz, capsys):
    arguments = ["encoders", "eval", "knn", str(encoder.model.name_or_path), "--data", str(npz), "--device", "warp"]
    assert main(arguments) == 2
    assert "cannot compute on device 'warp'" in capsys.readouterr().err


def test_a_network_that_is_no_vit_is_refused(tmp_path):
    config = ResNetConfig(embedding_size=4, hidden_sizes=[4, 4], depths=[1, 1], layer_type="basic")
    ResNetModel(config).save_pretrained(tmp_path)
    image_processor(8, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"no Vision Transformer for square images .* but a resnet"):
        load_encoder(tmp_path)


def test_the_vision_part_of_a_whole_model_is_measured(npz, tmp_path):
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    whole = CLIPConfig(vision_config=sizes | {"image_size": 8, "patch_size": 4}, text_config=sizes | {"vocab_size": 50})
    model = CLIPModel(whole)
    model.save_pretrained(tmp_path)
    image_processor(8, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)).save_pretrained(tmp_path)
    found = load_encoder(tmp_path)
    assert type(found.model) is CLIPVisionModel
    train, _ = open_labelled(str(npz))
    pixels = evaluation_batch(found, train, torch.arange(40))
    expected = model.eval().vision_model(pixel_values=pixels).last_hidden_state[:, 0]
    torch.testing.assert_close(features(found, train), expected)


def test_the_command_names_what_is_missing(npz, tmp_path, capsys):
    assert main(["encoders", "eval", "knn", str(tmp_path), "--data", str(npz)]) == 2
    assert "no encoder with an image processor" in capsys.readouterr().err
