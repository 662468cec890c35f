"""MGC against the reference data of its authors' code, and what that data does not hold."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from transformers import ViTConfig, ViTModel

from llava_stf.encoders.checkpoints import to_vit
from llava_stf.encoders.objectives.aps import positive_cosine
from llava_stf.encoders.objectives.base import ema_momentum, encode
from llava_stf.encoders.objectives.correspondence import (
    COARSE,
    FINE,
    MIDDLE,
    Grain,
    box_intersection,
    box_iou,
    candidates,
    correspondence,
    overlapping_boxes,
    to_source,
    to_view,
)
from llava_stf.encoders.objectives.mgc import MGC, MGCOptions, pair_contrast, pool_cells
from llava_stf.encoders.objectives.sincos import sincos_table
from llava_stf.encoders.pretrain.schedule import cosine
from llava_stf.errors import LlavaStfError

ROLES = {"base_encoder.": "encoder", "momentum_encoder.": "momentum_encoder"}
HEADS = {
    "projector_patch.": "projectors.0",
    "projector_divide_32.": "projectors.1",
    "projector_divide_112.": "projectors.2",
    "projector_patch_momentum.": "momentum_projectors.0",
    "projector_divide_momentum_32.": "momentum_projectors.1",
    "projector_divide_momentum_112.": "momentum_projectors.2",
    "predictor_patch.": "predictors.0",
    "predictor_divide_32.": "predictors.1",
    "predictor_divide_112.": "predictors.2",
}
GRAINS = {"fine": FINE, "mid": MIDDLE, "coarse": COARSE}


@pytest.fixture(scope="module")
def golden(golden_ssl):
    return golden_ssl / "mgc"


@pytest.fixture(scope="module")
def places(golden):
    return json.loads((golden / "correspondence.json").read_text())


@pytest.fixture(scope="module")
def cases(golden):
    return json.loads((golden / "cases.json").read_text())


def tiny(width=16, heads=2, depth=2, image=32, patch=4, **options) -> MGC:
    config = ViTConfig(
        hidden_size=width,
        num_hidden_layers=depth,
        num_attention_heads=heads,
        intermediate_size=4 * width,
        layer_norm_eps=1e-6,
        image_size=image,
        patch_size=patch,
    )
    options = {"cell_patches": (1, 2, 4), "pairs": (5, 4, 2), "hidden": 12, "out": 8, "drop_path": 0.0, **options}
    return MGC(ViTModel(config, add_pooling_layer=False), MGCOptions(**options))


def yxhw(box: list[float]) -> torch.Tensor:
    """The reference data's (x, y, h, w) as this package has it."""
    x, y, height, width = box
    return torch.tensor([[y, x, height, width]])


def boxes_of(case) -> tuple[torch.Tensor, ...]:
    flips = torch.tensor([case["flip1"]]), torch.tensor([case["flip2"]])
    return yxhw(case["box1_xyhw"]), yxhw(case["box2_xyhw"]), *flips


def test_grains_are_the_authors(places):
    assert {name: Grain(**values) for name, values in places["params"].items()} == {
        name: replace(grain, row_clamp=list(grain.row_clamp), col_clamp=list(grain.col_clamp))
        for name, grain in GRAINS.items()
    }


@pytest.mark.parametrize("name", GRAINS)
def test_candidates_are_the_authors(places, name):
    for case in places["cases"]:
        found = candidates(*boxes_of(case), GRAINS[name])
        mine = [
            (first, second, weight)
            for first, second, weight in zip(*(field[0].tolist() for field in found), strict=True)
            if weight > 1e-4  # below, float32 rounding decides (README of the data)
        ]
        expected = [candidate for candidate in case[name]["candidates"] if candidate[2] > 1e-4]
        assert [pair[:2] for pair in mine] == [tuple(pair[:2]) for pair in expected]
        assert [pair[2] for pair in mine] == pytest.approx([pair[2] for pair in expected], abs=1e-6)


