"""What drops image tokens inside the LLM, against a slow model: one prompt, no cache, lists of tokens, whole maps."""

from dataclasses import dataclass
from itertools import pairwise

import pytest
import torch
from PIL import Image
from torch.nn import functional

from llava_stf import load_model
from llava_stf.errors import FusionError
from llava_stf.inference import user_turn
from llava_stf.models.fusion.modeling import CACHE
from llava_stf.models.llava_stf.vocabulary import suppressed_ids
from llava_stf.reduction import METHODS, apply_reduction, check_reduction, remove_reduction
from llava_stf.reduction.dart import DART
from llava_stf.reduction.fastv import FastV
from llava_stf.reduction.pyramiddrop import PyramidDrop
from llava_stf.reduction.sparsevlm import SparseVLM, cluster_means, kept_count, recycled, text_raters
from llava_stf.world import draw

BUDGET, NEW = 9, 4
QUESTIONS = [
    ((0,), "What shape is at the top?"),
    ((1, 2), "Is there a red circle?"),
    ((3,), "How many shapes are there, and which colours do they have?"),
]
DROPPING = [FastV(), PyramidDrop(), PyramidDrop(parts=3), DART(), DART(1, 2, 3), SparseVLM()]
each = pytest.mark.parametrize("method", DROPPING, ids=str)


@pytest.fixture(scope="module")
def llava():
    return load_model("tiny-full", dtype="float32")


@pytest.fixture(scope="module")
def slow():
    return load_model("tiny-full", dtype="float32", attn_implementation="eager").model


@pytest.fixture(scope="module")
def images():
    return [Image.fromarray(draw(index, split="held_out")[1]) for index in range(4)]


def encode(processor, images, rows):
    prompts = [
        processor.apply_chat_template([user_turn(question, len(own))], add_generation_prompt=True)
        for own, question in rows
    ]
    flat = [images[index] for own, _ in rows for index in own]
    return processor(images=flat, text=prompts, padding=True, padding_side="left", return_tensors="pt")


def settings(model):
    """Greedy, always `NEW` tokens."""
    return {
        "do_sample": False, "max_new_tokens": NEW, "min_new_tokens": NEW, "return_dict_in_generate": True,
        "suppress_tokens": suppressed_ids(model.config), "output_logits": True,
    }  # fmt: skip


@dataclass
class Line:
    """The tokens of one prompt at some layer: hidden states, positions, and which image each is of, -1 for text."""

    hidden: list
    positions: list
    owner: list
    prompt: int  # tokens that are no answer yet

    def columns(self, image):
        return [column for column in range(self.prompt) if self.owner[column] == image]

    def words(self):
        return [column for column in range(self.prompt) if column > max(self.columns(max(self.owner)))]


def attention_map(layer, rotary_emb, line):
    """The layer's attention, mean over heads [T, T], and its rotated keys [T, all heads]."""
    hidden = layer.input_layernorm(torch.stack(line.hidden)[None])
    rotary = rotary_emb(hidden, position_ids=torch.tensor([line.positions]))
    mask = torch.full((len(line.hidden),) * 2, -1e9).triu(1)[None, None]
    _, weights = layer.self_attn(hidden_states=hidden, position_embeddings=rotary, attention_mask=mask)
    keys = layer.self_attn.k_proj(hidden)[0].unflatten(-1, (-1, layer.self_attn.head_dim))  # [T, heads, head_dim]
    half = keys.shape[-1] // 2
    turned = keys * rotary[0][0, :, None] + torch.cat([-keys[..., half:], keys[..., :half]], -1) * rotary[1][0, :, None]
    return weights[0].mean(0), turned.flatten(1)


