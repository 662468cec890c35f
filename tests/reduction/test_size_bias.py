"""An image token of s patches weighs as s keys: what that is equal to, and that nothing on the way loses it."""

import pytest
import torch
from PIL import Image
from transformers import DynamicCache

from llava_stf import load_model
from llava_stf.errors import ExportError, FusionError
from llava_stf.inference import generation, user_turn
from llava_stf.models.fusion.modeling import CACHE
from llava_stf.reduction import apply_reduction, remove_reduction
from llava_stf.reduction.pool import Pool
from llava_stf.reduction.size_bias import rows_of_images
from llava_stf.reduction.tome import ToMe

IMAGES = [Image.radial_gradient("L").convert("RGB"), Image.linear_gradient("L").convert("RGB").resize((80, 50))]
METHODS = [Pool(attention_bias=True), ToMe(attention_bias=True)]


def biased(folder, method, **options):
    llava = load_model(folder, vision_tokens="all", device="cpu", dtype="float32", **options)
    apply_reduction(llava.model, llava.processor, method, vision_tokens=4)
    return llava


@pytest.fixture(scope="module", params=METHODS, ids=lambda method: method.name)
def llava(request, plain_folder):
    return biased(plain_folder, request.param)


def encoded(llava, *pairs):
    """Prompts of (images, question)."""
    turns = [[user_turn(question, len(images))] for images, question in pairs]
    return llava.encode(turns, [images for images, _ in pairs])


@torch.no_grad()
def test_a_token_weighs_as_its_patches_would(llava):
    inputs, model = encoded(llava, (IMAGES, "What is it?")), llava.model
    logits = model(**inputs).logits[0]
    tokens = torch.cat(model.get_image_features(inputs["pixel_values"]).pooler_output)
    sizes = model.model.reduction.encoded.sizes
    assert sizes.sum(1).tolist() == [16, 16]
    places = inputs["input_ids"][0] == model.config.image_token_id
    times = torch.ones(len(places), dtype=torch.long)
    times[places] = sizes.flatten().long()
    states = model.get_input_embeddings()(inputs["input_ids"][0])
    states[places] = tokens
    # Every token as often as it has patches, all copies at one position, each seeing the others.
    column = torch.arange(len(places)).repeat_interleave(times)
    mask = (column[None] <= column[:, None])[None, None]
    for hook in model.model.language_model._forward_pre_hooks.copy():
        plain = model.model.language_model._forward_pre_hooks.pop(hook)
        plain_kwargs = model.model.language_model._forward_pre_hooks_with_kwargs.pop(hook)
    found = model.model.language_model(
        inputs_embeds=states[column][None], attention_mask=mask, position_ids=column[None], use_cache=False
    ).last_hidden_state
    model.model.language_model._forward_pre_hooks[hook] = plain
    model.model.language_model._forward_pre_hooks_with_kwargs[hook] = plain_kwargs
    firsts = torch.cat([torch.tensor([0]), times.cumsum(0)[:-1]])
    torch.testing.assert_close(logits, model.lm_head(found)[0, firsts], atol=1e-5, rtol=1e-4)
    reference = model.model.language_model
    assert reference._forward_pre_hooks


@torch.no_grad()
def test_batches_padding_and_cache_keep_it(llava):
    pairs = [(IMAGES, "Which of these two is brighter?"), (IMAGES[1:], "Why?"), ([], "Who are you?")]
    batch = encoded(llava, *pairs)
    together = llava.model(**batch).logits
    for row, pair in enumerate(pairs):
        alone = encoded(llava, pair)
        if not pair[0]:
            alone.pop("pixel_values", None)
        whole = llava.model(**alone).logits[0]
        torch.testing.assert_close(together[row, -len(whole) :], whole, atol=1e-5, rtol=1e-4)
    alone = encoded(llava, pairs[0])
    whole, ids, cache = llava.model(**alone).logits, alone["input_ids"], DynamicCache()
    steps = []
    last = int((ids[0] == llava.model.config.image_token_id).nonzero()[-1]) + 1
    for start, end in ((0, last), (last, last + 1), (last + 1, ids.shape[1])):
        pixels = {} if start else {"pixel_values": alone["pixel_values"]}
        mask = torch.ones(1, end, dtype=torch.long)
        steps.append(llava.model(input_ids=ids[:, start:end], attention_mask=mask, **pixels, **{CACHE: cache}).logits)
    torch.testing.assert_close(torch.cat(steps, dim=1), whole, atol=1e-5, rtol=1e-4)


