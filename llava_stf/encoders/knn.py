"""Weighted k-nearest-neighbour accuracy of an encoder's features, as PatchMix measures it.

See docs/encoders/methods.md, Nearest neighbours.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from llava_stf.errors import DataError

NEIGHBOURS = (10, 20, 100, 200)
TEMPERATURE = 0.07
_CHUNK = 500  # test rows whose similarities to all training rows are held at once


def knn_scores(
    train: Tensor, labels: Tensor, test: Tensor, *, k: int, temperature: float = TEMPERATURE, classes: int | None = None
) -> Tensor:
    """Sum of exp(similarity / temperature) over the k nearest training rows of each class: float32 [n_test, classes].

    Args:
        train: features [n_train, D]; normalised here, similarity is their dot product.
        test: features [n_test, D], in the same way.
        labels: int64 [n_train].
        k: neighbours of each test row.
        temperature: the lower, the more the nearest count.
        classes: number of classes; default: the highest label and one.

    Raises:
        DataError: there are fewer than k training rows.
    """
    if k > len(train):
        raise DataError(f"k must be at most the number of training images, {len(train)}, found {k}")
    classes = int(labels.max()) + 1 if classes is None else classes
    train = F.normalize(train.float(), dim=1)
    scores = []
    for chunk in F.normalize(test.float(), dim=1).split(_CHUNK):
        similarity, nearest = (chunk @ train.T).topk(k, dim=1)
        votes = torch.zeros(len(chunk), classes, device=chunk.device)
        scores.append(votes.scatter_add_(1, labels[nearest], (similarity / temperature).exp()))
    return torch.cat(scores)


def knn_accuracy(
    train: Tensor,
    train_labels: Tensor,
    test: Tensor,
    test_labels: Tensor,
    *,
    neighbours: Sequence[int] = NEIGHBOURS,
    temperature: float = TEMPERATURE,
) -> dict[int, float]:
    """Share of test rows whose best class is right, in percent, for every k of `neighbours`. Arguments as above.

    Raises:
        DataError: as `knn_scores`.
    """
    classes = int(max(train_labels.max(), test_labels.max())) + 1
    accuracy = {}
    for k in neighbours:
        best = knn_scores(train, train_labels, test, k=k, temperature=temperature, classes=classes).argmax(dim=1)
        accuracy[k] = 100 * (best == test_labels).float().mean().item()
    return accuracy
