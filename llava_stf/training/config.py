"""Options of a training run: one dataclass, filled from a YAML file and from flags.

Nothing heavy is imported here, so a wrong option is reported at once.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from llava_stf.errors import LlavaStfError
from llava_stf.io.options import check_ranges, parse_options, read_values

# The paper's learning rates: the projector alone in alignment, projector and LLM together in instruction tuning.
# Distillation is not the paper's; it trains the projector alone.
DEFAULT_LEARNING_RATE = {"align": 1e-3, "instruct": 2e-5, "distill": 1e-3}
# Its LoRA script: adapters of the LLM, and the projector, which is trained in full beside them.
LORA_LEARNING_RATE, LORA_PROJECTOR_LEARNING_RATE = 1e-4, 2e-5

# How a plain LLaVA can be brought to fewer tokens by weights that are trained.
Reduction = Literal["stf", "pool", "m3", "tokenpacker", "mqt"]

# A run that goes on from a checkpoint may change these: they do not decide what is learnt, or say how much longer.
# Folders may have moved; that the data and the base are the same is told by their names.
FREE = frozenset(
    (
        *("base", "vision_tower", "data", "images", "output", "epochs", "max_steps", "max_bad_samples", "save_dtype"),
        *("per_device_batch_size", "gradient_accumulation", "attn_implementation", "compile", "gradient_checkpointing"),
        *("num_workers", "cpu_threads", "logging_steps", "save_steps", "save_total_limit", "report_to"),
        *("resume", "overwrite"),
    )
)


_RANGES = {
    "at least 1": (
        *("per_device_batch_size", "gradient_accumulation", "max_length", "logging_steps", "save_steps"),
        *("save_total_limit", "max_steps", "cpu_threads", "lora_rank", "lora_alpha"),
    ),
    "at least 0": (
        *("learning_rate", "projector_learning_rate", "vision_tower_learning_rate", "weight_decay", "max_grad_norm"),
        *("feature_weight", "num_workers"),
    ),
    "above 0": ("epochs",),
    "at least 0 and below 2**32": ("seed",),
    "in [0, 1)": ("warmup_ratio", "max_bad_samples", "lora_dropout", "adam_beta2"),
}


def _option(default: Any, text: str) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig:
    """Everything that decides a training run; `--help` prints each field's meaning.

    Raises:
        LlavaStfError: a required field without value, or options that contradict each other.
    """

    base: str = _option(
        "", "model to start from, a LLaVA, LLaVA-STF or language model: a folder, a model id, or `tiny` (required)"
    )
    vision_tower: str | None = _option(
        None, "folder or model id of the vision tower, for a base without one: a language model such as Vicuna"
    )
    data: str = _option(
        "", "a JSON list or JSON lines of LLaVA samples, or a Hugging Face data set: folder, parquet, hub id (required)"
    )
    output: str = _option("", "folder for checkpoints and the trained model (required)")
    images: str | None = _option(
        None, "folder that the samples' image paths start from; default: the data file's folder"
    )
    stage: Literal["align", "instruct", "distill"] = _option(
        "instruct",
        "align: projector alone, captions; instruct: projector and LLM, conversations; distill: projector alone (with "
        "lora_rank adapters too), the base at all its tokens being the teacher",
    )

    vision_tokens: int | Literal["all"] | tuple[int, ...] | None = _option(
        None,
        "LLM tokens per image: a count, `all`, or nothing for the base's own (a plain LLaVA gets a quarter); several, "
        "such as 144,64,36, train one model for each of them, the first its default",
    )
    vision_tokens_schedule: Literal["random", "descending", "all"] = _option(
        "random",
        "several vision_tokens: one drawn per step, one after the other with most tokens first, or all in every step, "
        "the loss being their mean",
    )
    reduction: Reduction = _option(  # noqa: RUF009 - a field like the others, whose annotations it can see through
        "stf",
        "how a plain LLaVA is brought to that count: stf (MBTF and STF), pool (mean of each window), m3 (pool at the "
        "count and all that are nested in it), or the projector of tokenpacker or mqt, which need init random",
    )
    init: str = _option("pool", "start of a new STF projector: pool (exact mean pooling), random, or an adapter file")

    lora_rank: int | None = _option(None, "trains low-rank adapters of this rank in place of the LLM; default: no LoRA")
    lora_alpha: int | None = _option(None, "scale of the adapters, times rank; default: twice lora_rank")
    lora_dropout: float = _option(0.05, "share of an adapter's inputs that is dropped in training")
    quantization: Literal["4bit"] | None = _option(None, "4bit: QLoRA, adapters on an LLM of 4-bit weights")

    feature_weight: float = _option(
        0.0, "in stage distill, weight of the squared distance of image tokens to the mean of the teacher's"
    )

    streaming: bool = _option(False, "read a Hugging Face data set row by row, with no copy of it; needs max_steps")
    group_by_length: bool = _option(
        True,
        "not in stage align or of a stream: a step takes samples of similar length, all with or all without images",
    )
    max_bad_samples: float = _option(0.01, "share of samples that may be bad, and are replaced by others, at most")

    epochs: float = _option(1.0, "passes over the data, if max_steps is not given")
    max_steps: int | None = _option(None, "optimizer steps in all, counted from the start of the run")
    per_device_batch_size: int = _option(16, "samples per device and forward pass")
    gradient_accumulation: int = _option(1, "forward passes per optimizer step")
    max_length: int = _option(2048, "longest sequence, image tokens included; longer texts are cut")
    seed: int = _option(0, "seed of data order, projector and dropout")

    learning_rate: float | None = _option(
        None, "peak learning rate; default: 1e-3 for align and distill, 2e-5 for instruct, 1e-4 with LoRA"
    )
    projector_learning_rate: float | None = _option(
        None, "learning rate of the projector; default: learning_rate, with LoRA 2e-5"
    )
    vision_tower_learning_rate: float | None = _option(
        None, "trains the vision tower too, at this rate; default: frozen"
    )
    scheduler: Literal["cosine", "linear", "constant_with_warmup"] = _option("cosine", "learning rate after warm-up")
    warmup_ratio: float = _option(0.03, "share of the steps in which the learning rate rises")
    weight_decay: float = _option(0.0, "AdamW's, on matrices only, not on norms and biases")
    adam_beta2: float = _option(0.999, "AdamW's second beta")
    max_grad_norm: float = _option(1.0, "gradient norm above which gradients are scaled down; 0: never")

    bf16: bool | Literal["auto"] = _option(
        "auto",
        "compute in bfloat16 (trained weights and optimizer stay float32); auto: on GPUs that have it, and on "
        "CPUs where a timed product is not slower in it than in float32",
    )
    save_dtype: Literal["float32", "bfloat16"] = _option(
        "float32", "dtype of the trained model, or of the adapters, on disk"
    )
    attn_implementation: Literal["sdpa", "eager", "flash_attention_2"] = _option(
        "sdpa", "attention; eager is slower, on a CPU too"
    )
    compile: bool = _option(False, "torch.compile tower and LLM: two minutes at the start, then about 1.4 times faster")
    gradient_checkpointing: bool = _option(False, "recompute activations: less memory, about a third more time")
    num_workers: int = _option(1, "processes that read and prepare samples, per device; 0: none beside the trainer")
    cpu_threads: int | None = _option(
        None, "threads that compute on a CPU; default: torch's choice. More threads than idle cores are far slower"
    )

    logging_steps: int = _option(10, "steps between two lines of the log")
    save_steps: int = _option(500, "steps between two checkpoints")
    save_total_limit: int = _option(2, "checkpoints that are kept")
    report_to: Literal["none", "tensorboard", "wandb"] = _option("none", "where the log goes beside the terminal")
    resume: bool = _option(False, "go on from the newest complete checkpoint in output, if there is one")
    overwrite: bool = _option(False, "replace the run that output holds; other files there stay")

    def __post_init__(self) -> None:
        for name in ("base", "data", "output"):
            if not getattr(self, name):
                raise LlavaStfError(f"--{name} is required: give it as a flag or in the config file")
        check_ranges(self, _RANGES)
        if self.stage != "instruct" and self.vision_tower_learning_rate is not None:
            raise LlavaStfError(
                f"stage {self.stage} leaves the vision tower as it is: leave out vision_tower_learning_rate"
            )
        if self.stage == "distill" and self.vision_tokens == "all":
            raise LlavaStfError("vision_tokens all is the teacher itself: give stage distill fewer tokens")
        if self.feature_weight and self.stage != "distill":
            raise LlavaStfError(f"feature_weight is for stage distill, found stage {self.stage}")
        if self.vision_tokens == "all" and self.reduction != "stf":
            raise LlavaStfError(
                f"vision_tokens all keeps every token, reduction {self.reduction} does not: leave out one of them"
            )
        if self.reduction in ("tokenpacker", "mqt") and self.init != "random":
            raise LlavaStfError(f"the projector of reduction {self.reduction} starts at random: give init random")
        if self.reduction in ("pool", "m3") and self.init != "pool":
            raise LlavaStfError(f"reduction {self.reduction} keeps the base's projector: leave out init {self.init}")
        if self.streaming and self.max_steps is None:
            raise LlavaStfError("a stream has no known end: give max_steps with streaming")
        if self.resume and self.overwrite:
            raise LlavaStfError("resume goes on with the run in output, overwrite replaces it: leave out one of them")
        self._check_lora()

    def _check_lora(self) -> None:
        if self.lora_rank is None:
            if self.lora_alpha is not None:
                raise LlavaStfError("lora_alpha is for LoRA: give lora_rank too, or leave it out")
            if self.quantization is not None:
                raise LlavaStfError(
                    "4-bit weights cannot be trained in full: give lora_rank, or leave out quantization"
                )
            return
        if self.stage == "align":
            raise LlavaStfError(
                "stage align trains the projector alone and leaves the LLM as it is: leave out lora_rank"
            )
        if self.vision_tower_learning_rate is not None:
            raise LlavaStfError(
                "LoRA leaves the vision tower frozen: leave out vision_tower_learning_rate or lora_rank"
            )

    def identity(self, processes: int, sharding: str | None = None) -> dict[str, Any]:
        """What a run must keep when it is resumed: fields by name, and the samples of an optimizer step.

        Args:
            processes: that train together.
            sharding: how they share out the weights; only DeepSpeed's files are read by as many processes alone.
        """
        kept = {name: value for name, value in dataclasses.asdict(self).items() if name not in FREE}
        names = {name: getattr(self, name) for name in ("base", "vision_tower", "data")}
        if self.streaming:  # each worker reads shards of its own
            kept["num_workers"] = self.num_workers
        return {
            **{name: Path(value).absolute().name if value else value for name, value in names.items()},
            **kept,
            "samples_per_step": self.per_device_batch_size * self.gradient_accumulation * processes,
            "sharding": f"{sharding} in {processes}" if sharding and sharding.startswith("DeepSpeed") else None,
        }

    @property
    def learning_rates(self) -> dict[str, float]:
        """Peak learning rate of each part that is trained: "projector", "language_model", "vision_tower"."""
        rate, projector_rate = DEFAULT_LEARNING_RATE[self.stage], self.projector_learning_rate
        if self.lora_rank is not None:
            rate = LORA_LEARNING_RATE
            projector_rate = LORA_PROJECTOR_LEARNING_RATE if projector_rate is None else projector_rate
        if self.learning_rate is not None:
            rate = self.learning_rate
        rates = {"projector": rate if projector_rate is None else projector_rate}
        if self.stage == "instruct" or self.lora_rank is not None:
            rates["language_model"] = rate
        if self.vision_tower_learning_rate is not None:
            rates["vision_tower"] = self.vision_tower_learning_rate
        return rates


def parse(argv: Sequence[str]) -> FinetuneConfig:
    """The configuration that `--config FILE` and `--field value` flags describe.

    Raises:
        LlavaStfError: as `parse_options`.
    """
    return parse_options(FinetuneConfig, argv, prog="llava_stf.training.finetune", description=__doc__)


def from_values(values: Mapping[str, Any]) -> FinetuneConfig:
    """The configuration with these field values.

    Raises:
        LlavaStfError: as `read_values`.
    """
    return FinetuneConfig(**read_values(FinetuneConfig, values))
