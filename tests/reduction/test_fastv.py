"""FastV against a slow model that computes everything and masks what was dropped."""

from functools import partial

import pytest
import torch
from PIL import Image
from transformers import LlamaConfig, LlamaModel

from llava_stf import load_model
from llava_stf.errors import FusionError
from llava_stf.inference import user_turn
from llava_stf.models.fusion.modeling import CACHE
from llava_stf.models.llava_stf.vocabulary import suppressed_ids
from llava_stf.reduction import apply_reduction, remove_reduction
from llava_stf.reduction.attention import last_token_attention
from llava_stf.reduction.fastv import FastV
from llava_stf.reduction.layer_tokens import Tokens, best
from llava_stf.world import draw

BUDGET, NEW = 9, 5
QUESTIONS = [
    ((0,), "What shape is at the top?"),
    ((1, 2), "Is there a red circle?"),
    ((3,), "How many shapes are there, and which colours do they have?"),
]


@pytest.fixture(scope="module")
def llava():
    return load_model("tiny-full", dtype="float32")


@pytest.fixture(scope="module")
def slow():
    return load_model("tiny-full", dtype="float32", attn_implementation="eager")


@pytest.fixture(scope="module")
def pictures():
    return [Image.fromarray(draw(index, split="held_out")[1]) for index in range(4)]


def encode(processor, pictures, rows):
    prompts = [
        processor.apply_chat_template([user_turn(question, len(images))], add_generation_prompt=True)
        for images, question in rows
    ]
    flat = [pictures[index] for images, _ in rows for index in images]
    return processor(images=flat, text=prompts, padding=True, padding_side="left", return_tensors="pt")


def settings(model, **others):
    """Greedy, always `NEW` tokens."""
    return {
        "do_sample": False, "max_new_tokens": NEW, "min_new_tokens": NEW, "return_dict_in_generate": True,
        "suppress_tokens": suppressed_ids(model.config), "output_logits": True, **others,
    }  # fmt: skip


@torch.no_grad()
def slowly(llava, inputs, full_layers):
    """New ids and their logits for one prompt [1, T]: no cache, every token in every layer, the dropped ones masked."""
    model = llava.model
    ids, pixels, prompt = inputs["input_ids"], inputs["pixel_values"], inputs["input_ids"].shape[1]
    attention = model(input_ids=ids, pixel_values=pixels, output_attentions=True).attentions[full_layers - 1]
    columns = (ids[0] == model.config.image_token_id).nonzero()[:, 0].view(len(pixels), 64)
    received = attention[0].mean(0)[-1][columns]
    hidden = torch.cat([image[score.argsort()[:-BUDGET]] for image, score in zip(columns, received, strict=True)])
    assert len(hidden) == len(pixels) * (64 - BUDGET)

    def hide(layer, args, kwargs):
        length = args[0].shape[1]
        mask = torch.zeros(1, 1, length, length).masked_fill(torch.ones(length, length).triu(1).bool(), -1e9)
        mask[..., hidden] = -1e9
        return args, kwargs | {"attention_mask": mask}

    hooks = [
        layer.register_forward_pre_hook(hide, with_kwargs=True)
        for layer in model.model.language_model.layers[full_layers:]
    ]
    silent = [*suppressed_ids(model.config), model.generation_config.eos_token_id]
    logits = []
    for _ in range(NEW):
        logits.append(model(input_ids=ids, pixel_values=pixels).logits[0, -1])
        allowed = logits[-1].clone()
        allowed[silent] = -torch.inf
        ids = torch.cat([ids, allowed.argmax().view(1, 1)], dim=1)
    for hook in hooks:
        hook.remove()
    return ids[0, prompt:], torch.stack(logits)


@pytest.mark.parametrize("full_layers", [1, 2, 3])
@pytest.mark.parametrize("rows", [[0], [1], [0, 1, 2]], ids=["one", "two images", "batch"])
def test_generates_as_a_model_that_masks_the_dropped(llava, slow, pictures, rows, full_layers):
    model, processor = llava
    asked = [QUESTIONS[row] for row in rows]
    inputs = encode(processor, pictures, asked)
    apply_reduction(model, processor, FastV(full_layers=full_layers), vision_tokens=BUDGET)
    try:
        found = model.generate(**inputs, **settings(model))
    finally:
        remove_reduction(model, processor)
    for place, row in enumerate(asked):
        ids, logits = slowly(slow, encode(processor, pictures, [row]), full_layers)
        assert found.sequences[place, inputs["input_ids"].shape[1] :].tolist() == ids.tolist()
        own = torch.stack([step[place] for step in found.logits])
        torch.testing.assert_close(own, logits, atol=1e-4, rtol=1e-4)  # float32, sums in another order


def test_cache_holds_what_each_layer_saw(llava, pictures):
    model, processor = llava
    inputs = encode(processor, pictures, QUESTIONS[:1])
    prompt = inputs["input_ids"].shape[1]
    apply_reduction(model, processor, "fastv", vision_tokens=BUDGET)
    try:
        cache = model.generate(**inputs, **settings(model))[CACHE]
    finally:
        remove_reduction(model, processor)
    grown = NEW - 1  # the last token was not read
    lengths = [cache.get_seq_length(layer) for layer in range(4)]
    assert lengths == [prompt + grown] * 2 + [prompt - 64 + BUDGET + grown] * 2