def test_answers_of_every_way_are_those_of_a_fresh_prompt(llava):
    questions = ["What is it?", "Why?", "And this?"]
    pairs = [(IMAGES, questions[0]), (IMAGES[0], questions[1])]
    alone = [llava.ask(*pair, max_new_tokens=8) for pair in pairs]
    assert llava.ask_batch(pairs, batch_size=2, max_new_tokens=8) == alone
    assert "".join(llava.stream(*pairs[0], max_new_tokens=8)) == alone[0]
    beams = {"num_beams": 2, "max_new_tokens": 6}
    searched = pairs if generation._REPEATS_PROMPTS else [(IMAGES[1], questions[0]), pairs[1]]
    assert llava.ask_batch(searched, batch_size=2, **beams) == [llava.ask(*pair, **beams) for pair in searched]
    assert not llava.reuses()
    chat = llava.chat(IMAGES[0])
    for number, question in enumerate(questions):
        if number == 1:
            chat.add_image(IMAGES[1])
        answer = chat.ask(question, max_new_tokens=5)
        assert answer == llava._answers(llava.encode([chat.messages[:-1]], [chat.images]), 5, {})[0]


def test_rows_of_beams():
    assert rows_of_images([2, 1], 3).tolist() == [0, 1, 2]
    assert rows_of_images([2, 2, 1, 1], 3).tolist() == [0, 1, 0, 1, 2, 2]


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_undone_it_is_the_model_of_before(plain_folder, method):
    llava = load_model(plain_folder, vision_tokens="all", device="cpu", dtype="float32")
    inputs = encoded(llava, (IMAGES, "What?"))
    with torch.no_grad():
        before = llava.model(**inputs).logits
        apply_reduction(llava.model, llava.processor, method, vision_tokens=4)
        with_bias = llava.model(**encoded(llava, (IMAGES, "What?"))).logits[:, -1]
        remove_reduction(llava.model)
        assert torch.equal(llava.model(**inputs).logits, before)
        apply_reduction(llava.model, llava.processor, type(method)(), vision_tokens=4)
        without = llava.model(**encoded(llava, (IMAGES, "What?"))).logits[:, -1]
    assert not torch.allclose(with_bias, without)


def test_what_cannot_be_is_refused(plain_folder, stf_folder, tmp_path):
    from llava_stf.export.write import export_model

    llava = biased(plain_folder, METHODS[0])
    inputs = encoded(llava, (IMAGES, "What?"))
    with pytest.raises(ExportError, match="attention_bias is a mask"):
        export_model(llava, tmp_path / "export")
    with pytest.raises(FusionError, match="no checkpoint can hold"):
        llava.model.save_pretrained(tmp_path / "saved")
    with pytest.raises(FusionError, match="not compiled"):
        llava.generate(inputs, max_new_tokens=2, cache_implementation="static")
    foreign = {CACHE: DynamicCache(config=llava.model.config.text_config)}
    foreign[CACHE].update(torch.zeros(1, 2, 3, 16), torch.zeros(1, 2, 3, 16), 0)
    with pytest.raises(FusionError, match="filled from its beginning"):
        llava.model(input_ids=inputs["input_ids"][:, -1:], attention_mask=torch.ones(1, 4), **foreign)
    llava.model.model.language_model.config._attn_implementation = "flash_attention_2"
    with pytest.raises(FusionError, match="sdpa or eager; found 'flash_attention_2'"):
        llava.model(**inputs)
    trained = load_model(stf_folder, device="cpu")
    with pytest.raises(FusionError, match="Expected a plain"):
        apply_reduction(trained.model, trained.processor, METHODS[0], vision_tokens=4)
    with pytest.raises(FusionError, match="take apply_reduction"):
        METHODS[0].fuse(trained.model, 2, 0)
