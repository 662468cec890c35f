"""Methods that rank patches by the class token: HoloV, VisPruner and PruMerge+ against loops over lists."""

from dataclasses import replace

import pytest
import torch
from torch.nn import functional

from llava_stf.errors import FusionError
from llava_stf.reduction import check_reduction
from llava_stf.reduction.holov import HoloV, crop_scores, shares
from llava_stf.reduction.prumerge import PruMergePlus, joint_attention, kept_patches
from llava_stf.reduction.vispruner import VisPruner, distinct_tokens


def made_up(seed, patches=64, width=6, power=4):
    torch.manual_seed(seed)
    attention = torch.rand(3, patches) ** power
    return torch.randn(3, patches, width), attention / attention.sum(-1, keepdim=True) * 0.8


def by_attention(attention, columns):
    return sorted(columns, key=lambda column: -float(attention[column]))


def slow_holov(tokens, attention, crops, count):
    """One image: crop by crop in the order of the release."""
    patches, scores, members = len(tokens), [], []
    for crop in range(crops):
        size = patches // crops + (crop < patches % crops)
        start = members[-1][-1] + 1 if members else 0
        members.append(list(range(start, start + size)))
        variances = []
        for i in members[-1]:
            likeness = [
                float(functional.cosine_similarity(tokens[i], tokens[j], dim=0)) if i != j else 0.0 for j in members[-1]
            ]
            mean = sum(likeness) / (size - 1)
            variances.append(sum((value - mean) ** 2 for value in likeness) / (size - 1))
        heed = [1000 * float(attention[i]) for i in members[-1]]
        scale = (sum(heed) / size) / (sum(variances) / size + 1e-6)
        joint = [one + 0.09 * scale * other for one, other in zip(heed, variances, strict=True)]
        scores.append(sum(joint) / size)
    given = [int(score / (sum(scores) + 1e-6) * count) for score in scores]
    for crop in sorted(range(crops), key=lambda crop: -scores[crop])[: count - sum(given)]:
        given[crop] += 1
    return [i for crop in range(crops) for i in by_attention(attention, members[crop])[: given[crop]]], given


@pytest.mark.parametrize(("crops", "count"), [(16, 16), (16, 24), (4, 9), (10, 13)])
def test_holov_against_loops(crops, count):
    tokens, attention = made_up(count, power=1)
    found = HoloV(crops=crops).choose(tokens, attention, count)
    for row in range(3):
        expected, given = slow_holov(tokens[row], attention[row], crops, count)
        assert max(given) < 64 // crops  # what a crop has no room for, see below
        assert found[row].tolist() == expected


@pytest.mark.parametrize("count", [1, 17, 40, 63, 64])
def test_holov_gives_what_a_crop_has_no_room_for_to_others(count):
    tokens, attention = made_up(1)
    attention = attention * torch.where(torch.arange(64) < 4, 1000.0, 1.0)  # all to the first crop
    found = HoloV().choose(tokens, attention, count)
    assert all(len(set(row)) == count for row in found.tolist())
    given = shares(crop_scores(tokens, attention, 16), [4] * 16, count)
    assert given[:, 0].tolist() == [min(4, count)] * 3
    assert given.sum(-1).tolist() == [count] * 3


def test_holov_measures_crops_of_one_patch_and_of_two_alike():
    tokens, _ = made_up(3)
    attention = torch.where(torch.arange(64) < 48, 0.001, 0.002).expand(3, -1)  # 24 crops of two patches, 16 of one
    pairs, single = crop_scores(tokens, attention, 40).split([24, 16], dim=1)
    assert bool(((pairs >= 1) & (pairs <= 1.09)).all())  # attention of 1, and likeness adds 0.09 of it at most
    torch.testing.assert_close(single, torch.full_like(single, 2.0))
    found = HoloV(crops=40).choose(tokens, attention, 29)
    assert (found >= 48).sum(-1).tolist() == [16] * 3