def test_a_batch_is_as_long_as_its_longest_row_that_is_left(llava, pictures):
    # The row of two images is the longer prompt, and loses twice as much.
    model, processor = llava
    inputs = encode(processor, pictures, QUESTIONS)
    left = [int(mask.sum()) - len(images) * (64 - BUDGET) for mask, (images, _) in
            zip(inputs["attention_mask"], QUESTIONS, strict=True)]  # fmt: skip
    apply_reduction(model, processor, "fastv", vision_tokens=BUDGET)
    try:
        with torch.no_grad():
            outputs = model(**inputs, use_cache=True)
    finally:
        remove_reduction(model, processor)
    assert outputs.logits.shape[1] == max(left)
    assert outputs[CACHE].get_seq_length(3) == max(left)
    assert outputs[CACHE].get_seq_length(1) == inputs["input_ids"].shape[1]


@pytest.mark.parametrize(("full_layers", "vision_tokens"), [("all", 1), (1, 64)])
def test_nothing_to_prune_is_the_plain_model(llava, pictures, full_layers, vision_tokens):
    model, processor = llava
    depth = model.config.text_config.num_hidden_layers
    inputs = encode(processor, pictures, QUESTIONS)
    plain = model.generate(**inputs, **settings(model))
    method = FastV(depth if full_layers == "all" else full_layers)
    apply_reduction(model, processor, method, vision_tokens=vision_tokens)
    try:
        pruned = model.generate(**inputs, **settings(model))
    finally:
        remove_reduction(model, processor)
    assert torch.equal(pruned.sequences, plain.sequences)
    for one, other in zip(pruned.logits, plain.logits, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=0)


def test_first_token_without_a_cache_and_with_beams(llava, pictures):
    model, processor = llava
    inputs = encode(processor, pictures, QUESTIONS)
    apply_reduction(model, processor, "fastv", vision_tokens=BUDGET)
    try:
        cached = model.generate(**inputs, **settings(model))
        uncached = model.generate(**inputs, **settings(model, use_cache=False))
        torch.testing.assert_close(uncached.logits[0], cached.logits[0], atol=1e-5, rtol=0)
        beams = model.generate(**inputs, **settings(model, num_beams=3)).sequences[:, -NEW:]
        alone = [
            model.generate(**encode(processor, pictures, [row]), **settings(model, num_beams=3)).sequences[0, -NEW:]
            for row in QUESTIONS
        ]
        assert beams.tolist() == torch.stack(alone).tolist()
    finally:
        remove_reduction(model, processor)


def test_where_pruning_would_go_wrong_it_is_refused(llava, pictures):
    model, processor = llava
    inputs = encode(processor, pictures, QUESTIONS[:1])
    text = processor(text="USER: Hello ASSISTANT:", return_tensors="pt")
    plain = model.generate(**text, max_new_tokens=3, do_sample=False)
    apply_reduction(model, processor, "fastv", vision_tokens=BUDGET)
    try:
        assert torch.equal(model.generate(**text, max_new_tokens=3, do_sample=False), plain)
        for refused in (
            partial(model.generate, **inputs, cache_implementation="static", max_new_tokens=2, do_sample=False),
            partial(model, **inputs, **{CACHE: model(**text, use_cache=True)[CACHE]}),
            partial(model, inputs_embeds=model.get_input_embeddings()(text["input_ids"])),
            partial(model.model.language_model, **text),
            # One new token behind a prompt, and no cache: pruned as a prompt of its own it would answer garbage.
            partial(model, input_ids=text["input_ids"][:, -1:], attention_mask=text["attention_mask"]),
        ):
            with pytest.raises(FusionError, match=r"FastV (prunes|goes on)"):
                refused()
    finally:
        remove_reduction(model, processor)


@pytest.mark.parametrize("side", ["left", "right"])
def test_attention_of_the_last_token(side):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=50, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, initializer_range=0.3, attn_implementation="eager",
    )  # fmt: skip
    llm = LlamaModel(config).eval()
    mask = torch.ones(2, 9, dtype=torch.long)
    mask[1, :3] = 0
    mask = mask if side == "left" else mask.flip(1)
    inputs = {"input_ids": torch.randint(50, (2, 9)), "attention_mask": mask}
    with torch.no_grad():
        outputs = llm(**inputs, output_attentions=True, output_hidden_states=True)
        rotary = llm.rotary_emb(outputs.hidden_states[0], position_ids=torch.arange(9)[None])
        for index, layer in enumerate(llm.layers):
            found = last_token_attention(layer, outputs.hidden_states[index], rotary, mask.bool())
            for row in range(2):
                last = int(mask[row].nonzero()[-1])
                expected = outputs.attentions[index][row].mean(0)[last]
                torch.testing.assert_close(found[row], expected, atol=1e-6, rtol=1e-5)


def test_tokens_left_by_hand():
    attention = torch.tensor([[0.0, 0.1, 0.9, 0.3, 0.5, 0.2, 0.7], [0.0, 0.0, 0.0, 0.0, 0.2, 0.6, 0.2]])
    places = torch.tensor([[0, 1, 1, 0, 1, 1, 0], [0, 0, 0, 0, 1, 1, 0]]).bool()
    mask = torch.tensor([[1, 1, 1, 1, 1, 1, 1], [0, 0, 0, 1, 1, 1, 1]]).bool()
    tokens = Tokens(torch.zeros(2, 7, 1), None, (mask, mask), mask, places, 2)
    rows, columns = tokens.places()
    left = tokens.left(best(attention[rows[:, None], columns], 1))
    assert left.int().tolist() == [[1, 0, 1, 1, 1, 0, 1], [0, 0, 0, 1, 0, 1, 1]]
    assert tokens.behind().int().tolist() == [[0, 0, 0, 0, 0, 0, 1], [0, 0, 0, 0, 0, 0, 1]]