def slow_choice(method, llm, layer, before, line, raters, count):
    """For each image its new tokens: pairs of hidden state and the column that stays, `None` for a merged one."""
    new, last = {}, line.prompt - 1
    weights, keys = attention_map(llm.layers[layer - 1], llm.rotary_emb, before)
    following, _ = attention_map(llm.layers[layer], llm.rotary_emb, line)
    for image in range(max(line.owner) + 1):
        own = line.columns(image)
        if isinstance(method, FastV | PyramidDrop):
            score = (weights if isinstance(method, FastV) else following)[last]
            stay = sorted(sorted(own, key=lambda column: -score[column])[:count])
            new[image] = [(line.hidden[column], column) for column in stay]
        elif isinstance(method, DART):
            pivots, rest = loudest(keys, own, method.image_pivots), count - method.image_pivots
            stay, pool = set(pivots), set(own) - set(pivots)
            choosing = list(set(pivots + loudest(keys, line.words(), method.text_pivots)))
            states = llm.norm(torch.stack(line.hidden))
            for turn, pivot in enumerate(choosing):
                share = rest // len(choosing) + (1 if turn < rest % len(choosing) else 0)
                taken = least_alike(states, pivot, pool, share)
                stay |= set(taken)
                pool -= set(taken)
            new[image] = [(line.hidden[column], column) for column in sorted(stay)]
        else:
            score = weights[raters].mean(0)
            order = sorted(own, key=lambda column: -score[column])
            kept = kept_count(len(own), count)
            candidates, clusters = recycled(len(own) - kept)
            means = slow_clusters([line.hidden[column] for column in order[kept:][:candidates]], clusters)
            new[image] = [(line.hidden[column], column) for column in sorted(order[:kept])]
            new[image] += [(mean, None) for mean in means]
    return new


def loudest(keys, columns, many):
    return sorted(columns, key=lambda column: -keys[column].abs().sum())[:many]


def least_alike(states, pivot, columns, many):
    return sorted(columns, key=lambda column: functional.cosine_similarity(states[pivot], states[column], dim=0))[:many]


def slow_clusters(states, count):
    """Density peaks as the paper has them, token by token."""
    many, root = len(states), len(states[0]) ** 0.5
    far = [[float((one - other).norm()) / root for other in states] for one in states]
    density = [float(torch.tensor([-(sum(d * d for d in sorted(row)[:count]) / count)]).exp()) for row in far]
    farthest = max(map(max, far))
    dense = [(value, -i) for i, value in enumerate(density)]
    gap = [min([far[i][j] for j in range(many) if dense[j] > dense[i]] + [farthest]) for i in range(many)]
    centres = sorted(range(many), key=lambda i: -gap[i] * density[i])[:count]
    groups = {centre: [] for centre in centres}
    for i in range(many):
        groups[i if i in groups else min(centres, key=lambda centre: far[i][centre])].append(states[i])
    return [torch.stack(groups[centre]).mean(0) for centre in centres]