def slow_vispruner(states, attention, count):
    order = by_attention(attention, range(len(states)))
    important, rest = order[: count // 2], order[count // 2 :]
    while len(rest) > count - count // 2:
        first, second = rest[::2], rest[1::2]
        alike = {
            i: max(float(functional.cosine_similarity(states[i], states[j], dim=0)) for j in second) for i in first
        }
        gone = min(8, len(rest) - (count - count // 2))
        rest = sorted(first, key=lambda i: -alike[i])[gone:] + second
    return sorted(important + rest)


@pytest.mark.parametrize("count", [1, 2, 9, 16, 33, 64])
def test_vispruner_against_loops(count):
    states, attention = made_up(count)
    found = VisPruner().choose(states, attention, count)
    for row in range(3):
        assert found[row].tolist() == slow_vispruner(states[row], attention[row], count)


def test_vispruner_takes_duplicates_out():
    states = torch.eye(8)[None].repeat(1, 1, 1)
    states[0, 4] = states[0, 1]  # 4 is compared with 1, 3, 5, 7
    assert distinct_tokens(states, torch.arange(8)[None], 7).sort().values.tolist() == [[0, 1, 2, 3, 5, 6, 7]]


def slow_prumerge(x, attention, keys, count):
    patches, spread = len(x), (count - 1) // 2
    order = by_attention(attention, range(patches))
    spots = [int((place + 0.5) * patches / spread) for place in range(spread)]
    heeded = order[: count - 1 - spread]
    doubled = [spot for spot in spots if spot in heeded]
    heeded += [column for column in order if column not in heeded + spots][: len(doubled)]
    kept = heeded + [spot for spot in spots if spot not in heeded]
    tokens = []
    for i in kept:
        others = [j for j in range(patches) if j != i]
        others.sort(key=lambda j: -float(functional.cosine_similarity(keys[i], keys[j], dim=0)))
        tokens.append(x[i] + sum(attention[j] * x[j] for j in others[:32]))
    rest = [j for j in range(patches) if j not in kept]
    return kept, torch.stack([*tokens, sum((attention[j] * x[j] for j in rest), torch.zeros_like(x[0]))])


@pytest.mark.parametrize("count", [1, 2, 9, 17, 40])
def test_prumerge_against_loops(count):
    x, attention = made_up(count)
    keys = torch.randn(3, 64, 5)
    found = PruMergePlus().merge(x, attention, keys, count)
    assert found.shape == (3, count, 6)
    for row in range(3):
        kept, expected = slow_prumerge(x[row], attention[row], keys[row], count)
        assert kept_patches(attention, count - 1)[row].tolist() == kept
        torch.testing.assert_close(found[row], expected, atol=1e-5, rtol=1e-5)


def test_prumerge_lies_as_its_release_at_145_of_576():
    attention = torch.arange(576.0).flip(0)[None]  # the first rows are attended to
    kept = kept_patches(attention, 144)[0].tolist()
    assert kept[:72] == list(range(72))
    spots = list(range(4, 575, 8))
    assert kept[-(72 - 9) :] == spots[9:]  # nine of them are among the first
    assert len(set(kept)) == 144


def test_prumerge_takes_the_heads_as_one(plain_folder):
    from llava_stf import load_model

    tower = load_model(plain_folder, vision_tokens="all").model.model.vision_tower
    block = next(module for module in tower.modules() if hasattr(module, "layer_norm1"))
    state = torch.randn(2, 17, tower.config.hidden_size)
    with torch.no_grad():
        attention, keys = joint_attention(block, state)
        normed = block.layer_norm1(state)
        query, every = block.self_attn.q_proj(normed), block.self_attn.k_proj(normed)
        scores = torch.einsum("bqc,bkc->bqk", query, every) / tower.config.hidden_size**0.5
    torch.testing.assert_close(attention, scores.softmax(-1)[:, 0, 1:], atol=1e-6, rtol=1e-5)
    assert torch.equal(keys, every[:, 1:])


@pytest.mark.parametrize("method", [HoloV(), VisPruner()], ids=str)
def test_rows_do_not_depend_on_each_other(method):
    tokens, attention = made_up(7)
    order = torch.tensor([2, 0, 1])
    assert torch.equal(method.choose(tokens[order], attention[order], 19), method.choose(tokens, attention, 19)[order])


def test_what_does_not_fit_is_refused(plain_folder):
    from llava_stf.loading import read_config

    config = read_config(plain_folder)
    with pytest.raises(FusionError, match="HoloV's crops must be 1 to the image's 16 patches; found 17"):
        check_reduction(config, replace(HoloV(), crops=17), 4)
    config.vision_feature_layer = -1
    with pytest.raises(FusionError, match="block above the selected state"):
        check_reduction(config, "prumerge+", 4)
