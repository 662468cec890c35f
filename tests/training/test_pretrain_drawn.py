"""Training on the tower's states of drawn images, in small: rows, targets of patches, learning, an exact resume."""

import copy
import dataclasses

import numpy as np
import pytest
import torch
from transformers import CLIPVisionModel

from llava_stf import load_model
from llava_stf.errors import DataError, LlavaStfError
from llava_stf.reduction.apply import apply_stf
from llava_stf.training.alignment import align_to_patches, align_to_words
from llava_stf.training.assemble_tiny import assemble_tiny
from llava_stf.training.drawn_batches import Encoder, Row, pair_rows, training_rows
from llava_stf.training.drawn_states import DrawnStates, write_states
from llava_stf.training.drawn_steps import PARTS
from llava_stf.training.learner import Learner
from llava_stf.training.optim import parameter_groups
from llava_stf.training.pretrain_drawn import pretrain_drawn
from llava_stf.training.pretrain_tower import pretrain_tower, tower_config
from llava_stf.training.scene_words import SceneWords, flat_labels
from llava_stf.world import FAMILIES, draw, patch_labels
from llava_stf.world.scene import CHARACTERS, SHAPES

IMAGES = 12


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    folder = tmp_path_factory.mktemp("drawn")
    torch.manual_seed(0)
    CLIPVisionModel(tower_config()).save_pretrained(folder / "tower")
    assemble_tiny(folder / "tower", folder / "start")
    llava = load_model(folder / "start", vision_tokens="all", dtype="float32")
    write_states(llava.model.model.vision_tower, folder / "states", count=IMAGES, seed=3)
    return folder


@pytest.fixture(scope="module")
def images(start):
    return DrawnStates(start / "states")


@pytest.fixture
def learner(start):
    llava = load_model(start / "start", vision_tokens="all", dtype="float32")
    return Learner(llava.model, Encoder(llava.processor.tokenizer))


def test_states_are_those_of_the_images(start, images):
    assert images.scenes[7] == draw(7, seed=3)[0]
    llava = load_model(start / "start", vision_tokens="all", dtype="float32")
    pixels = llava.processor.image_processor(draw(7, seed=3)[1], return_tensors="pt")["pixel_values"]
    expected = llava.model.model.vision_tower(pixels, output_hidden_states=True).hidden_states[-2][:, 1:]
    torch.testing.assert_close(images.states([7])[0].float(), expected, atol=0.05, rtol=0.05)


def test_a_row_is_the_prompt_that_asks_alone(learner, start, images):
    """The loss of one question is that of the whole model on the whole prompt."""
    llava = load_model(start / "start", vision_tokens="all", dtype="float32")
    batch = learner.encoder.batch([[[Row("open", (("How many shapes are there?", "2"),))]]])
    loss, _ = learner(learner.image_tokens(images.states([7])), batch)
    ids = [*learner.encoder.beginning.tolist(), *[learner.encoder.image_token_id] * 64, *batch.ids.tolist()]
    labels = torch.full((len(ids),), -100)
    labels[len(ids) - len(batch.ids) :][batch.answers >= 0] = batch.ids[batch.answers >= 0]
    pixels = llava.processor.image_processor(draw(7, seed=3)[1], return_tensors="pt")["pixel_values"]
    whole = llava.model(input_ids=torch.tensor([ids]), pixel_values=pixels, labels=labels[None]).loss
    torch.testing.assert_close(loss, whole, rtol=0.02, atol=0)
    prompt = llava.processor(images=draw(7, seed=3)[1], text=llava.processor.apply_chat_template(
        [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "How many shapes are there?"}]}],
        add_generation_prompt=True,
    ), return_tensors="pt")["input_ids"][0].tolist()  # fmt: skip
    assert ids[: len(prompt)] == prompt


def test_rows_are_of_all_kinds_and_can_be_answered(images):
    rng = np.random.default_rng(0)
    known = {"open where": 1.0, "open colour": 0.0}
    seen = [
        row for scene in images.scenes for _ in range(9) for group in training_rows(scene, rng, known) for row in group
    ]
    kinds = [row.kind for row in seen]
    assert {kind and kind.split()[0] for kind in kinds} == {*FAMILIES, None}
    assert kinds.count("open where") < kinds.count("open colour") / 2  # asked less, as it is answered well
    texts = [row.said[0][0] for row in seen if row.kind and row.kind.startswith("science")]
    assert any("Options: (A)" in text for text in texts)
    assert any("\nA. " in text for text in texts)


