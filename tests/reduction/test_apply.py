"""apply_reduction and remove_reduction: every method of llava_stf.reduction on a plain LLaVA."""

import copy

import pytest
import torch
from PIL import Image
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    SiglipVisionConfig,
)

from llava_stf import LlavaStfProcessor, apply_pooling, apply_stf, load_model, remove_stf
from llava_stf.errors import FusionError
from llava_stf.inference import LlavaStf
from llava_stf.models.llava_stf.configuration_llava_stf import LlavaStfConfig
from llava_stf.reduction import METHODS, apply_reduction, check_reduction, remove_reduction
from llava_stf.reduction.dart import DART
from llava_stf.reduction.fastv import FastV
from llava_stf.reduction.layers import LayerDropping
from llava_stf.reduction.pyramiddrop import PyramidDrop
from llava_stf.reduction.visionzip import VisionZip
from llava_stf.world import draw, questions_of

PICTURE = Image.radial_gradient("L").convert("RGB")
PROMPT = "USER: <image>\nWhat is it? ASSISTANT:"
# The random model has two LLM layers, so that at their defaults FastV and DART would prune nothing, and four stages are
# too many.
SHALLOW = {"fastv": FastV(full_layers=1), "dart": DART(full_layers=1), "pyramiddrop": PyramidDrop(parts=2)}
EVERY = [SHALLOW.get(name, method) for name, method in METHODS.items()]
by_name = pytest.mark.parametrize("method", EVERY, ids=lambda method: method.name)


@pytest.fixture
def plain(plain_folder):
    model, processor = load_model(plain_folder, vision_tokens="all")
    return model, processor


@pytest.fixture(scope="module")
def drawn():
    """The embedded plain model in float32, and questions on four pictures; the last one is about two of them."""
    pairs = []
    for index in range(4):
        scene, pixels = draw(index, split="held_out")
        picture = Image.fromarray(pixels)
        questions = questions_of(scene, index, split="held_out")[:2]
        pairs += [(picture, question.text) for question in questions]
    pairs.append(([pairs[0][0], pairs[2][0]], "What colour is the circle?"))
    return load_model("tiny-full", dtype="float32"), pairs


@torch.no_grad()
def logits(model, processor):
    return model(**processor(images=PICTURE, text=PROMPT, return_tensors="pt")).logits


@by_name
@pytest.mark.parametrize("kind", [LlavaProcessor, LlavaStfProcessor])
def test_removing_restores_every_bit(plain, plain_folder, method, kind):
    model, processor = plain
    if kind is LlavaProcessor:
        processor = LlavaProcessor.from_pretrained(plain_folder)
    before, attributes, state = logits(model, processor), set(vars(model.model)), model.state_dict()
    counted = processor(images=PICTURE, text=PROMPT)["input_ids"]
    assert apply_reduction(model, processor, method, vision_tokens=4) is model
    assert not torch.equal(logits(model, processor)[:, -1], before[:, -1])
    assert remove_reduction(model, processor) is model
    assert (type(model), type(processor)) == (LlavaForConditionalGeneration, kind)
    assert torch.equal(logits(model, processor), before)
    assert processor(images=PICTURE, text=PROMPT)["input_ids"] == counted
    assert set(vars(model.model)) == attributes
    assert model.state_dict().keys() == state.keys()
    assert not hasattr(processor, "image_tokens")


@by_name
def test_all_tokens_are_the_plain_model(plain, method):
    model, processor = plain
    if method.name == "visionzip":  # the authors' has the class token, and sums, among as many tokens as patches
        method = VisionZip(class_token=False, contextual="mean", order="raster")
    if method.name in ("prumerge+", "tokenpacker", "mqt"):
        return  # its tokens are sums at every budget; theirs are random until they are trained
    before = logits(model, processor)
    apply_reduction(model, processor, method, vision_tokens=16)
    # MBTF passes its input through as GELU(x) - GELU(-x), which rounds; the others do not compute anything anew.
    torch.testing.assert_close(logits(model, processor), before, atol=1e-5 if method.name == "stf" else 1e-6, rtol=0)


