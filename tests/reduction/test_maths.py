"""The methods' functions on tensors, against slow restatements of their papers."""

from itertools import pairwise

import pytest
import torch
from torch.nn import functional
from transformers import CLIPVisionConfig, CLIPVisionModel

from llava_stf.reduction.class_token import class_attention
from llava_stf.reduction.divprune import most_diverse
from llava_stf.reduction.random_patches import random_patches
from llava_stf.reduction.resize import resize_grid
from llava_stf.reduction.tensors import merge_tokens
from llava_stf.reduction.tome import bipartite_matching, merging_block, patches_after
from llava_stf.reduction.visionzip import VisionZip, contextual_count


@pytest.fixture(scope="module")
def tower():
    """A random CLIP tower of 4 blocks on 36 patches, its attention computed step by step."""
    torch.manual_seed(0)
    config = CLIPVisionConfig(
        hidden_size=24, intermediate_size=48, num_hidden_layers=4, num_attention_heads=3, image_size=84, patch_size=14,
        attn_implementation="eager",
    )  # fmt: skip
    model = CLIPVisionModel(config).eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


def cosine(one, other):
    return float(functional.cosine_similarity(one.float(), other.float(), dim=-1))


@pytest.mark.parametrize("count", [1, 2, 7, 12])
def test_divprune_is_the_greedy_max_min_choice(count):
    torch.manual_seed(count)
    x = torch.randn(3, 12, 5, dtype=torch.float64)
    for row, tokens in enumerate(x):
        far = [[1 - cosine(a, b) for b in tokens] for a in tokens]
        nearest = [min(far[i][j] for j in range(12) if j != i) for i in range(12)]
        chosen = [nearest.index(max(nearest))]
        while len(chosen) < count:
            others = [i for i in range(12) if i not in chosen]
            chosen.append(max(others, key=lambda i: min(far[i][j] for j in chosen)))
        assert most_diverse(x, count)[row].tolist() == sorted(chosen)


def test_divprune_chooses_each_token_once_even_if_all_are_equal():
    assert most_diverse(torch.ones(2, 6, 4), 5).tolist() == [most_diverse(torch.ones(1, 6, 4), 5)[0].tolist()] * 2
    assert len(set(most_diverse(torch.ones(1, 6, 4), 5)[0].tolist())) == 5
    assert most_diverse(torch.ones(1, 1, 4), 1).tolist() == [[0]]


@pytest.mark.parametrize("seed", range(4))
def test_divprune_in_16_bits_as_its_authors_rounds_every_step(seed):
    torch.manual_seed(seed)
    # Crowded around one direction, where cosines in bfloat16 are a handful of values.
    x = (torch.randn(1, 1, 16) + 0.05 * torch.randn(2, 60, 16)).bfloat16()
    found = most_diverse(x, 20, "model")
    for row, tokens in enumerate(x):
        unit = tokens / tokens.norm(dim=1, keepdim=True)
        far = 1 - unit @ unit.T
        chosen = [int(far.sort(dim=0).values[1].argmax())]
        while len(chosen) < 20:
            chosen.append(int(far[chosen].amin(0).argmax()))
        assert found[row].tolist() == sorted(chosen)
        assert len(set(chosen)) < 20  # a token chosen twice
        assert len(set(most_diverse(x, 20)[row].tolist())) == 20


def test_random_patches_belong_to_the_picture():
    pictures = torch.randn(3, 3, 8, 8)
    drawn = random_patches(pictures, 36, 9, seed=0)
    assert drawn.shape == (3, 9)
    assert all(row == sorted(set(row)) and row[0] >= 0 and row[-1] < 36 for row in drawn.tolist())
    assert torch.equal(random_patches(pictures[[2, 0]], 36, 9, seed=0), drawn[[2, 0]])
    assert len({tuple(row) for row in drawn.tolist()}) == 3
    assert not torch.equal(random_patches(pictures, 36, 9, seed=1), drawn)
    every = torch.cat([random_patches(torch.randn(200, 1, 2, 2), 4, 1, seed=0)]).flatten().bincount(minlength=4)
    assert every.min() > 25  # 50 expected of each, standard deviation 6


