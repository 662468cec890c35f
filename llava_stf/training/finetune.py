"""Train LLaVA-STF: `accelerate launch -m llava_stf.training.finetune --config FILE.yaml [--field value ...]`.

Stage `align` trains the projector alone on captions; stage `instruct` trains projector and LLM on conversations, with
the vision tower frozen (arXiv 2506.07138, training recipe of LLaVA-1.5). A base without fusion gets a projector that
starts as exact mean pooling.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from llava_stf.errors import DataError, LlavaStfError
from llava_stf.training.checkpoints import prepare_output, save_model
from llava_stf.training.config import FinetuneConfig, parse

if TYPE_CHECKING:
    from transformers import LlavaForConditionalGeneration, LlavaProcessor, TrainingArguments

logger = logging.getLogger(__name__)


def finetune(config: FinetuneConfig) -> None:
    """Train as `config` says and write the model to `config.output`.

    Raises `LlavaStfError` for what a user can put right: options, files, samples, a loss that is not finite.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # worker processes are forked after its first use
    output = Path(config.output)
    checkpoint = prepare_output(output, resume=config.resume)

    import torch
    from transformers import set_seed

    from llava_stf.training.data import LlavaDataset, collate
    from llava_stf.training.optim import train_only
    from llava_stf.training.trainer import FinetuneTrainer

    if config.cpu_threads is not None:
        torch.set_num_threads(config.cpu_threads)
    set_seed(config.seed)
    model, processor = load_start(config, checkpoint)
    train_only(model, config.learning_rates)
    if config.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    if config.compile:
        model.model.vision_tower.compile()
        model.model.language_model.compile(dynamic=True)
    dataset = LlavaDataset(
        Path(config.data),
        None if config.images is None else Path(config.images),
        processor,
        template="plain" if config.stage == "align" else "v1",
        max_length=config.max_length,
    )
    trainer = FinetuneTrainer(
        config,
        model=model,
        args=training_arguments(config),
        train_dataset=dataset,
        data_collator=partial(collate, pad_token_id=pad_token_id(processor)),
        processing_class=processor,
    )
    logger.info("%d samples, %d tokens per image", len(dataset), dataset.tokens_per_image)
    try:
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    except DataError as error:
        # From a worker process the message comes inside that process's traceback, as its last line.
        raise DataError(str(error).splitlines()[-1].removeprefix("llava_stf.errors.DataError: ")) from error
    if trainer.is_world_process_zero():
        save_model(
            trainer.accelerator.unwrap_model(trainer.model), processor, output, getattr(torch, config.save_dtype)
        )


def load_start(config: FinetuneConfig, checkpoint: Path | None) -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    """Model (float32, on the CPU) and processor that training starts from: the checkpoint, or the base, reduced.

    Raises `FusionError` if the base cannot be brought to the vision tokens asked for.
    """
    from llava_stf.configuration_llava_stf import window_for
    from llava_stf.loading import load_model
    from llava_stf.patch import apply_pooling

    load = partial(load_model, device="cpu", dtype="float32", attn_implementation=config.attn_implementation)
    if checkpoint is not None:
        model, processor = load(checkpoint, vision_tokens="all" if config.vision_tokens == "all" else None)
    elif config.reduction == "stf":
        model, processor = load(config.base, vision_tokens=config.vision_tokens, init=config.init)
    else:
        model, processor = load(config.base, vision_tokens="all")
        grid = model.config.vision_config.image_size // model.config.vision_config.patch_size
        apply_pooling(model, processor, window=window_for(grid, config.vision_tokens))
    return model, processor


def pad_token_id(processor: LlavaProcessor) -> int:
    """The tokenizer's pad id, or `<unk>`'s as in LLaVA; padding is masked, so any id does."""
    tokenizer = processor.tokenizer
    return tokenizer.unk_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id


def training_arguments(config: FinetuneConfig) -> TrainingArguments:
    """The Trainer's arguments for `config`."""
    import torch
    from transformers import TrainingArguments

    on_cpu = not torch.accelerator.is_available()
    return TrainingArguments(
        output_dir=config.output,
        num_train_epochs=config.epochs,
        max_steps=-1 if config.max_steps is None else config.max_steps,
        per_device_train_batch_size=config.per_device_batch_size,
        gradient_accumulation_steps=config.gradient_accumulation,
        lr_scheduler_type=config.scheduler,
        warmup_steps=config.warmup_ratio,
        max_grad_norm=config.max_grad_norm,
        seed=config.seed,
        bf16=config.bf16,
        use_cpu=on_cpu,
        dataloader_num_workers=config.num_workers,
        dataloader_persistent_workers=config.num_workers > 0,
        dataloader_pin_memory=not on_cpu,
        remove_unused_columns=False,
        ddp_find_unused_parameters=True,  # a batch of text alone does not use the projector
        logging_steps=config.logging_steps,
        logging_nan_inf_filter=False,
        save_steps=config.save_steps,
        save_total_limit=config.save_total_limit,
        report_to=config.report_to,
        disable_tqdm=not sys.stderr.isatty(),
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point: 0 when trained, 2 with one sentence on stderr for an error of the user's."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s")
    try:
        finetune(parse(sys.argv[1:] if argv is None else argv))
    except LlavaStfError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
