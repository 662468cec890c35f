"""SparseVLM: words that the image bears on rate its tokens; of those that go, means of clusters are kept."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional
from transformers import LlamaModel, LlavaConfig

from llava_stf.errors import FusionError
from llava_stf.reduction.attention import attention_of
from llava_stf.reduction.layer_tokens import Tokens, best
from llava_stf.reduction.layers import LayerDropping
from llava_stf.reduction.tensors import gather_tokens

# Of 32 layers, those that see less first: tokens are dropped behind the layers 2, 6 and 15.
STARTS, DEPTH = (3, 7, 16), 32
# Tokens left by the first two steps where the last leaves that many of 576, by the authors' release 1.5. It keeps
# 300, 200, 110; 303, 110, 36; 66, 30, 17 of them as they are.
AUTHORS = {113: (309, 204), 39: (312, 117), 18: (82, 32)}


def recycled(dropped: int) -> tuple[int, int]:
    """Of how many dropped tokens clusters are made, the best three in ten and one more, and how many clusters."""
    candidates = 3 * dropped // 10 + 1
    return candidates, candidates // 10 + 1


def kept_count(before: int, after: int) -> int:
    """How many tokens stay as they are, so that they and the clusters of those that do not are `after`.

    The most, where several are; below 1 where `after` leaves no room beside the clusters.
    """
    kept = after - 1
    while kept > 0 and kept + recycled(before - kept)[1] > after:
        kept -= 1
    return kept


def text_raters(hidden: Tensor, image: Tensor, text: Tensor) -> Tensor:
    """The words that rate: those to which the image's tokens are more alike than they are to words in the mean.

    Args:
        hidden: [B, T, H], embeddings; products in float32.
        image: bool [B, T].
        text: bool [B, T], the words behind the image.

    Returns:
        bool [B, T]. Where no word stands out, all.
    """
    raters = torch.zeros_like(text)
    for row in image.any(-1).nonzero()[:, 0].tolist():
        seen, words = hidden[row, image[row]].float(), hidden[row, text[row]].float()
        share = (seen @ words.T).softmax(-1).mean(0)
        chosen = share > share.mean()
        raters[row, text[row]] = chosen if chosen.any() else torch.ones_like(chosen)
    return raters


def cluster_means(x: Tensor, count: int) -> Tensor:
    """Means of clusters around density peaks: x [I, n, H] -> [I, count, H], the most prominent peak first.

    Distances are Euclidean over the root of H. A token is dense if its `count` nearest, itself among them, are near; a
    centre is dense and far from every denser token; each token goes to its nearest centre. In float32; the order of
    x decides ties.
    """
    states = x.float()
    exact = "donot_use_mm_for_euclid_dist"  # so that equal tokens are at distance 0
    distance = torch.cdist(states, states, compute_mode=exact) / x.shape[-1] ** 0.5
    density = (-distance.topk(count, largest=False).values.square().mean(-1)).exp()  # [I, n]
    # Whether the token of the last dimension is denser; of two that are each other's nearest the earlier is.
    denser = (density[:, None] > density[..., None]) | (
        (density[:, None] == density[..., None]) & torch.ones_like(distance, dtype=torch.bool).tril(-1)
    )
    farthest = distance.flatten(1).amax(-1)[:, None, None]
    gap = torch.where(denser, distance, farthest).amin(-1)
    centres = (gap * density).topk(count).indices  # [I, count]
    home = distance.gather(1, centres[..., None].expand(-1, -1, x.shape[1])).argmin(1)
    home = home.scatter(1, centres, torch.arange(count, device=x.device).expand_as(centres))
    members = functional.one_hot(home, count).to(states.dtype)  # [I, n, count]
    return ((members.transpose(1, 2) @ states) / members.sum(1)[..., None]).to(x.dtype)


@dataclass(frozen=True)
class SparseVLM(LayerDropping):
    """Prunes behind three layers of the LLM; what goes leaves clusters, which stand behind what stays of the image.

    As in its authors' release 1.5: words are chosen once, by their embeddings (section 3.2); an image token's score is
    the attention that it gets from them in the layer, mean over heads and words; of those dropped the best 30 % make
    clusters, one for every ten, whose means are kept (section 3.3); tokens that follow move up to consecutive
    positions. M, the budget, counts the clusters. The paper and release 1.0 draw the number of tokens from the rank of
    the attention matrix, another for every image (section 3.2); 1.5 fixes it, and so it is here. Where the paper
    (section 3.3) sums a cluster and assigns tokens to it by cosine, the release takes the mean and Euclidean distance.

    Published 192, 128 and 64 are M = 113, 39 and 18 of 576. Their authors count what the layers put out, 192.0, 128.6
    and 64.8; what they work on, which is what `mean_tokens` counts, is 206.5, 145.4 and 82.3.

    Ours: at other budgets the steps leave N (M / N) ** (1 / 3) and N (M / N) ** (2 / 3) tokens; in an LLM of another
    depth they lie at the same share of it; ties of density are decided by rank, where the release adds random noise;
    words are those behind the last image of a prompt, and all of them where none stands out. Scores, distances and
    means are float32.
    """

    name = "sparsevlm"
    title = "SparseVLM"
    reference = "Zhang et al., arXiv 2410.04417, release 1.5"
    needs = (
        "All patches in the first layers and in the prompt, the attention of some words in three layers (attention "
        "stays fused), clusters of what is dropped, and a cache of four lengths."
    )
    renumber = True

    def check(self, config: LlavaConfig, patches: int, vision_tokens: int) -> None:
        """Also refuse an LLM of one layer, and a budget that leaves no token beside the clusters."""
        super().check(config, patches, vision_tokens)
        if config.text_config.num_hidden_layers < 2:
            raise FusionError("SparseVLM drops tokens behind a layer of the LLM and before another; found one layer.")
        before = patches
        for after in self.stages(config.text_config.num_hidden_layers, patches, vision_tokens).values():
            if after < before and kept_count(before, after) < 1:
                raise FusionError(
                    f"SparseVLM keeps a token beside each cluster of those that it drops; found vision_tokens "
                    f"{vision_tokens}, which takes {before} tokens to {after}."
                )
            before = after

    def stages(self, num_layers: int, patches: int, vision_tokens: int) -> dict[int, int]:
        """Behind the layers 2, 6 and 15 of 32."""
        share = vision_tokens / patches
        counts = [round(patches * share ** (step / 3)) for step in (1, 2)]
        if patches == 576:
            counts = list(AUTHORS.get(vision_tokens, counts))
        places = [max(step + 1, round(start * num_layers / DEPTH)) for step, start in enumerate(STARTS)]
        starts = sorted({min(place, num_layers - 1) for place in places} - {0})
        return dict(zip(starts, [*counts, vision_tokens][-len(starts) :], strict=True)) if starts else {}

    def start(self, tokens: Tokens) -> Tensor:
        """The words that rate.

        Raises:
            FusionError: a prompt has an image and no text behind it.
        """
        if not (tokens.behind().any(-1) | ~tokens.image.any(-1)).all():
            raise FusionError("SparseVLM rates an image by the words behind it, and found none; put the question last.")
        return text_raters(tokens.hidden, tokens.image, tokens.behind())

    def choose(self, llm: LlamaModel, layer: int, tokens: Tokens, count: int) -> tuple[Tensor, Tensor]:
        """The best rated of each image, and behind them the clusters, in the last `count` places of the image."""
        assert tokens.below is not None
        assert tokens.marks is not None
        raters = tokens.marks.sum(-1)
        queries = tokens.marks.to(torch.uint8).argsort(dim=-1, stable=True)[:, -int(raters.max()) :]
        attention = attention_of(llm.layers[layer - 1], tokens.below, tokens.rotary, tokens.valid, queries)
        others = ~tokens.marks.gather(1, queries)[..., None]
        rating = attention.masked_fill(others, 0).sum(1) / raters.clamp(min=1)[:, None]  # [B, T]
        rows, columns = tokens.places()
        scores, states = rating[rows[:, None], columns], tokens.hidden[rows[:, None], columns]
        kept_tokens = kept_count(tokens.per_image, count)
        kept = best(scores, kept_tokens)
        candidates, clusters = recycled(tokens.per_image - kept_tokens)
        dropped = scores.masked_fill(kept, -torch.inf).topk(candidates).indices
        merged = cluster_means(gather_tokens(states, dropped), clusters)
        places, hidden = columns[:, -count:], tokens.hidden.clone()
        stay = states[kept].view(len(rows), kept_tokens, -1)
        hidden[rows[:, None], places] = torch.cat([stay, merged], dim=1)
        last = torch.arange(tokens.per_image, device=columns.device) >= tokens.per_image - count
        return tokens.left(last.expand_as(columns)), hidden