def test_resize_by_hand():
    # From 4 to 2 along a row the middles of pairs, from 3 to 2 a quarter of the middle on each side.
    assert resize_grid(torch.arange(16.0).view(1, 16, 1), 2).flatten().tolist() == [2.5, 4.5, 10.5, 12.5]
    assert resize_grid(torch.arange(9.0).view(1, 9, 1), 2).flatten().tolist() == [1.0, 2.5, 5.5, 7.0]


def test_merging_takes_the_mean_over_patches():
    x = torch.tensor([[[1.0], [3.0], [8.0], [5.0]]])
    size = torch.tensor([[1.0, 3.0, 1.0, 1.0]])
    merged, sizes = merge_tokens(x, size, torch.tensor([[0, 0, 2, 2]]), torch.tensor([[0, 2]]))
    assert merged.flatten().tolist() == [2.5, 6.5]
    assert sizes.tolist() == [[4.0, 2.0]]


@pytest.mark.parametrize("order", ["authors", "raster"])
@pytest.mark.parametrize(("tokens", "merges"), [(10, 0), (10, 3), (11, 5), (17, 8)])
def test_tome_matches_as_the_paper_says(tokens, merges, order):
    torch.manual_seed(tokens)
    keys = torch.randn(3, tokens, 6)
    home, left = bipartite_matching(keys, merges, order)
    for row, key in enumerate(keys):
        ties = []
        for a in range(2, tokens, 2):  # the class token, 0, is never merged
            b = max(range(1, tokens, 2), key=lambda b: cosine(key[a], key[b]))
            ties.append((cosine(key[a], key[b]), a, b))
        expected = list(range(tokens))
        for _, a, b in sorted(ties, reverse=True)[:merges]:
            expected[a] = b
        assert home[row].tolist() == expected
        raster = [i for i in range(tokens) if expected[i] == i]
        sets = [[i for i in raster if i % 2 == start] for start in (0, 1)]
        assert left[row].tolist() == (raster if order == "raster" else sets[0] + sets[1])


def test_tome_schedule():
    # 432 patches over 23 blocks: 18 or 19 in each.
    after = patches_after(23, 576, 144)
    merged = [before - left for before, left in zip([576, *after], after, strict=False)]
    assert (after[-1], set(merged), sum(merged)) == (144, {18, 19}, 432)
    assert patches_after(3, 16, 16) == [16, 16, 16]
    assert patches_after(4, 16, 1) == [8, 4, 2, 1]  # as late as halving allows
    assert patches_after(3, 16, 4) == [12, 8, 4]
    for patches, left in ((576, 1), (576, 64), (100, 7)):
        steps = [patches, *patches_after(12, patches, left)]
        assert steps[-1] == left
        assert all(now <= before <= 2 * now for before, now in pairwise(steps))