@pytest.mark.parametrize("name", GRAINS)
def test_kept_pairs_are_the_authors(places, name):
    compared = 0
    for case in places["cases"]:
        index1, index2, weight = (field[0] for field in correspondence(*boxes_of(case), GRAINS[name]))
        expected = case[name]
        torch.testing.assert_close(weight, torch.tensor(expected["weight"]), atol=1e-6, rtol=0)
        if expected["gap_at_cut"] is None:
            assert (index1.tolist(), index2.tolist()) == (expected["index1"], expected["index2"])
        elif expected["gap_at_cut"] > 1e-6:  # else the kept set is not unique
            mine, theirs = (
                sorted(zip(*pair, strict=True))
                for pair in ((index1.tolist(), index2.tolist()), (expected["index1"], expected["index2"]))
            )
            assert mine == theirs
            compared += 1
    assert compared >= 18


def test_a_batch_gives_what_its_images_give_alone(places):
    cases = [boxes_of(case) for case in places["cases"]]
    together = correspondence(*(torch.cat(parts) for parts in zip(*cases, strict=True)), MIDDLE)
    for number, case in enumerate(cases):
        for all_of_it, alone in zip(together, correspondence(*case, MIDDLE), strict=True):
            assert torch.equal(all_of_it[number], alone[0])


def test_box_arithmetic_is_the_authors(places):
    for case in places["primitives"]:
        box1, box2 = yxhw(case["box1_xyhw"]).double(), yxhw(case["box2_xyhw"]).double()
        shared = box_intersection(box1, box2)
        for mine, theirs in (
            (shared, "intersection_xyhw"),
            (to_view(box2, box1), "relative"),
            (to_source(box2, box1), "absolute"),
        ):
            torch.testing.assert_close(mine, yxhw(case[theirs]).double(), atol=1e-4, rtol=1e-6)
        assert (shared[0, 2:].prod() / box2[0, 2:].prod()).item() == pytest.approx(case["ratio_of_box2"], abs=1e-6)


def test_paired_cells_show_the_same_place():
    """View 2 is view 1 flipped: every cell meets its mirror image."""
    box = torch.tensor([[10, 20, 224, 224]])
    pairs = correspondence(box, box, torch.tensor([False]), torch.tensor([True]), MIDDLE)
    kept = pairs.weight[0] > 0
    rows, columns = pairs.index1[0][kept] // 7, pairs.index1[0][kept] % 7
    assert kept.any()
    assert torch.equal(pairs.index2[0][kept], rows * 7 + 6 - columns)
    torch.testing.assert_close(pairs.weight[0][kept], torch.full((int(kept.sum()),), 0.5))


def test_of_equal_pairs_the_last_found_are_kept():
    box, flip = torch.tensor([[10, 20, 224, 224]]), torch.tensor([False])
    pairs = correspondence(box, box, flip, flip, COARSE)
    assert pairs.index1.tolist() == pairs.index2.tolist() == [[2, 3]]


def test_crops_that_do_not_meet_have_no_pairs():
    apart = torch.tensor([[0, 0, 50, 50]]), torch.tensor([[80, 80, 50, 50]])
    for field in correspondence(*apart, *torch.zeros(2, 1, dtype=torch.bool), FINE):
        assert field.shape == (1, 10)
        assert not field.any()


def test_cells_that_do_not_divide_the_view_are_refused():
    box, flip = torch.tensor([[0, 0, 9, 9]]), torch.tensor([False])
    with pytest.raises(LlavaStfError, match="cells of 16 pixels do not divide a view of 200"):
        correspondence(box, box, flip, flip, FINE, size=200)
    with pytest.raises(LlavaStfError, match=r"must divide the encoder's grid of 8 x 8 patches.*\[1, 2, 4, 8\]"):
        tiny(cell_patches=(1, 2, 7))
    assert [grain.cell for grain in tiny(cell_patches=None).grains] == [4, 8, 16]
    assert [grain.cell for grain in tiny(image=224, patch=16, cell_patches=None).grains] == [16, 32, 112]


def test_sincos_table_is_the_authors(golden):
    expected = load_file(golden / "sincos_pos_embed.safetensors")["pos_embed"]
    torch.testing.assert_close(sincos_table(32, 14), expected, atol=1e-6, rtol=0)
    with pytest.raises(LlavaStfError, match="that 4 divides, found 30"):
        sincos_table(30, 14)


