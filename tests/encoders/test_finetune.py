"""Fine-tuning an encoder: that it learns, repeats and is written, its rates, mixed labels."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoModelForImageClassification,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    SiglipVisionConfig,
    SiglipVisionModel,
    ViTConfig,
    ViTModel,
)

from llava_stf.cli import main
from llava_stf.encoders.finetune import finetune, learning_rate, parameter_groups, stochastic_depth
from llava_stf.encoders.finetune_options import FinetuneOptions, recipe_options
from llava_stf.encoders.finetune_views import shifted
from llava_stf.encoders.labelled import evaluation_batch, load_encoder, open_labelled
from llava_stf.encoders.mixing import erase, mix_batch, paste, smoothed
from llava_stf.encoders.pretrain.loop import image_processor
from llava_stf.errors import LlavaStfError
from llava_stf.models.vision.towers import load_tower

SIZES = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32, "image_size": 8,
    "patch_size": 4,
}  # fmt: skip
DINO = {name: value for name, value in SIZES.items() if name != "intermediate_size"}
MODELS = {
    "vit": lambda: ViTModel(ViTConfig(**SIZES), add_pooling_layer=False),
    "siglip": lambda: SiglipVisionModel(SiglipVisionConfig(**SIZES)),
    "registers": lambda: Dinov2WithRegistersModel(Dinov2WithRegistersConfig(**DINO, num_register_tokens=2)),
}
SHORT = FinetuneOptions(epochs=6, warmup_epochs=1, batch_size=8, learning_rate=0.1, mixup=0.1, cutmix=0, magnitude=1)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("encoders")
    for name, make in MODELS.items():
        torch.manual_seed(0)
        make().save_pretrained(root / name)
        image_processor(8, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)).save_pretrained(root / name)
    return root


@pytest.fixture(scope="module")
def npz(tmp_path_factory):
    """Images of 8 pixels whose class is the colour that is bright: red, green or blue."""
    rng = np.random.default_rng(0)
    arrays = {}
    for part, count in (("train", 24), ("test", 9)):
        labels = np.arange(count) % 3
        images = rng.integers(0, 60, (count, 8, 8, 3)).astype(np.uint8)
        for image, label in zip(images, labels, strict=True):
            image[..., label] += 150
        arrays |= {f"{part}_images": images, f"{part}_labels": labels}
    path = tmp_path_factory.mktemp("data") / "colours.npz"
    np.savez(path, **arrays)
    return path


LEARNERS = [("vit", "class"), ("vit", "mean"), ("siglip", "mean"), ("registers", "class")]


@pytest.mark.parametrize(("name", "pooling"), LEARNERS)
def test_any_encoder_learns_its_training_part_and_stays_itself_as_it_was(folders, npz, name, pooling):
    encoder = load_encoder(folders / name, pooling=pooling)
    before = {key: value.clone() for key, value in encoder.model.state_dict().items()}
    train, _ = open_labelled(str(npz))
    start = finetune(encoder, train, train, replace(SHORT, epochs=1, warmup_epochs=0, learning_rate=0.0, augment=False))
    assert finetune(encoder, train, train, replace(SHORT, augment=False)).best > max(start.last, 90)
    assert all(torch.equal(value, before[key]) for key, value in encoder.model.state_dict().items())


def test_the_same_seed_writes_the_same_encoder_and_another_another(folders, npz, tmp_path):
    encoder, (train, test) = load_encoder(folders / "vit"), open_labelled(str(npz))
    weights = []
    for number, seed in enumerate((1, 1, 2)):
        folder = tmp_path / str(number)
        finetune(encoder, train, test, SHORT, seed=seed, output=folder)
        weights.append(load_file(folder / "model.safetensors"))
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
    assert not all(torch.equal(value, weights[2][name]) for name, value in weights[0].items())


def test_what_is_written_classifies_as_measured_and_is_an_encoder_again(folders, npz, tmp_path):
    encoder, (train, test) = load_encoder(folders / "vit"), open_labelled(str(npz))
    result = finetune(encoder, train, test, replace(SHORT, augment=False), output=tmp_path / "tuned")
    model = AutoModelForImageClassification.from_pretrained(tmp_path / "tuned").eval()
    again = load_encoder(tmp_path / "tuned")
    with torch.inference_mode():
        logits = model(pixel_values=evaluation_batch(again, test, torch.arange(len(test)), border=False)).logits
    assert 100 * (logits.argmax(1) == test.labels).float().mean().item() == pytest.approx(result.last)
    tower, fields = load_tower(tmp_path / "tuned", {})
    assert torch.equal(tower.state_dict()["layernorm.weight"], again.model.layernorm.weight)
    assert fields["crop_size"]["height"] == 8
    with pytest.raises(LlavaStfError, match="exists already"):
        finetune(encoder, train, test, SHORT, output=tmp_path / "tuned")


def test_what_no_classification_model_can_hold_is_refused_before_training(folders, npz, tmp_path):
    train, test = open_labelled(str(npz))
    with pytest.raises(LlavaStfError, match="found a SiglipVisionModel with pooling mean"):
        finetune(load_encoder(folders / "siglip", pooling="mean"), train, test, SHORT, output=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_loss_that_is_not_finite_stops(folders, npz):
    train, test = open_labelled(str(npz))
    with pytest.raises(LlavaStfError, match="take a lower learning_rate"):
        finetune(load_encoder(folders / "vit"), train, test, replace(SHORT, learning_rate=1e30, warmup_epochs=0))


@pytest.mark.parametrize("name", MODELS)
def test_every_layer_has_its_share_of_the_rate(folders, name):
    model, classifier = load_encoder(folders / name, pooling="mean").model, torch.nn.Linear(16, 2)
    groups = parameter_groups(model, classifier, 0.05, 0.5)
    names = {id(parameter): key for key, parameter in [*model.named_parameters(), *classifier.named_parameters()]}
    shares = {names[id(parameter)]: group["share"] for group in groups for parameter in group["params"]}
    decays = {names[id(parameter)]: group["weight_decay"] for group in groups for parameter in group["params"]}
    assert len(shares) == len(names)
    for key, share in shares.items():
        block = next((number for number in range(2) if f".{number}." in f".{key}"), None)
        expected = 0.125 if "embeddings" in key else {0: 0.25, 1: 0.5, None: 1.0}[block]
        assert share == expected, key
    assert {decays[key] for key in decays if key.endswith("bias") or "norm" in key} == {0.0}
    assert decays["weight"] == 0.05


def test_the_rate_rises_from_the_first_to_the_peak_and_falls_to_the_last():
    options = FinetuneOptions(epochs=4, warmup_epochs=1, batch_size=512)
    rates = [learning_rate(step, 5, options) for step in range(20)]
    assert rates[:6] == pytest.approx([1e-6, 1e-6 + 999e-6 / 4, 1e-6 + 999e-6 / 2, 1e-6 + 999e-6 * 3 / 4, 1e-3, 1e-3])
    assert rates[5:] == sorted(rates[5:], reverse=True)
    assert learning_rate(20, 5, options) == pytest.approx(1e-5)


def test_the_recipes_are_the_papers():
    assert recipe_options("patchmix", 192, {}).learning_rate == 1e-3
    assert recipe_options("patchmix", 384, {}) == FinetuneOptions()
    aps = recipe_options("aps", 384, {"mixup": 0})
    # 1e-3 for a batch of 512.
    assert (aps.learning_rate, aps.batch_size, aps.layer_decay, aps.drop_path, aps.mixup) == (5e-4, 128, 1, 0, 0)


def test_labels_are_smoothed_and_mixed_as_the_images_are():
    targets = smoothed(torch.tensor([0, 2, 3]), 4, 0.1)
    assert targets[0].tolist() == pytest.approx([0.925, 0.025, 0.025, 0.025])
    pixels = torch.tensor([0.0, 0.5, 1.0]).view(3, 1, 1, 1).expand(3, 3, 16, 16)
    torch.manual_seed(0)
    for options in ({"mixup": 0.8, "cutmix": 0}, {"mixup": 0, "cutmix": 1.0}):
        mixed, found = mix_batch(pixels, targets, **options)
        share = 1 - mixed[0].mean().item()  # the last image is 1, the first 0
        torch.testing.assert_close(found[0], share * targets[0] + (1 - share) * targets[2])
        assert torch.equal(mixed[1], pixels[1])
        torch.testing.assert_close(found.sum(1), torch.ones(3))
        assert 0.01 < share < 0.99
        assert len(mixed[0].unique()) == (1 if options["mixup"] else 2)
    same, labels = mix_batch(pixels, targets, mixup=0, cutmix=0)
    assert torch.equal(same, pixels)
    assert torch.equal(labels, targets)


def test_the_share_of_a_cut_is_what_is_left_inside_the_image():
    torch.manual_seed(0)
    left = [paste(torch.arange(2.0).view(2, 1, 1, 1).expand(2, 3, 8, 8), 0.5) for _ in range(50)]
    assert all(1 - pixels[0].mean().item() == pytest.approx(share) for pixels, share in left)
    assert min(share for _, share in left) < max(share for _, share in left)


def test_erasing_replaces_a_rectangle_of_some_images():
    torch.manual_seed(0)
    pixels = torch.full((200, 3, 32, 32), 9.0)  # no normal noise reaches it
    changed = (erase(pixels, 0.25) != pixels).all(1)
    shares = changed.float().mean((1, 2))
    assert 30 < (shares > 0).sum() < 70
    assert 0.015 < shares[shares > 0].min() < shares.max() < 0.35
    first = changed[int((shares > 0).nonzero()[0])]
    rows, columns = first.any(1), first.any(0)
    assert torch.equal(first, rows[:, None] & columns)


def test_shifted_images_keep_their_pixels():
    torch.manual_seed(0)
    image = torch.rand(1, 3, 6, 6) + 0.1
    padded = torch.nn.functional.pad(image, (2,) * 4)
    windows = padded.unfold(2, 6, 1).unfold(3, 6, 1).permute(0, 2, 3, 1, 4, 5).reshape(25, 3, 6, 6)
    cuts = shifted(image.expand(300, 3, 6, 6), 2)
    found = {next(number for number, window in enumerate(windows) if torch.equal(window, cut)) for cut in cuts}
    assert found == set(range(25))


def test_branches_are_dropped_in_training_alone():
    model = MODELS["vit"]()
    stochastic_depth(model, 0.999)
    pixels = torch.randn(64, 3, 8, 8)
    states = model.embeddings(pixels)
    kept = model.eval().layers[1](states)
    dropped = model.train().layers[1](states)
    assert (dropped == states).flatten(1).all(1).sum() > 56  # 0.2 % of 64 images are kept
    assert not (kept == states).flatten(1).all(1).any()
    torch.testing.assert_close(model.layers[0](states), model.eval().layers[0](states))


def run(folders, npz, *options):
    return main(["encoders", "eval", "finetune", str(folders / "vit"), "--data", str(npz), "--device", "cpu", *options])


def test_the_command_prints_accuracy_and_writes_the_encoder(folders, npz, tmp_path, capsys):
    options = ["--epochs", "2", "--option", "warmup_epochs=1", "--recipe", "aps", "--output", str(tmp_path / "tuned")]
    assert run(folders, npz, *options) == 0
    assert json.loads(capsys.readouterr().out)["finetune"].keys() == {"last", "best"}
    assert (tmp_path / "tuned" / "model.safetensors").is_file()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--option", "mixpu=1"], "did you mean 'mixup'?"),
        (["--option", "mixup"], "an option is NAME=VALUE, found 'mixup'"),
        (["--option", "mixup=often"], "mixup must be float, found 'often'"),
        (["--epochs", "5"], "warmup_epochs must be at least 0 and below epochs, found 10 of 5"),
        (["--option", "layer_decay=0"], "layer_decay must be above 0"),
        (["--pooling", "mean", "--output", "x"], "leave output (--output) out"),
    ],
)
def test_options_that_cannot_be_are_one_sentence(folders, npz, capsys, options, message):
    assert run(folders, npz, *options) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_options_of_finetuning_do_not_go_with_the_other_protocols(folders, npz, capsys):
    arguments = ["encoders", "eval", "knn", str(folders / "vit"), "--data", str(npz), "--output", "x"]
    assert main(arguments) == 2
    assert "--output goes with finetune only" in capsys.readouterr().err
