"""Train LLaVA-STF: `accelerate launch -m llava_stf.training.finetune --config FILE.yaml [--field value ...]`.

Stage `align` trains the projector alone on captions; stage `instruct` trains projector and LLM on conversations, or
with `lora_rank` the projector and low-rank adapters of the LLM, with the vision tower frozen (arXiv 2506.07138,
training recipe of LLaVA-1.5). Stage `distill` trains the projector to answer as the base does at all its tokens. A base
without fusion gets a projector that starts as exact mean pooling.
"""

from __future__ import annotations

import logging
import math
import os
import shlex
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llava_stf.io.command import exit_code, log_training
from llava_stf.io.runs import check_options, describe_newest, prepare_output, remove_run, save_model, save_whole
from llava_stf.io.signals import keeping
from llava_stf.models.model_card import write_card
from llava_stf.training.config import FinetuneConfig, parse
from llava_stf.training.sharding import check_processes, check_sharding, sharding, whole_weights
from llava_stf.training.start import adopt_prompt, check_start, computes_in_bfloat16, load_start

if TYPE_CHECKING:
    from transformers import LlavaConfig, TrainingArguments

    from llava_stf.data.templates import Template

logger = logging.getLogger("llava_stf.training.finetune")  # as a command it has another __name__


def finetune(config: FinetuneConfig) -> None:
    """Train as `config` says and write the model to `config.output`.

    Raises:
        LlavaStfError: what a user can put right: options, files, samples, a loss that is not finite.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # worker processes are forked after its first use
    output = Path(config.output)
    checkpoint = prepare_output(output, resume=config.resume, overwrite=config.overwrite)
    if checkpoint is not None:
        check_options(checkpoint, config.identity(int(os.environ.get("WORLD_SIZE", "1")), sharding()))
    check_sharding(config)
    check_start(config)

    import torch
    from transformers import set_seed

    from llava_stf.data.bad_samples import heard_from_workers
    from llava_stf.data.preparation import Preparation
    from llava_stf.data.sources import image_folder, open_records, open_stream
    from llava_stf.loading.lora import load_weights
    from llava_stf.models.fusion.budget import budget_per_image
    from llava_stf.models.fusion.tiles import has_tiles
    from llava_stf.reduction.change import former_projector
    from llava_stf.training.data import Share, filler, training_data
    from llava_stf.training.distill import DistillTrainer
    from llava_stf.training.lora import add_lora, save_adapter
    from llava_stf.training.optim import keep_newline, train_only
    from llava_stf.training.trainer import FinetuneTrainer

    if config.cpu_threads is not None:
        torch.set_num_threads(config.cpu_threads)
    set_seed(config.seed)
    arguments = training_arguments(config)
    check_processes(arguments)
    if config.bf16 == "auto" and not arguments.bf16:
        logger.info("computing in float32: bfloat16 is slower on this %s", arguments.device.type.upper())
    images = image_folder(config.data, config.images)
    rows: Any = open_stream(config.data, seed=config.seed) if config.streaming else open_records(config.data)
    with whole_weights():
        model, processor = load_start(config, checkpoint, arguments.device)
    template: Template = "plain" if config.stage == "align" else adopt_prompt(processor)
    if config.lora_rank is None:
        train_only(model, config.learning_rates)
    if config.stage == "distill":
        keep_newline(model)
    if config.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    if config.compile:
        model.model.vision_tower.compile()
        model.model.language_model.compile(dynamic=True)
    prepare = Preparation(
        processor,
        name=Path(config.data).name,
        images=images,
        template=template,
        max_length=config.max_length,
    )
    pad_id = processor.tokenizer.pad_token_id
    share = Share(config.per_device_batch_size, arguments.process_index, arguments.world_size)
    data = training_data(rows, prepare, config, pad_token_id=pad_id, share=share)
    trained: Any = model
    if config.lora_rank is not None:
        trained = add_lora(model, config)
        if checkpoint is not None:
            load_weights(trained, checkpoint)
    if config.overwrite and arguments.process_index == 0:
        remove_run(output)
    make_trainer: Any = FinetuneTrainer
    if config.stage == "distill":
        make_trainer = partial(DistillTrainer, teacher_projector=former_projector(model))
    trainer = make_trainer(
        config,
        budgets=budgets(model.config, config),
        prepared_budget=budget_per_image(model.config),
        filler=partial(filler, prepare, pad_token_id=pad_id),
        model=trained,
        args=arguments,
        train_dataset=data.dataset,
        data_collator=data.collate,
        processing_class=processor,
    )
    samples = "streamed" if config.streaming else str(len(rows))
    square = "tile" if has_tiles(model.config) else "image"
    logger.info("%s samples, %d tokens per %s", samples, budget_per_image(model.config), square)
    with heard_from_workers():
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    state = trainer.weights()
    if data.bad_samples.summary():
        logger.warning("%s: others took their place", data.bad_samples.summary())
    if trainer.is_world_process_zero():
        save_model(
            trainer.accelerator.unwrap_model(trainer.model),
            processor,
            output,
            getattr(torch, config.save_dtype),
            save=save_whole if config.lora_rank is None else save_adapter,
            state_dict=state,
        )
        write_card(output, base=config.base, training=_told(config))
        _say_how_to_use(config)


def _say_how_to_use(config: FinetuneConfig) -> None:
    folder = shlex.quote(config.output)
    logger.info(
        "the trained model is in %s: load_model(%r) in Python, llava-stf ask IMAGE QUESTION --model %s",
        *(config.output, config.output, folder),
    )
    if config.lora_rank is not None:
        logger.info(
            "it is adapters, and needs its base %s: llava-stf merge %s FOLDER makes one model of both",
            config.base,
            folder,
        )


def _told(config: FinetuneConfig) -> dict[str, Any]:
    """What a model card says of a run: the options that the weights depend on, the data set by name alone."""
    others = (
        *("base", "output", "data", "images", "vision_tower", "num_workers", "cpu_threads", "logging_steps"),
        *("save_steps", "save_total_limit", "report_to", "resume", "overwrite", "compile", "gradient_checkpointing"),
    )
    options = {name: value for name, value in vars(config).items() if name not in others and value is not None}
    return {"data": Path(config.data).name, **options, "init": Path(config.init).name}


def budgets(model_config: LlavaConfig, config: FinetuneConfig) -> list[int]:
    """Vision tokens per image that a run trains for: those asked for, else all that the model was made for."""
    from llava_stf.models.fusion.budget import FusedConfig, token_budgets

    if isinstance(model_config, FusedConfig):
        if isinstance(config.vision_tokens, tuple):
            return list(config.vision_tokens)
        if isinstance(config.vision_tokens, int):
            return [config.vision_tokens]
    return token_budgets(model_config)


def training_arguments(config: FinetuneConfig) -> TrainingArguments:
    """The Trainer's arguments for `config`."""
    import torch
    from transformers import TrainingArguments

    on_cpu = not torch.accelerator.is_available()
    bfloat16 = computes_in_bfloat16(config)
    os.environ["ACCELERATE_MIXED_PRECISION"] = "bf16" if bfloat16 else "no"  # not what accelerate's own file says
    return TrainingArguments(
        output_dir=config.output,
        num_train_epochs=config.epochs,
        max_steps=-1 if config.max_steps is None else config.max_steps,
        per_device_train_batch_size=config.per_device_batch_size,
        gradient_accumulation_steps=config.gradient_accumulation,
        lr_scheduler_type=config.scheduler,
        warmup_steps=config.warmup_ratio,
        max_grad_norm=config.max_grad_norm or math.inf,  # at 0 the Trainer would not look at gradients at all
        seed=config.seed,
        bf16=bfloat16,
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
        accelerator_config={
            "dispatch_batches": False,  # every process reads a stream for itself
            # Sharded, gradients stay so between forward passes: whole ones would take the memory that sharding saves.
            "gradient_accumulation_kwargs": {"sync_each_batch": sharding() is not None},
        },
        disable_tqdm=not sys.stderr.isatty(),
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point: 0 when trained, 2 with one sentence on stderr for an error of the user's."""
    log_training()

    def work() -> None:
        config = parse(sys.argv[1:] if argv is None else argv)
        with keeping(lambda: f"{describe_newest(Path(config.output))}; go on with --resume"):
            finetune(config)

    return exit_code(work)


if __name__ == "__main__":
    sys.exit(main())
