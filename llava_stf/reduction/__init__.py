"""Every way to show the LLM fewer vision tokens: STF, pooling, and methods that need no training, on a plain LLaVA.

    model, processor = load_model("tiny-full")
    apply_reduction(model, processor, "divprune", vision_tokens=16)
    ...
    remove_reduction(model, processor)

Each is written from its paper, in a file of its own: a function on tensors and the few lines that join it to the model.
By its name a method is the published one, tested against outputs of its authors' code in float32; variants of ours are
options, such as `VisionZip(contextual="mean")`. An answer does not depend on the other rows of its batch. A new method
is one more file and its entry in `catalogue.py`.

Budgets: `vision_tokens` is what is kept of an image. A method that works on more of it in some layers of the LLM costs
more than that: `Method.mean_tokens`, the mean over the layers, is what published tables call its number of tokens.
"""

from __future__ import annotations

from llava_stf.reduction.apply import apply_reduction, check_reduction, find_method, remove_reduction
from llava_stf.reduction.catalogue import METHODS
from llava_stf.reduction.method import Method, Reduction
from llava_stf.reduction.options import with_options

__all__ = [
    "METHODS",
    "Method",
    "Reduction",
    "apply_reduction",
    "check_reduction",
    "find_method",
    "remove_reduction",
    "with_options",
]
