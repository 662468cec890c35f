"""TokenPacker: a coarse grid of queries that absorb what their windows hold, learned."""

from __future__ import annotations

from llava_stf.reduction.resampler import ResamplerMethod


class TokenPacker(ResamplerMethod):
    """Its projector is `llava_stf.models.fusion.tokenpacker`; budgets are those of whole windows."""

    name = "tokenpacker"
    title = "TokenPacker"
    reference = "Li et al., arXiv 2407.02392"
    needs = "Training: a projector of its own, random at first, on four hidden states."