@by_name
@pytest.mark.parametrize("vision_tokens", [4, 1])
def test_prompt_has_a_placeholder_for_every_token(plain, method, vision_tokens):
    model, processor = plain
    if vision_tokens == 1:  # two blocks can leave a quarter at most; pivots and clusters need room
        vision_tokens = {"tome": 5, "dart": 4, "sparsevlm": 2}.get(method.name, 1)
    apply_reduction(model, processor, method, vision_tokens=vision_tokens)
    text = "USER: <image><image>\nWhich? ASSISTANT:"
    inputs = processor(images=[PICTURE, PICTURE.rotate(90)], text=text, return_tensors="pt")
    expected = 16 if isinstance(method, LayerDropping) else vision_tokens
    assert (inputs["input_ids"] == processor.image_token_id).sum() == 2 * expected
    features = model.get_image_features(inputs["pixel_values"]).pooler_output
    assert [tuple(image.shape) for image in features] == 2 * [(expected, 32)]
    assert torch.isfinite(model(**inputs).logits).all()


@pytest.mark.parametrize("name", METHODS)
def test_batches_answer_as_one_by_one(drawn, name):
    llava, pairs = drawn
    apply_reduction(*llava, name, vision_tokens=16)
    try:
        together = llava.ask_batch(pairs, batch_size=len(pairs), max_new_tokens=6)
        assert together == [llava.ask(*pair, max_new_tokens=6) for pair in pairs]
        assert "".join(llava.stream(*pairs[0], max_new_tokens=6)) == together[0]
        assert any(together)
    finally:
        remove_reduction(*llava)


@pytest.mark.parametrize("name", METHODS)
@torch.no_grad()
def test_image_tokens_do_not_depend_on_the_batch(drawn, name):
    llava, pairs = drawn
    model, processor = llava
    pictures = [pairs[index][0] for index in (0, 2, 4, 6)]
    pixels = processor(images=pictures, text=4 * ["<image>x"], return_tensors="pt", padding=True)["pixel_values"]
    apply_reduction(model, processor, name, vision_tokens=16)
    try:
        together = torch.stack(model.get_image_features(pixels).pooler_output)
        alone = torch.cat([torch.stack(model.get_image_features(picture[None]).pooler_output) for picture in pixels])
        torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)
    finally:
        remove_reduction(model, processor)


@pytest.mark.parametrize("name", ["random", "divprune", "visionzip", "holov", "vispruner"])
@torch.no_grad()
def test_kept_patches_are_those_the_llm_sees(plain, name):
    model, processor = plain
    pixels = processor(images=[PICTURE, PICTURE.rotate(90)], text="<image><image>", return_tensors="pt")["pixel_values"]
    every = torch.stack(model.get_image_features(pixels).pooler_output)
    apply_reduction(model, processor, name, vision_tokens=6)
    kept, left = METHODS[name].kept(model, pixels), torch.stack(model.get_image_features(pixels).pooler_output)
    assert kept.shape == (2, 4 if name == "visionzip" else 6)  # one of VisionZip's six is merged, one the class token
    for row in range(2):
        assert kept[row].tolist() == sorted(set(kept[row].tolist()))
        closest = torch.cdist(every[row, kept[row]], left[row]).min(dim=1)
        assert closest.values.max() < 1e-5
        # In raster order; HoloV's are in the order of attention in each crop.
        assert name == "holov" or closest.indices.tolist() == sorted(closest.indices.tolist())


@pytest.mark.parametrize("name", ["pool", "resize", "tome", "prumerge+", "fastv", "sparsevlm", "dart"])
def test_where_nothing_is_kept_as_it_is_nothing_is_drawn(drawn, name):
    (model, processor), _ = drawn
    apply_reduction(model, processor, name, vision_tokens=16)
    try:
        assert METHODS[name].kept(model, torch.zeros(1, 3, 112, 112)) is None
    finally:
        remove_reduction(model, processor)