@torch.no_grad()
def slow_logits(method, model, inputs, ids):
    """Logits behind ids [T], which begin with the prompt of inputs."""
    llm, prompt = model.model.language_model, inputs["input_ids"].shape[1]
    features = torch.cat(model.get_image_features(inputs["pixel_values"]).pooler_output)
    hidden, owner, seen = [], [], 0
    for token in ids:
        placeholder = token == model.config.image_token_id
        hidden.append(features[seen] if placeholder else llm.embed_tokens(torch.tensor(token)))
        owner.append(seen // 64 if placeholder else -1)
        seen += placeholder
    line, stages = Line(hidden, list(range(len(ids))), owner, prompt), method.stages(len(llm.layers), 64, BUDGET)
    words, patches = line.words(), [column for column in range(prompt) if owner[column] >= 0]
    share = (torch.stack([hidden[p] for p in patches]) @ torch.stack([hidden[w] for w in words]).T).softmax(-1).mean(0)
    raters = [column - prompt for column, value in zip(words, share, strict=True) if value > share.mean()]
    before = None
    for index, layer in enumerate(llm.layers):
        if index in stages:
            asked = [column + line.prompt for column in raters]
            new = slow_choice(method, llm, index, before, line, asked, stages[index])
            order, length = [], len(line.hidden)
            for column in range(length):
                if line.owner[column] < 0:
                    order.append((line.hidden[column], line.positions[column], -1))
                elif column == line.columns(line.owner[column])[0]:
                    order += [
                        (state, None if at is None else line.positions[at], line.owner[column])
                        for state, at in new[line.owner[column]]
                    ]
            states, positions, owners = (list(part) for part in zip(*order, strict=True))
            if method.renumber:
                positions = list(range(len(states)))
            line = Line(states, positions, owners, line.prompt - (length - len(states)))
        before = line
        stacked = torch.stack(line.hidden)[None]
        rotary = llm.rotary_emb(stacked, position_ids=torch.tensor([line.positions]))
        mask = torch.full((len(line.hidden),) * 2, -1e9).triu(1)[None, None]
        out = layer(stacked, attention_mask=mask, position_embeddings=rotary)
        line = Line(list(out[0]), line.positions, line.owner, line.prompt)
    return model.lm_head(llm.norm(line.hidden[-1]))


@each
def test_generates_as_the_slow_model(llava, slow, images, method):
    """A batch of prompts of one and two images, with a cache."""
    model, processor = llava
    inputs = encode(processor, images, QUESTIONS)
    apply_reduction(model, processor, method, vision_tokens=BUDGET)
    try:
        found = model.generate(**inputs, **settings(model))
    finally:
        remove_reduction(model, processor)
    silent = [*suppressed_ids(model.config), model.generation_config.eos_token_id]
    for place, row in enumerate(QUESTIONS):
        alone = encode(processor, images, [row])
        ids = alone["input_ids"][0].tolist()
        for step in range(NEW):
            expected = slow_logits(method, slow, alone, ids)
            # Float32, sums in another order.
            torch.testing.assert_close(found.logits[step][place], expected, atol=1e-4, rtol=1e-4)
            expected[silent] = -torch.inf
            ids.append(int(expected.argmax()))
        assert found.sequences[place, -NEW:].tolist() == ids[-NEW:]


@each
def test_a_second_turn_goes_on_from_what_the_prompt_left(llava, slow, images, method):
    """Several tokens at once behind a pruned prompt."""
    model, processor = llava
    inputs = encode(processor, images, QUESTIONS[:1])
    more = torch.tensor([[11, 12, 13]])
    apply_reduction(model, processor, method, vision_tokens=BUDGET)
    try:
        with torch.no_grad():
            first = model(**inputs, use_cache=True)
            mask = torch.ones(1, inputs["input_ids"].shape[1] + 3, dtype=torch.long)
            second = model(input_ids=more, attention_mask=mask, **{CACHE: first[CACHE]})
    finally:
        remove_reduction(model, processor)
    expected = slow_logits(method, slow, inputs, [*inputs["input_ids"][0].tolist(), 11, 12, 13])
    torch.testing.assert_close(second.logits[0, -1], expected, atol=1e-4, rtol=1e-4)


@each
def test_layers_work_on_as_many_tokens_as_is_said(llava, images, method):
    model, processor = llava
    inputs = encode(processor, images, QUESTIONS[:1])
    text, seen = inputs["input_ids"].shape[1] - 64, []
    apply_reduction(model, processor, method, vision_tokens=BUDGET)
    hooks = [
        layer.mlp.register_forward_pre_hook(lambda _, args: seen.append(args[0].shape[1] - text))
        for layer in model.model.language_model.layers
    ]
    try:
        with torch.no_grad():
            cache = model(**inputs, use_cache=True)[CACHE]
    finally:
        for hook in hooks:
            hook.remove()
        remove_reduction(model, processor)
    depth = len(hooks)
    assert seen == method.vision_tokens_per_layer(depth, 64, BUDGET)
    assert [cache.get_seq_length(layer) - text for layer in range(depth)] == seen
    assert seen[-1] == BUDGET
    assert method.mean_tokens(depth, 64, BUDGET) == sum(seen) / depth


@pytest.mark.parametrize(
    ("name", "kept", "layers", "mean"),
    [
        ("pyramiddrop", 72, [576] * 8 + [288] * 8 + [144] * 8 + [72] * 8, 270),
        ("dart", 132, [576] * 2 + [132] * 30, 159.75),
        ("sparsevlm", 113, [576] * 3 + [309] * 4 + [204] * 9 + [113] * 16, 206.5),
        ("sparsevlm", 39, [576] * 3 + [312] * 4 + [117] * 9 + [39] * 16, 145.40625),
        ("sparsevlm", 18, [576] * 3 + [82] * 4 + [32] * 9 + [18] * 16, 82.25),
    ],
)
def test_the_authors_budgets(name, kept, layers, mean):
    method = METHODS[name]
    assert method.vision_tokens_per_layer(32, 576, kept) == layers
    assert method.mean_tokens(32, 576, kept) == mean


def test_sparsevlm_counts_as_its_authors():
    """The lists of release 1.5, and the mean of what layers put out, which its log prints for 192."""
    for total, kept in ((113, (300, 200, 110)), (39, (303, 110, 36)), (18, (66, 30, 17))):
        counts = [576, *SparseVLM().stages(32, 576, total).values()]
        assert [kept_count(*pair) for pair in pairwise(counts)] == list(kept)
    assert (2 * 576 + 4 * 309 + 9 * 204 + 17 * 113) / 32 == 192.03125


def test_sparsevlm_reaches_every_budget():
    for before in (8, 64, 100):
        for after in range(recycled(before - 1)[1] + 1, before):
            kept = kept_count(before, after)
            assert kept >= 1
            assert kept + recycled(before - kept)[1] == after


@pytest.mark.parametrize("count", [1, 2, 5])
def test_clusters_by_hand(count):
    torch.manual_seed(count)
    x = torch.randn(3, 14, 6)
    found = cluster_means(x, count)
    for row in range(3):
        torch.testing.assert_close(found[row], torch.stack(slow_clusters(list(x[row]), count)), atol=1e-6, rtol=1e-5)
    assert torch.equal(cluster_means(torch.ones(1, 5, 3), 2), torch.ones(1, 2, 3))


def test_words_that_do_not_stand_out_all_rate():
    hidden, image = torch.ones(1, 5, 2), torch.tensor([[1, 1, 0, 0, 0]]).bool()
    assert text_raters(hidden, image, ~image).int().tolist() == [[0, 0, 1, 1, 1]]


@pytest.mark.parametrize(
    ("method", "vision_tokens", "message"),
    [
        (PyramidDrop(parts=1), 9, "parts must be 2 to the number of LLM layers, 32; found 1"),
        (DART(), 3, "at least one of each image: expected image_pivots of 1 to vision_tokens, 3, found 4"),
        (DART(full_layers=0), 9, "DART's full_layers must be 1 to the number of LLM layers"),
        (SparseVLM(), 1, "keeps a token beside each cluster .* vision_tokens 1, which takes"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_refused(method, vision_tokens, message, slow):
    config = type(slow.config)(text_config=type(slow.config.text_config)())
    with pytest.raises(FusionError, match=message):
        check_reduction(config, method, vision_tokens)


@each
def test_refuses_what_it_cannot_prune(llava, images, method):
    model, processor = llava
    inputs = encode(processor, images, QUESTIONS[:1])
    apply_reduction(model, processor, method, vision_tokens=BUDGET)
    try:
        with pytest.raises(FusionError, match=f"{method.title} prunes a whole prompt"):
            model.generate(**inputs, cache_implementation="static", max_new_tokens=2, do_sample=False)
        with pytest.raises(FusionError, match=f"{method.title} prunes by the place of the image"):
            model(inputs_embeds=model.get_input_embeddings()(inputs["input_ids"]))
    finally:
        remove_reduction(model, processor)