def test_loss_similarity_and_gradient_are_the_authors(golden, cases):
    tensors = load_file(golden / "loss.safetensors")
    for case in cases["loss"]:
        names = ("q", "k", "weight", "grad_q")
        queries, keys, weight, gradient = (tensors[f"case{case['case']}.{name}"] for name in names)
        queries.requires_grad_()
        loss = pair_contrast(queries, keys, weight, case["temperature"])
        loss.backward()
        assert loss.item() == pytest.approx(case["loss"], abs=2e-6)
        assert positive_cosine(queries, keys).item() == pytest.approx(case["similarity"], abs=1e-6)
        torch.testing.assert_close(queries.grad, gradient, atol=1e-6, rtol=1e-5)


def test_weighed_pairs_count_by_their_weight():
    torch.manual_seed(0)
    queries, keys, weight = torch.randn(6, 5), torch.randn(6, 5), torch.tensor([[0.4, 0.1, 0], [0.3, 0.2, 0]])
    logits = torch.nn.functional.cosine_similarity(queries[:, None], keys[None], dim=2) / 0.1
    rows = torch.nn.functional.cross_entropy(logits, torch.arange(6), reduction="none")
    weighed = pair_contrast(queries, keys, weight, 0.1, weigh=True)
    torch.testing.assert_close(weighed, (rows * weight.flatten()).sum() / weight.sum())
    torch.testing.assert_close(pair_contrast(queries, keys, weight, 0.1), rows.mean())
    assert pair_contrast(queries, keys, torch.zeros(2, 3), 0.1, weigh=True).item() == 0


def test_cells_are_means_of_their_patches():
    patches = torch.arange(16.0).view(1, 16, 1)
    assert pool_cells(patches, 2).flatten().tolist() == [2.5, 4.5, 10.5, 12.5]
    assert torch.equal(pool_cells(patches, 1), patches)


def test_tokens_at_any_size_are_the_authors(golden, cases):
    size, tensors = cases["vit"], load_file(golden / "vit_forward.safetensors")
    objective = tiny(size["embed_dim"], size["heads"], size["depth"], size["img"], size["patch"])
    state = load_file(golden / "vit_checkpoint.safetensors")
    for official, ours in ROLES.items():
        part = {name.removeprefix(official): value for name, value in state.items() if name.startswith(official)}
        encoder = objective.get_submodule(ours).eval()
        encoder.load_state_dict(to_vit(part))
        for shape in ("native", "larger", "nonsquare"):
            with torch.no_grad():
                tokens = encode(encoder, tensors[f"{shape}.pixel_values"])
            torch.testing.assert_close(tokens, tensors[f"{shape}.{official}tokens_normed"], atol=1e-5, rtol=1e-5)


def test_schedules_are_the_authors(cases):
    rate, momentum = cases["schedule"]
    steps, warmup = (rate[name] * rate["iters_per_epoch"] for name in ("epochs", "warmup_epochs"))
    found = [cosine(step, base=1e-3, final=1e-6, steps=steps, warmup_steps=warmup) for step in range(steps)]
    assert found == pytest.approx(rate["values"], rel=1e-9)
    steps = len(momentum["values"])
    assert [ema_momentum(0.996, step / steps) for step in range(steps)] == pytest.approx(momentum["values"])