@pytest.mark.parametrize(("name", "patch"), [("pool", apply_pooling), ("stf", apply_stf)])
@pytest.mark.parametrize("window", [2, 4])
def test_a_method_with_a_name_of_its_own_is_the_same(plain, name, patch, window):
    model, processor = plain
    patch(model, processor, window=window)
    expected, config = logits(model, processor), model.config.to_dict()
    remove_stf(model, processor)
    apply_reduction(model, processor, name, vision_tokens=(4 // window) ** 2)
    assert torch.equal(logits(model, processor), expected)
    assert model.config.to_dict() == config


def answers_of(llava):
    return [llava.ask(PICTURE, question, max_new_tokens=8) for question in ("What is it?", "Where?")]


def traces(model, processor):
    """Everything that a change may touch, but for tensors and modules."""
    own = {name: value for name, value in vars(processor).items() if name not in ("tokenizer", "image_processor")}
    return type(model), type(model.model), model.config, set(vars(model)), set(vars(model.model)), type(processor), own


@by_name
@pytest.mark.parametrize("stock", [True, False], ids=["stock", "loaded"])
@pytest.mark.parametrize("given", [True, False], ids=["processor given", "processor remembered"])
def test_undo_leaves_no_trace(plain_folder, method, stock, given):
    model, processor = load_model(plain_folder, vision_tokens="all")
    if stock:
        processor = LlavaProcessor.from_pretrained(plain_folder)
        processor.patch_size = None  # as in old checkpoints, which then cannot count
    before, text = traces(model, processor), "USER: one </s> two\nWhat?  ASSISTANT:"
    ids = processor(text=text)["input_ids"]
    answers = None if stock else answers_of(LlavaStf(model, processor))
    apply_reduction(model, processor, method, vision_tokens=4)
    processor(images=PICTURE, text=PROMPT)
    processor.chat_template = "{{ 'mine' }}"  # what the user changes meanwhile is kept
    remove_reduction(model, processor if given else None)
    assert processor.chat_template == "{{ 'mine' }}"
    processor.chat_template = before[-1]["chat_template"]
    assert traces(model, processor) == before
    assert processor(text=text)["input_ids"] == ids
    assert stock or answers_of(LlavaStf(model, processor)) == answers


def test_the_embedded_model_answers_as_before(drawn):
    """On these pictures another tokenisation answers otherwise."""
    llava, pairs = drawn
    before = llava.ask_batch(pairs, max_new_tokens=6)
    apply_stf(*llava)
    llava.ask(*pairs[0], max_new_tokens=1)
    remove_stf(*llava)
    assert llava.ask_batch(pairs, max_new_tokens=6) == before


@pytest.mark.parametrize("name", ["stf", "random"])
def test_undo_is_whole_or_refused(plain, plain_folder, name):
    model, processor = plain
    _, other = load_model(plain_folder, vision_tokens="all")
    apply_reduction(model, processor, name, vision_tokens=4)
    changed = traces(model, processor)
    with pytest.raises(FusionError, match="changed together with this model"):
        remove_reduction(model, other)
    assert traces(model, processor) == changed
    remove_reduction(model)
    apply_reduction(model, None, name, vision_tokens=4)
    with pytest.raises(FusionError, match="changed together with this model"):
        remove_reduction(model, processor)
    assert not isinstance(model.config, LlavaStfConfig) or name == "stf"
    remove_reduction(model)
    assert type(model) is LlavaForConditionalGeneration


def test_a_processor_of_two_models_goes_back_step_by_step(plain, plain_folder):
    (one, processor), (two, _) = plain, load_model(plain_folder, vision_tokens="all")
    before = traces(one, processor)
    apply_stf(one, processor, window=4)
    apply_stf(two, processor, window=2)
    with pytest.raises(FusionError, match="changed again since"):
        remove_stf(one)
    remove_stf(two)
    assert processor.fusion_window == 4
    remove_stf(one, processor)
    assert traces(one, processor) == before


def test_copies_are_undone_apart(plain):
    model, processor = plain
    before = logits(model, processor)
    apply_stf(model, processor, window=4)
    fused = logits(model, processor)
    twin, twin_processor = copy.deepcopy(model), copy.deepcopy(processor)
    remove_stf(twin, twin_processor)
    assert torch.equal(logits(twin, twin_processor), before)
    assert torch.equal(logits(model, processor), fused)


def test_random_is_seeded(plain):
    model, processor = plain
    seen = []
    for seed in (0, 0, 1):
        apply_reduction(model, processor, "random", vision_tokens=6, seed=seed)
        torch.rand(1)  # the global generator has no part in it
        seen.append(logits(model, processor))
        remove_reduction(model, processor)
    assert torch.equal(seen[0], seen[1])
    assert not torch.equal(seen[0], seen[2])


@pytest.mark.parametrize("name", METHODS)
def test_tokens_of_every_llm_layer(name):
    # LLaVA-1.5-7B at a quarter: 32 layers, 576 patches, 144 tokens.
    inside = {
        "fastv": [576] * 2 + [144] * 30,
        "dart": [576] * 2 + [144] * 30,
        "pyramiddrop": [576] * 8 + [363] * 8 + [229] * 8 + [144] * 8,
        "sparsevlm": [576] * 3 + [363] * 4 + [229] * 9 + [144] * 16,
    }
    expected = inside.get(name, [144] * 32)
    assert METHODS[name].vision_tokens_per_layer(32, 576, 144) == expected


@pytest.mark.parametrize(("kept", "mean"), [(166, 192), (98, 128), (30, 64), (144, 171)])
def test_budgets_of_published_tables_are_means_over_layers(kept, mean):
    assert round(METHODS["fastv"].mean_tokens(32, 576, kept)) == mean
    assert METHODS["divprune"].mean_tokens(32, 576, kept) == kept


def test_fastv_in_a_shallow_llm_prunes_nothing():
    assert FastV(full_layers=3).vision_tokens_per_layer(3, 16, 4) == [16] * 3
    assert FastV(full_layers=3).vision_tokens_per_layer(5, 16, 4) == [16] * 3 + [4] * 2


def llava_7b(tower="clip", strategy="default"):
    vision = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "image_size": 336}
    kind = CLIPVisionConfig if tower == "clip" else SiglipVisionConfig
    return LlavaConfig(
        vision_config=kind(**vision, patch_size=14),
        text_config=LlamaConfig(),
        vision_feature_select_strategy=strategy,
    )


@pytest.mark.parametrize("name", METHODS)
def test_every_method_gives_144_of_576(name):
    assert check_reduction(llava_7b(), name, 144) is METHODS[name]


@pytest.mark.parametrize(
    ("name", "vision_tokens", "message"),
    [
        ("divprun", 144, "Unknown method 'divprun'.*did you mean 'divprune'"),
        ("stff", 144, "expected one of stf, pool, m3, tokenpacker, mqt, random.*did you mean 'stf'"),
        ("stf", 100, "No window of the 24x24 patches gives 100"),
        ("random", 577, "1 to the image's 576 patches, found 577"),
        ("random", 0, "found 0"),
        ("pool", 100, "No window of the 24x24 patches gives 100"),
        ("resize", 150, "nearest are 144 and 169"),
        (FastV(full_layers=33), 144, "1 to the number of LLM layers, 32; found 33"),
        (FastV(full_layers=0), 144, "found 0"),
    ],
)
def test_what_does_not_fit_is_refused_before_any_weight_is_read(name, vision_tokens, message):
    with pytest.raises(FusionError, match=message):
        check_reduction(llava_7b(), name, vision_tokens)


def test_tome_can_at_most_halve_in_a_block(plain):
    with pytest.raises(FusionError, match="2 blocks leave at least 4 of 16; found vision_tokens 3"):
        apply_reduction(*plain, "tome", vision_tokens=3)
    assert type(plain[0]) is LlavaForConditionalGeneration


@pytest.mark.parametrize("name", ["visionzip", "tome", "prumerge+", "holov", "vispruner"])
def test_methods_that_need_a_class_token_say_so(name):
    with pytest.raises(FusionError, match=r"class token.*'siglip_vision_model'"):
        check_reduction(llava_7b("siglip", "full"), name, 144)


@pytest.mark.parametrize("name", ["fastv", "dart", "pyramiddrop", "sparsevlm"])
def test_what_prunes_in_the_llm_refuses_another_kind(name):
    config = llava_7b()
    config.text_config.model_type = "mistral"
    with pytest.raises(FusionError, match="'mistral'"):
        check_reduction(config, name, 144)


def test_only_a_plain_llava_is_reduced(plain):
    model, processor = plain
    with pytest.raises(FusionError, match="fuses tokens by 'stf'"):
        check_reduction(LlavaStfConfig(**{**llava_7b().to_dict(), "model_type": "llava_stf"}), "random", 144)
    with pytest.raises(FusionError, match="one hidden state"):
        check_reduction(LlavaConfig(vision_feature_layer=[-2, -5]), "random", 144)
    apply_stf(model, processor)
    with pytest.raises(FusionError, match="found LlavaStfForConditionalGeneration"):
        apply_reduction(model, processor, "random", vision_tokens=4)
    remove_stf(model, processor)
    with pytest.raises(FusionError, match="as it was loaded"):
        remove_reduction(model, processor)
    apply_reduction(model, processor, "random", vision_tokens=4)
    with pytest.raises(FusionError, match="remove_reduction"):
        apply_reduction(model, processor, "pool", vision_tokens=4)
    with pytest.raises(FusionError, match="found Reduced"):
        apply_stf(model, processor)


def test_a_reduced_model_is_not_saved(plain, tmp_path):
    model, processor = plain
    apply_reduction(model, processor, "random", vision_tokens=4)
    for part in (model, processor):
        with pytest.raises(FusionError, match="remove_reduction"):
            part.save_pretrained(tmp_path / "reduced")
    assert not (tmp_path / "reduced").exists()
    remove_reduction(model, processor)
    model.save_pretrained(tmp_path / "plain")
    processor.save_pretrained(tmp_path / "plain")
    assert torch.equal(logits(*load_model(tmp_path / "plain", vision_tokens="all")), logits(model, processor))


def test_wrong_number_of_placeholders_is_an_error(plain):
    model, processor = plain
    inputs = processor(images=PICTURE, text=PROMPT, return_tensors="pt")
    apply_reduction(model, processor, "random", vision_tokens=4)
    with pytest.raises(ValueError, match="do not match"):
        model(**inputs)


@pytest.mark.parametrize("name", ["pool", "random", "resize", "divprune"])
@torch.no_grad()
def test_a_tower_without_class_token(plain, name):
    torch.manual_seed(0)
    vision = SiglipVisionConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=3, num_attention_heads=2, image_size=56, patch_size=14,
        vision_use_head=False,
    )  # fmt: skip
    config = LlavaConfig(
        vision_config=vision,
        text_config=plain[0].config.text_config,
        vision_feature_select_strategy="full",
        image_token_index=plain[0].config.image_token_id,
    )
    model = LlavaForConditionalGeneration(config).eval()
    pixels = torch.randn(2, 3, 56, 56)
    every = torch.stack(model.get_image_features(pixels).pooler_output)
    apply_reduction(model, plain[1], name, vision_tokens=16)
    torch.testing.assert_close(torch.stack(model.get_image_features(pixels).pooler_output), every, atol=1e-6, rtol=0)
    remove_reduction(model, plain[1])
    apply_reduction(model, plain[1], name, vision_tokens=4)
    assert torch.stack(model.get_image_features(pixels).pooler_output).shape == (2, 4, 32)
    assert LlavaStf(model, plain[1]).ask(PICTURE, "What?", max_new_tokens=2) is not None
