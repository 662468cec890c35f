"""PatchMix against what the authors' own code computed: mixing, targets, loss, one train step of each variant."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from transformers import ViTConfig, ViTModel

from llava_stf.encoders.checkpoints import to_vit
from llava_stf.encoders.objectives.base import Progress, ema_momentum
from llava_stf.encoders.objectives.contrast import contrast, identity_targets
from llava_stf.encoders.objectives.patch_mixing import mix, mix_targets, mix_to_mix_targets
from llava_stf.encoders.objectives.patchmix import PatchMix, PatchMixOptions
from llava_stf.encoders.pretrain.schedule import cosine

PARTS = {"base_encoder": ("encoder", "projector"), "momentum_encoder": ("momentum_encoder", "momentum_projector")}


@pytest.fixture(scope="module")
def golden(golden_ssl):
    """The folder of PatchMix's reference data."""
    return golden_ssl / "patchmix"


@pytest.fixture(scope="module")
def cases(golden):
    """Parameters of every case."""
    return json.loads((golden / "cases.json").read_text())


def module_state(official):
    """The state dict of a `PatchMix` from the released code's names."""
    state = {}
    for prefix, (encoder, projector) in PARTS.items():
        own = {name.removeprefix(f"{prefix}."): value for name, value in official.items() if name.startswith(prefix)}
        head = {name.removeprefix("head."): value for name, value in own.items() if name.startswith("head.")}
        body = {name: value for name, value in own.items() if not name.startswith("head.")}
        if own:
            state |= {f"{encoder}.{name}": value for name, value in to_vit(body).items()}
            state |= {f"{projector}.{name}": value for name, value in head.items()}
    return state | {name: value for name, value in official.items() if name.startswith("predictor.")}


def test_mixed_images_and_targets_are_the_authors(golden, cases):
    data = load_file(golden / "mix.safetensors")
    for case in cases["mix"]:
        x, mixed, permutation, target, mix_target = (
            data[f"case{case['case']}.{name}"] for name in ("x", "x_mixed", "perm", "soft_target", "soft_mix_target")
        )
        assert torch.equal(mix(x, case["patch"], case["m"], permutation), mixed)
        place = {"rank": case["rank"], "processes": case["world_size"]}
        torch.testing.assert_close(mix_targets(case["batch"], case["m"], case["smoothing"], **place), target)
        torch.testing.assert_close(mix_to_mix_targets(case["batch"], case["m"], case["smoothing"], **place), mix_target)
    torch.testing.assert_close(identity_targets(5, 0.1), data["nomix.soft_target"])


def test_contrast_and_its_gradient_are_the_authors(golden, cases):
    data = load_file(golden / "loss.safetensors")
    for case in cases["loss"]:
        part = {name: data[f"case{case['case']}.{name}"] for name in ("q", "k", "target", "loss", "grad_q")}
        queries = part["q"].requires_grad_()
        loss = contrast(queries, part["k"], part["target"], case["temperature"])
        loss.backward()
        torch.testing.assert_close(loss[None], part["loss"], atol=4e-6, rtol=0)
        torch.testing.assert_close(queries.grad, part["grad_q"], atol=4e-6, rtol=0)


@pytest.mark.parametrize("variant", ["momentum", "nomomentum", "multicrop"])
def test_train_step_is_the_authors(golden, cases, variant):
    case = cases["train_step"][variant]
    data = load_file(golden / f"train_step_{variant}.safetensors")
    vit = ViTConfig(
        hidden_size=case["embed_dim"],
        num_hidden_layers=case["depth"],
        num_attention_heads=case["heads"],
        intermediate_size=4 * case["embed_dim"],
        layer_norm_eps=1e-6,
        image_size=case["img"],
        patch_size=case["patch"],
    )
    released = PatchMixOptions()  # the preset; below are sizes, not behaviour
    options = replace(
        released,
        images_per_mix=case["m"],
        mixed_smoothing=case["smoothing"],
        momentum=0.9 if case["momentum"] else None,
        drop_path=0.0,
        hidden=case["hidden"],
        out=case["out_dim"],
        local_crops=case["n_local_crops"],
        local_crop_size=case["local_crop"] or case["patch"],
    )
    objective = PatchMix(ViTModel(vit, add_pooling_layer=False), options)
    objective.load_state_dict(
        module_state({key[7:]: value for key, value in data.items() if key.startswith("before.")})
    )
    objective.before_step(Progress(step=0, steps_per_epoch=1, epochs=10))

    def mixed(images, call):
        return mix(images, case["patch"], case["m"], data[f"perm{call}"])

    inputs = {
        "view1": data["view1"],
        "view2": data["view2"],
        "mixed1": mixed(data["view1"], 0),
        "mixed2": mixed(data["view2"], 1),
    }
    if crops := [data[f"crop{number}"] for number in range(case["n_local_crops"])]:
        inputs["crops"] = torch.cat(crops)
        inputs["mixed_crops"] = torch.cat([mixed(crop, 2 + number) for number, crop in enumerate(crops)])
    losses = objective(**inputs)
    losses["loss"].backward()
    torch.optim.SGD(objective.parameter_groups(case["wd_group0"]), lr=case["lr"]).step()

    names = {"source": "Src Loss", "mix": "Mix Loss", "mix_to_mix": "Mix2 Loss", "loss": "Loss"}
    names |= {"crop": "Multi Loss", "crop_mix": "Multi Mix Loss"} if crops else {}
    assert {name: loss.item() for name, loss in losses.items()} == pytest.approx(
        {name: case["scalars"][official] for name, official in names.items()}, abs=3e-5
    )
    state = objective.state_dict()
    for name, value in module_state({k[6:]: v for k, v in data.items() if k.startswith("after.")}).items():
        # Batch normalisation over few samples makes rounding larger: another CPU's is 2e-5 off with SSE4.1's kernels.
        torch.testing.assert_close(state[name], value, atol=6e-5, rtol=0, msg=lambda text, name=name: f"{name}: {text}")


def test_schedules_are_the_authors(cases):
    for case in cases["lr_wd_schedule"]:
        per_epoch = case["iters_per_epoch"]
        values = [
            cosine(
                step,
                base=case["base"],
                final=case["final"],
                steps=case["epochs"] * per_epoch,
                warmup_steps=case["warmup_epochs"] * per_epoch,
            )
            for step in range(case["epochs"] * per_epoch)
        ]
        assert values == pytest.approx(case["values"], rel=1e-9, abs=1e-12)
    for case in cases["momentum_schedule"]:
        assert ema_momentum(case["base"], case["epoch"] / case["epochs"]) == pytest.approx(case["value"], abs=1e-12)