def test_short_queries_have_their_answers(learner, images):
    rng = np.random.default_rng(0)
    scene = next(scene for scene in images.scenes if not scene.degraded)
    groups = pair_rows(scene, rng, {})
    batch = learner.encoder.batch([[rows] for rows in groups])
    tokenizer = learner.encoder.tokenizer
    for number, row in enumerate(row for rows in groups for row in rows):
        assert batch.kinds[number] == row.kind
        assert tokenizer.decode(batch.ids[batch.answers == number]) == f"{row.said.answer}</s>"


@pytest.mark.parametrize("ask", [pair_rows, training_rows])
def test_hints_stand_before_the_options_and_are_what_the_letter_means(learner, images, ask):
    rng = np.random.default_rng(0)
    tokenizer = learner.encoder.tokenizer
    hinted = set()
    for scene in images.scenes:
        for rows in ask(scene, rng, {}):
            for row in rows:
                batch = learner.encoder.batch([[[row]]])
                if row.truth is None:
                    assert not batch.hints.numel()
                    continue
                ((before, last), (wanted, again)) = batch.hints.tolist()
                told, options = tokenizer.decode(batch.ids[: before + 1]), tokenizer.decode(batch.ids[before + 1 :])
                assert options.lstrip().startswith("A")
                assert "B" not in told
                assert wanted == again
                assert row.truth.endswith(tokenizer.decode(wanted).strip())
                assert row.truth in options
                assert last + 1 == (batch.answers >= 0).nonzero()[0]
                hinted.add(row.kind.split()[0])
    assert hinted == ({"letter"} if ask is pair_rows else {"science", "choice", "choice_cn"})


