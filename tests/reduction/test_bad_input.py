"""What a method cannot do is one sentence, raised before anything of the model is changed."""

import pytest
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaNextConfig, SiglipVisionConfig

from llava_stf import LlavaStfConfig, apply_pooling, apply_stf, load_model
from llava_stf.errors import CheckpointError, FusionError
from llava_stf.reduction import METHODS, apply_reduction, check_reduction, remove_reduction
from llava_stf.reduction.apply import apply_fusing
from llava_stf.reduction.divprune import DivPrune
from llava_stf.reduction.fastv import FastV
from llava_stf.reduction.holov import HoloV
from llava_stf.reduction.m3 import M3
from llava_stf.reduction.pool import Pool
from llava_stf.reduction.stf import Stf
from llava_stf.reduction.tome import ToMe
from llava_stf.reduction.visionzip import VisionZip

CLASS_TOKEN = ["tome", "visionzip", "vispruner", "holov", "prumerge+"]
IN_THE_LLM = ["fastv", "dart", "pyramiddrop", "sparsevlm"]


def llava_7b(tower="clip", strategy="default", llm="llama", layers=32, select=-2):
    vision = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "image_size": 336}
    kind = CLIPVisionConfig if tower == "clip" else SiglipVisionConfig
    text = LlamaConfig(num_hidden_layers=layers)
    text.model_type = llm
    return LlavaConfig(
        vision_config=kind(**vision, patch_size=14), text_config=text, vision_feature_select_strategy=strategy,
        vision_feature_layer=select,
    )  # fmt: skip


def refusal(call, *args, **kwargs):
    with pytest.raises(FusionError) as error:
        call(*args, **kwargs)
    text = str(error.value)
    assert "\n" not in text
    assert text.endswith(".")
    return text


@pytest.mark.parametrize("vision_tokens", [0, -1, 577, "144", 144.0, None, True])
def test_a_budget_that_is_none(vision_tokens):
    for name in METHODS:
        text = refusal(check_reduction, llava_7b(), name, vision_tokens)
        assert f"1 to the image's 576 patches, found {vision_tokens!r}" in text


@pytest.mark.parametrize(
    ("name", "least", "named"),
    [("dart", 4, "keeps its pivots"), ("sparsevlm", 2, "cluster"), ("tome", 1, None), ("stf", 1, None)],
)
def test_below_what_a_method_needs(name, least, named):
    check_reduction(llava_7b(), name, least)
    if named is not None:
        assert named in refusal(check_reduction, llava_7b(), name, least - 1)


@pytest.mark.parametrize("name", CLASS_TOKEN)
@pytest.mark.parametrize("strategy", ["full", "default"])
def test_a_tower_without_a_class_token(name, strategy):
    named = {"full": "class token", "default": "in a siglip_vision_model they follow 0"}[strategy]
    assert named in refusal(check_reduction, llava_7b("siglip", strategy), name, 144)


@pytest.mark.parametrize("name", IN_THE_LLM)
def test_another_language_model(name):
    assert "'mistral'" in refusal(check_reduction, llava_7b(llm="mistral"), name, 144)


@pytest.mark.parametrize("name", ["m3", "tokenpacker", "mqt"])
def test_resamplers_and_tiles(name):
    assert "cuts images into tiles" in refusal(check_reduction, LlavaNextConfig(), name, 144)


@pytest.mark.parametrize("first", ["random", "pool", "fastv", "tokenpacker"])
def test_a_model_that_is_fused_or_reduced_already(first, plain_folder):
    model, processor = load_model(plain_folder, vision_tokens="all")
    apply_reduction(model, processor, first, vision_tokens=4)
    kind, config = type(model), model.config
    assert "remove_reduction" in refusal(apply_pooling, model, processor)
    for name in METHODS:
        assert "remove_reduction" in refusal(apply_reduction, model, processor, name, vision_tokens=4)
    assert (type(model), model.config) == (kind, config)
    remove_reduction(model, processor)


def test_a_config_that_fuses_already():
    fused = LlavaStfConfig(**{**llava_7b().to_dict(), "model_type": "llava_stf"})
    for name in METHODS:
        assert "plain LLaVA" in refusal(check_reduction, fused, name, 144)


