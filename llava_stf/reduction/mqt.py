"""Matryoshka Query Transformer: learned queries, of which as many as the budget says are asked."""

from __future__ import annotations

from llava_stf.reduction.resampler import ResamplerMethod


class Mqt(ResamplerMethod):
    """Its projector is `llava_stf.models.fusion.mqt`.

    The paper trains for every even number up to 256; here budgets are those of windows, as for STF, so that rows of a
    table are at one number of tokens. Trained for one budget it is a plain query transformer.
    """

    name = "mqt"
    title = "MQT"
    reference = "Hu et al., arXiv 2405.19315"
    needs = "Training: a projector of its own, random at first, whose queries know no place in the image's raster."