def test_one_iteration_of_training_is_the_authors(golden, cases, from_vit):
    case, tensors = cases["train_step"], load_file(golden / "train_step.safetensors")
    objective = tiny(clip_norm=case["clip_norm_per_parameter"])
    before = {name.removeprefix("before."): value for name, value in tensors.items() if name.startswith("before.")}
    for official, ours in ROLES.items():
        part = {name.removeprefix(official): value for name, value in before.items() if name.startswith(official)}
        objective.get_submodule(ours).load_state_dict(to_vit(part))
    for official, ours in HEADS.items():
        part = {name.removeprefix(official): value for name, value in before.items() if name.startswith(official)}
        objective.get_submodule(ours).load_state_dict(part)

    optimizer = torch.optim.SGD(objective.parameter_groups(0.05), lr=0.02)
    objective.ema_update(case["ema_momentum"])
    losses = objective(
        view1=tensors["view1"],
        view2=tensors["view2"],
        cells1=[tensors[f"index{number}"] for number in (1, 3, 5)],
        cells2=[tensors[f"index{number}"] for number in (2, 4, 6)],
        weights=[tensors[f"weight{number}"] for number in (1, 2, 3)],
    )
    losses["loss"].backward()
    norms = [float(parameter.grad.norm()) for parameter in objective.parameters() if parameter.grad is not None]
    assert max(norms) == pytest.approx(case["max_grad_norm_before_clip"], rel=1e-4)
    objective.clip_gradients()
    optimizer.step()

    for ours, theirs in (("fine", "fine_sum"), ("middle", "mid_sum"), ("coarse", "coarse_sum"), ("loss", "total")):
        assert losses[ours].item() == pytest.approx(case[theirs], abs=2e-5)
    similar = [similarity for _, similarity in case["loss_and_similarity_per_call"]]
    assert losses["similarity"].item() == pytest.approx(sum(similar) / len(similar), abs=1e-5)
    state = {}
    for official, ours in ROLES.items():
        part = from_vit(objective.get_submodule(ours).state_dict())
        state |= {official + name: value for name, value in part.items()}
    for official, ours in HEADS.items():
        state |= {official + name: value for name, value in objective.get_submodule(ours).state_dict().items()}
    for name, value in tensors.items():
        if name.startswith("after."):
            after = state[name.removeprefix("after.")]
            torch.testing.assert_close(
                after, value, atol=2e-5, rtol=1e-4, msg=lambda text, name=name: f"{name}: {text}"
            )


def test_start_of_the_momentum_copies_and_the_fixed_table():
    separate, same = tiny(), tiny(separate_start=False)
    weight = "layers.0.mlp.fc1.weight"
    assert not torch.equal(separate.encoder.state_dict()[weight], separate.momentum_encoder.state_dict()[weight])
    for name, value in same.encoder.state_dict().items():
        assert torch.equal(value, same.momentum_encoder.state_dict()[name])
    table = same.encoder.embeddings.position_embeddings
    assert not table.requires_grad
    torch.testing.assert_close(table, sincos_table(16, 8))
    trained = {id(parameter) for parameter in same.parameter_groups(0.05)[0]["params"]}
    assert id(table) not in trained
    assert id(same.encoder.embeddings.cls_token) in trained
    assert not any(id(parameter) in trained for parameter in same.momentum_encoder.parameters())


def test_second_crops_overlap_the_first():
    torch.manual_seed(0)
    first = torch.tensor([[0.0, 0, 20, 20], [30, 40, 30, 24], [0, 0, 64, 64]])
    second = overlapping_boxes(first, torch.Size([64, 64]), (0.2, 1.0), 0.2)
    assert (box_iou(first, second) > 0.2)[1:].all()
    assert (second[:, :2] >= 0).all()
    assert (second[:, :2] + second[:, 2:] <= 64).all()
    # A first crop smaller than any second one may be: no overlap is enough, so it is the whole image.
    tiny_first = torch.tensor([[0.0, 0, 4, 4]])
    assert overlapping_boxes(tiny_first, torch.Size([64, 64]), (0.9, 1.0), 0.2).tolist() == [[0, 0, 64, 64]]


def test_views_of_images_become_a_loss_with_gradient():
    pytest.importorskip("kornia", reason="augmentations need kornia")
    torch.manual_seed(0)
    for options in (MGCOptions, MGCOptions.corrected):
        objective = tiny()
        objective.options = options(cell_patches=(1, 2, 4), pairs=(5, 4, 2), hidden=12, out=8)
        views = objective.views(torch.rand(6, 3, 40, 48))
        assert (box_iou(views[0].boxes, views[1].boxes) > 0.2).all()
        (inputs,) = objective.inputs(views)
        losses = objective(**inputs)
        losses["loss"].backward()
        objective.clip_gradients()
        gradients = [parameter.grad.norm() for parameter in objective.parameters() if parameter.grad is not None]
        assert torch.stack(gradients).isfinite().all()
        assert max(gradients) <= 3.0001
        assert all(parameter.grad is None for parameter in objective.momentum_encoder.parameters())


def test_presets_and_wrong_options():
    assert MGCOptions.corrected(out=4) == MGCOptions(weigh_pairs=True, separate_start=False, out=4)
    with pytest.raises(LlavaStfError, match=r"pairs needs three numbers of at least 1.*found \[10, 10\]"):
        MGCOptions(pairs=(10, 10))