@pytest.mark.parametrize("methods", [["random", "fastv"], ("tome",), None, 3])
def test_several_methods_at_once_or_none(methods):
    assert "one method" in refusal(check_reduction, llava_7b(), methods, 144)


def test_no_stage_where_the_llm_is_too_shallow():
    assert "3" in refusal(check_reduction, llava_7b(layers=3), "pyramiddrop", 144)


@pytest.mark.parametrize(
    ("method", "meant"),
    [
        (
            VisionZip(order="RASTER", contextual="Added", class_token="false"),
            VisionZip(order="raster", class_token=False),
        ),
        (ToMe(order="Authors", attention_bias="false"), ToMe()),
        (Pool(attention_bias="false"), Pool()),
        (DivPrune(dtype="FLOAT32"), DivPrune()),
        (FastV(full_layers="3"), FastV(full_layers=3)),
        (HoloV(crops="4"), HoloV(crops=4)),
    ],
    ids=lambda method: method.name,
)
def test_options_are_taken_as_they_are_meant(method, meant):
    assert check_reduction(llava_7b(), method, 144) == meant


@pytest.mark.parametrize("method", [VisionZip(order="column"), FastV(full_layers="few"), Pool(attention_bias="maybe")])
def test_an_option_without_such_a_value(method):
    assert f"of method '{method.name}' is" in refusal(check_reduction, llava_7b(), method, 144)


@pytest.mark.parametrize("name", ["visionzip", "vispruner", "holov", "prumerge+"])
def test_a_state_that_no_block_has_made(name):
    assert "vision_feature_layer 0" in refusal(check_reduction, llava_7b(select=0), name, 144)


def test_what_one_layer_or_several_budgets_do_not_go_with():
    assert "found one layer" in refusal(check_reduction, llava_7b(layers=1), "sparsevlm", 144)
    assert "M3 has no attention_bias" in refusal(check_reduction, llava_7b(), M3(attention_bias=True), 144)


@pytest.mark.parametrize("seed", ["a", "3", 1.5, None, True, 2**64])
def test_a_seed_that_is_none(seed, plain_folder):
    model, processor = load_model(plain_folder, vision_tokens="all")
    for call, options in (
        (apply_stf, {}),
        (apply_fusing, {"method": "tokenpacker", "window": 2}),
        (apply_reduction, {"method": "random", "vision_tokens": 4}),
    ):
        assert f"found {seed!r}" in refusal(call, model, processor, seed=seed, **options)
    assert type(model).__name__ == "LlavaForConditionalGeneration"


@pytest.mark.parametrize("layers", ["all", [], ["a"], [1.5], True])
def test_fusion_layers_that_are_none(layers, plain_folder):
    model, processor = load_model(plain_folder, vision_tokens="all")
    for call, options in ((apply_stf, {"fusion_layers": layers}), (apply_reduction, {"method": Stf(layers)})):
        budget = {} if call is apply_stf else {"vision_tokens": 4}
        said = "fusion_layers must be whole numbers of hidden states, found"
        assert said in refusal(call, model, processor, **options, **budget)


def test_fusion_layers_as_a_tuple_are_a_list(plain_folder):
    model, processor = load_model(plain_folder, vision_tokens="all")
    assert apply_stf(model, processor, fusion_layers=(1, 2)).config.fusion_layers == [1, 2]


@pytest.mark.parametrize("init", [5, None])
def test_a_start_that_is_none(init, plain_folder):
    with pytest.raises(CheckpointError, match=f"an adapter file; there is no file '{init}'"):
        apply_stf(*load_model(plain_folder, vision_tokens="all"), init=init)


@pytest.mark.parametrize("counts", [(0, 576, 144), (32, 576, 0), (32, 576, 577), (32, 576, "144"), (32, 576, 144.0)])
@pytest.mark.parametrize("name", ["divprune", "sparsevlm"])
def test_a_mean_of_nothing(name, counts):
    assert "1 to all 576 patches" in refusal(METHODS[name].mean_tokens, *counts)
