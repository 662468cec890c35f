"""The contrastive loss that the methods share, and the keys of all processes (docs/encoders/methods.md, Contrast)."""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor


def contrast(queries: Tensor, keys: Tensor, target: Tensor, temperature: float) -> Tensor:
    """Mean cross-entropy of softmax(q k^T / temperature), q and k normalised, against `target`; a float32 scalar.

    Args:
        queries: [B, D], with gradient.
        keys: [B, D] of this process; detached, and gathered from all of them in the order of their ranks.
        target: float [B, B * processes], the share of every key, or int64 [B], the number of the one right key.
        temperature: tau.
    """
    queries, keys = F.normalize(queries.float(), dim=1), F.normalize(keys.detach().float(), dim=1)
    with torch.autocast(queries.device.type, enabled=False):
        logits = queries @ gather(keys).T / temperature
    if target.is_floating_point():
        return -(target * logits.log_softmax(dim=1)).sum(dim=1).mean()
    return F.cross_entropy(logits, target)


def identity_targets(batch: int, smoothing: float = 0.0, *, device: torch.device | str | None = None) -> Tensor:
    """Row i's own key: float [batch, N], N = batch * processes; 1 - s + s / N at its column, s / N elsewhere."""
    return shared_targets({0: 1.0}, batch, smoothing, device=device)


def shared_targets(
    shares: dict[int, float],
    batch: int,
    smoothing: float = 0.0,
    *,
    rank: int | None = None,
    processes: int | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    """Soft targets, float32 [batch, N].

    Row i has (1 - s) * shares[d] + s / N at column (i + d) mod batch of its own process, and s / N at all others.

    Offsets that meet in one column do not add up: the last one wins, as in the released code
    (docs/encoders/methods.md, PatchMix, Mixing).
    """
    rank = _rank() if rank is None else rank
    columns = batch * (_processes() if processes is None else processes)
    target = torch.full((batch, columns), smoothing / columns, device=device)
    rows = torch.arange(batch, device=device)
    for offset, share in shares.items():
        target[rows, (rows + offset) % batch + rank * batch] = (1 - smoothing) * share + smoothing / columns
    return target


def own_index(batch: int, *, device: torch.device | str | None = None) -> Tensor:
    """The column of each row's own key: int64 [batch], for `contrast`."""
    return torch.arange(batch, device=device) + _rank() * batch


@torch.no_grad()
def gather(keys: Tensor) -> Tensor:
    """The rows of all processes, in the order of their ranks, without gradient: [B, D] -> [B * processes, D]."""
    if _processes() == 1:
        return keys
    parts = [torch.empty_like(keys) for _ in range(_processes())]
    dist.all_gather(parts, keys.contiguous())
    return torch.cat(parts)


def _processes() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def _rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0