def slow_tome(tower, pixels, schedule, order):
    """The tower's blocks with merging, one picture, attention written out; tokens as lists."""
    x = tower.pre_layrnorm(tower.embeddings(pixels[None]))[0]
    size = torch.ones(len(x))
    for block, left in zip(tower.encoder.layers, schedule, strict=False):
        attention, normed = block.self_attn, block.layer_norm1(x)
        query, keys, values = (
            layer(normed).view(len(x), 3, 8) for layer in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        mixed = torch.empty_like(query)
        for head in range(3):
            scores = query[:, head] @ keys[:, head].T / 8**0.5 + size.log()
            mixed[:, head] = scores.softmax(-1) @ values[:, head]
        x = x + attention.out_proj(mixed.flatten(1))
        home, _ = bipartite_matching(keys.mean(1)[None], len(x) - 1 - left)
        places = (
            [*range(0, len(x), 2), *range(1, len(x), 2)] if order == "authors" and left < len(x) - 1 else range(len(x))
        )
        groups = [[j for j in range(len(x)) if home[0, j] == i] for i in places if home[0, i] == i]
        x = torch.stack([sum(x[j] * size[j] for j in group) / sum(size[j] for j in group) for group in groups])
        size = torch.stack([sum(size[j] for j in group) for group in groups])
        x = x + block.mlp(block.layer_norm2(x))
    return x, size


@pytest.mark.parametrize("order", ["authors", "raster"])
def test_tome_in_the_tower(tower, order):
    torch.manual_seed(1)
    pixels, schedule = torch.randn(2, 3, 84, 84), patches_after(3, 36, 9)
    x, size = tower.pre_layrnorm(tower.embeddings(pixels)), None
    for block, left in zip(tower.encoder.layers, schedule, strict=False):
        x, size = merging_block(block, x, size, left, order)
    assert x.shape == (2, 10, 24)
    for row in range(2):
        expected, sizes = slow_tome(tower, pixels[row], schedule, order)
        torch.testing.assert_close(x[row], expected, atol=1e-5, rtol=1e-5)
        assert size[row].tolist() == sizes.tolist()
        assert size[row].sum() == 37


def test_block_without_merging_is_the_towers_own(tower):
    torch.manual_seed(2)
    states = tower(torch.randn(2, 3, 84, 84), output_hidden_states=True).hidden_states
    for block, below, above in zip(tower.encoder.layers, states, states[1:], strict=False):
        x, size = merging_block(block, below, None, 36)
        # float32, sums of up to 96 terms in another order, values up to 3: 3.5e-6; AVX2 gave 1.2e-6, SSE4.1 2.1e-6.
        torch.testing.assert_close(x, above, atol=8e-6, rtol=0)
        assert size is None


def test_visionzip_reads_the_attention_of_the_class_token(tower):
    torch.manual_seed(3)
    outputs = tower(torch.randn(2, 3, 84, 84), output_hidden_states=True, output_attentions=True)
    for index, block in enumerate(tower.encoder.layers):
        below = outputs.hidden_states[index]
        attention, keys = class_attention(block, below)
        torch.testing.assert_close(attention, outputs.attentions[index].mean(1)[:, 0, 1:], atol=1e-6, rtol=1e-5)
        raw = block.self_attn.k_proj(block.layer_norm1(below)).view(2, 37, 3, 8)
        torch.testing.assert_close(keys, raw.mean(2)[:, 1:], atol=1e-6, rtol=1e-5)


def test_visionzip_splits_as_the_paper():
    assert [(count - contextual_count(count), contextual_count(count)) for count in (192, 128, 64, 144, 2)] == [
        (162, 30), (108, 20), (54, 10), (122, 22), (2, 0),
    ]  # fmt: skip


OURS = VisionZip(class_token=False, contextual="mean", targets="spread", order="raster")


@pytest.mark.parametrize("method", [VisionZip(), OURS, VisionZip(order="raster")], ids=["authors", "ours", "raster"])
@pytest.mark.parametrize("count", [1, 5, 13, 29, 36])
def test_visionzip_against_loops(count, method):
    torch.manual_seed(count)
    state, keys, attention = torch.randn(2, 37, 4), torch.randn(2, 36, 5), torch.rand(2, 36)
    merged = contextual_count(count)
    for row in range(2):
        x = state[row, 1:]
        ranked = sorted(range(36), key=lambda i: -attention[row, i])
        dominant = ranked[: count - merged - method.class_token]
        rest = [i for i in range(36) if i not in dominant]
        if method.targets == "stride" and merged:
            targets = rest[:: max(1, len(rest) // merged)][:merged]
        else:
            targets = [rest[step * len(rest) // merged] for step in range(merged)]
        groups = {target: [] for target in targets}
        for other in rest:
            if targets and other not in targets:
                groups[max(targets, key=lambda t: cosine(keys[row, other], keys[row, t]))].append(other)
        tokens = {i: x[i] for i in sorted(dominant)}
        for target, group in groups.items():
            if method.contextual == "mean":
                tokens[target] = x[[target, *group]].mean(0)
            else:
                tokens[target] = x[target] + (x[group].mean(0) if group else 0)
        expected = [tokens[i] for i in (sorted(tokens) if method.order == "raster" else tokens)]
        expected = torch.stack([state[row, 0], *expected] if method.class_token else expected)
        found = method.zip_tokens(state, attention, keys, count)[row]
        assert len(expected) == count
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)


def test_equal_tokens_merge_into_one_another():
    # Every target is as close to the others as to itself, and stays its own all the same.
    found = OURS.zip_tokens(torch.ones(1, 37, 4), torch.rand(1, 36), torch.ones(1, 36, 5), 13)
    assert torch.equal(found, torch.ones(1, 13, 4))