def test_hints_are_learned_between_the_layers(learner, images):
    """A loss that has a hint falls with what two thirds of the layers say at its token, and with nothing behind it."""
    scene = next(scene for scene in images.scenes if not scene.degraded)
    row = next(row for row in pair_rows(scene, np.random.default_rng(0), {})[1] if row.truth)
    image = learner.image_tokens(images.states([images.scenes.index(scene)]))
    losses = [
        learner(image, learner.encoder.batch([[[one]]]))[0] for one in (row, dataclasses.replace(row, truth=None))
    ]
    hint = losses[0] - losses[1]
    assert hint > 0
    hint.backward()
    depth = len(learner.language_model.layers)
    moved = [layer.mlp.down_proj.weight.grad.abs().max() > 1e-6 for layer in learner.language_model.layers]
    assert moved == [number < 2 * depth // 3 for number in range(depth)]


def names_in(tokens, names, learner):
    """Which of the names each token says most of."""
    embedding = learner.language_model.embed_tokens.weight.detach()
    common = embedding[embedding.any(-1)].mean(0)
    ids = [learner.encoder.tokenizer(name, add_special_tokens=False)["input_ids"] for name in names]
    words = torch.stack([(embedding[one] - common).sum(0) for one in ids])
    cosines = torch.nn.functional.cosine_similarity(tokens[:, None] - common, words, dim=-1)
    return [names[index] for index in cosines.argmax(-1)]


def test_tokens_of_a_scene_say_what_is_there(learner, images):
    words = SceneWords(learner.encoder.tokenizer, learner.language_model.embed_tokens.weight.detach())
    scene = next(scene for scene in images.scenes if not scene.degraded and len(scene.objects) > 1)
    shapes = patch_labels(scene)["shape"].reshape(-1)
    said = names_in(words.patches(scene, flat_labels(scene))[shapes > 0], SHAPES, learner)
    assert said == [SHAPES[label - 1] for label in shapes[shapes > 0]]
    tokens = words.objects(scene, np.random.default_rng(0), 12)
    length = 0 if scene.text is None else len(scene.text.string)
    there = (tokens - words.common).abs().amax(-1) > 1e-4
    assert tokens.shape[0] == 12
    assert there.sum() == len(scene.objects) + length
    said = names_in(tokens[there], (*SHAPES, "number", "word"), learner)
    assert [name for name in said if name in SHAPES] == [thing.shape for thing in scene.objects]


def test_characters_are_said_with_their_numbers(learner):
    words = SceneWords(learner.encoder.tokenizer, learner.language_model.embed_tokens.weight.detach())
    letters = words.letters.flatten(0, 1)
    scenes = [scene for scene in (draw(index, seed=4)[0] for index in range(40)) if scene.text and not scene.degraded]
    spelt = 0
    for scene in scenes:
        labels = flat_labels(scene)
        said = set()
        halves = labels["char_left"], labels["char_right"]
        for token, left, right in zip(words.patches(scene, labels), *halves, strict=True):
            count = int(left > 0) + int(right > 0)
            best = (letters @ (token - words.common)).topk(count).indices.tolist()
            said |= {divmod(index, len(CHARACTERS) + 1) for index in best}
        shown = {(number, CHARACTERS.index(one) + 1) for number, one in enumerate(scene.text.string.upper())}
        spelt += said == shown
    # Sums of six words of 192 random numbers each: about one character of a hundred looks like another one.
    assert spelt > 0.8 * len(scenes) > 8


def test_alignment_brings_image_tokens_to_the_words(learner, images):
    words = SceneWords(learner.encoder.tokenizer, learner.language_model.embed_tokens.weight.detach())
    labels = [flat_labels(scene) for scene in images.scenes]
    wanted = torch.stack([words.patches(*shown) for shown in zip(images.scenes, labels, strict=True)])

    def distance():
        return (learner.image_tokens(images.states(range(IMAGES))).float() - wanted).square().mean().item()

    def spelling():
        tokens = learner.image_tokens(images.states(range(IMAGES))).float()
        return words.spelling_loss(tokens, labels).item()

    before, misspelt = distance(), spelling()
    assert words.spelling_loss(wanted, labels) < 0.1 < misspelt
    align_to_words(learner, images, steps=40, seed=0)
    assert distance() < 0.8 * before
    assert spelling() < 0.9 * misspelt


def test_a_fused_window_says_in_full_what_few_of_its_patches_show(start, images):
    llava = load_model(start / "start", vision_tokens="all", dtype="float32")
    plain = copy.deepcopy(llava.model.model.multi_modal_projector)
    apply_stf(llava.model, llava.processor, window=2)
    learner = Learner(llava.model, Encoder(llava.processor.tokenizer), torch.float32)
    number, labels = next(
        (number, labels)
        for number, labels in enumerate(map(patch_labels, images.scenes))
        if labels["char_left"].any() and labels["centre"].any()
    )
    means = learner.image_tokens(images.states([number])).detach()[0]
    align_to_patches(learner, images, plain, [2], steps=300, seed=0)
    tokens = learner.image_tokens(images.states([number])).detach()[0]
    patches = plain(images.states([number])[0].float())[0]
    background = patches[torch.from_numpy((labels["place"] == 0).reshape(-1))].mean(0)
    away = (patches - background).reshape(8, 8, -1)
    for row, column in np.argwhere(labels["centre"] + labels["char_left"] + labels["char_right"]):
        window = row // 2 * 4 + column // 2
        shares = [((one[window] - background) @ away[row, column]) / away[row, column].square().sum()
                  for one in (means, tokens)]  # fmt: skip
        assert shares[1] > max(0.75, shares[0])


@pytest.mark.parametrize(
    ("part", "tokens", "reduction"),
    [
        ("objects", "all", "stf"),
        ("images", "all", "stf"),
        ("tokens", "all", "stf"),
        ("tokens", [16], "stf"),
        ("tokens", [64, 16, 4], "stf"),
        ("tokens", [16], "pool"),
        ("tokens", [16], "m3"),
        ("tokens", [16], "tokenpacker"),
        ("tokens", [16], "mqt"),
    ],
)
def test_a_resumed_run_is_the_run_that_never_stopped(tmp_path, start, monkeypatch, part, tokens, reduction):
    monkeypatch.setitem(PARTS, part, dataclasses.replace(PARTS[part], alignment=2))
    options = {"part": part, "steps": 3, "vision_tokens": tokens, "reduction": reduction, "batch_size": 2, "fades": 0.5}
    # Some CPUs take ten times as long in bfloat16.
    options["dtype"] = torch.bfloat16 if reduction == "pool" else torch.float32
    run = [start / "start", None if part == "objects" else start / "states"]
    assert pretrain_drawn(*run, tmp_path / "whole", **options)
    assert not pretrain_drawn(*run, tmp_path / "parts", **options, stop_after=2)
    with pytest.raises(LlavaStfError, match="--resume"):
        pretrain_drawn(*run, tmp_path / "parts", **options)
    assert pretrain_drawn(*run, tmp_path / "parts", **options, resume=True)
    whole, parts = (load_model(tmp_path / name, **budget(tokens)).model.state_dict() for name in ("whole", "parts"))
    assert all(torch.equal(whole[name], value) for name, value in parts.items())
    before = load_model(start / "start", vision_tokens="all", dtype="bfloat16").model.state_dict()
    assert all(torch.equal(before[name], whole[name]) for name in before if "vision_tower" in name)
    assert not torch.equal(before["lm_head.weight"], whole["lm_head.weight"])
    if tokens == "all":
        projector = [name for name in before if "projector" in name]
        assert all(torch.equal(before[name], whole[name]) for name in projector) == (part == "objects")


def test_a_run_goes_on_with_its_own_options_alone(tmp_path, start, monkeypatch):
    monkeypatch.setitem(PARTS, "images", dataclasses.replace(PARTS["images"], alignment=1))
    options = {"part": "images", "batch_size": 1, "dtype": torch.float32}
    run = [start / "start", start / "states", tmp_path / "run"]
    assert not pretrain_drawn(*run, **options, steps=9, stop_after=1)
    with pytest.raises(LlavaStfError, match="steps 9 is now 8"):
        pretrain_drawn(*run, **options, steps=8, resume=True)


@pytest.mark.parametrize("numbers", [{"count": 0, "seed": 3}, {"count": 1, "seed": -1}])
def test_states_that_cannot_be_are_not_begun(tmp_path, numbers):
    with pytest.raises(LlavaStfError, match="must be at least"):
        write_states(CLIPVisionModel(tower_config()), tmp_path / "states", **numbers)
    assert not list(tmp_path.iterdir())


def test_states_are_of_the_tower_that_is_trained_behind(tmp_path, start):
    torch.manual_seed(1)
    write_states(CLIPVisionModel(tower_config()), tmp_path / "others", count=1, seed=3)
    with pytest.raises(DataError, match="of another tower"):
        pretrain_drawn(start / "start", tmp_path / "others", tmp_path / "run", part="images", steps=1)
    with pytest.raises(DataError, match="holds no states"):
        pretrain_drawn(start / "start", tmp_path / "none", tmp_path / "run", part="images", steps=1)


@pytest.mark.parametrize(("part", "states"), [("objects", True), ("images", False)])
def test_states_go_with_the_parts_that_need_them(tmp_path, start, part, states):
    with pytest.raises(DataError, match="states of a tower"):
        pretrain_drawn(start / "start", start / "states" if states else None, tmp_path / "run", part=part, steps=1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"save_steps": 0}, "save_steps must be at least 1"),
        ({"seed": -1}, "seed must be at least 0"),
        ({"learning_rate": float("nan")}, "learning_rate must be at least 0"),
        ({"reduction": "pool"}, "leave out reduction pool"),
        ({"init": "random"}, "init and fusion_layers are STF's"),
        ({"vision_tokens": [16], "reduction": "mqt", "fusion_layers": [-2]}, "init and fusion_layers are STF's"),
    ],
)
def test_options_that_cannot_be_or_would_be_passed_over_are_refused(tmp_path, options, message):
    with pytest.raises(LlavaStfError, match=message):
        pretrain_drawn("tiny-full", None, tmp_path / "run", part="objects", **{"steps": 1, **options})
    assert not (tmp_path / "run").exists()


def test_a_tower_without_a_step_of_images_is_refused(tmp_path):
    with pytest.raises(LlavaStfError, match="a step takes 32 images, found 31"):
        pretrain_tower(tmp_path / "run", images=31)
    with pytest.raises(LlavaStfError, match="save_steps must be at least 1"):
        pretrain_tower(tmp_path / "run", images=64, save_steps=0)
    assert not (tmp_path / "run").exists()


def budget(tokens):
    return {"vision_tokens": "all"} if tokens == "all" else {}


def test_projector_and_language_model_have_their_own_learning_rates(learner):
    groups = parameter_groups(learner, {"projector": 0.1, "language_model": 1.0})
    projector = {id(parameter) for parameter in learner.multi_modal_projector.parameters()}
    rates = {id(parameter): group["lr"] for group in groups for parameter in group["params"]}
    assert {rate for key, rate in rates.items() if key in projector} == {0.1}
    assert {rate for key, rate in rates.items() if key not in projector} == {1.0}
