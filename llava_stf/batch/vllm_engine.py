"""Answers by vLLM's offline engine, which has all rows of a batch in flight at once."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from llava_stf.batch.engines import Engine, Prompt
from llava_stf.errors import FusionError, LlavaStfError, MissingDependencyError, PromptError, one_line

if TYPE_CHECKING:
    from PIL import Image
    from transformers import LlavaConfig
    from vllm import LLM

    from llava_stf.batch.job import BatchJob

MAX_IMAGES = 16  # in one row; vLLM wants to know


class VllmEngine(Engine):
    """An `LLM` and the processor of the same model.

    The prompts reach vLLM as token ids, so that they are those of transformers, for a plain LLaVA, too.
    """

    def __init__(self, llm: LLM, config: Any, processor: Any, job: BatchJob) -> None:
        from vllm import SamplingParams

        from llava_stf.models.llava_stf.vocabulary import suppressed_ids

        self.batch_size = job.batch_size
        self._llm = llm
        self._config = config
        self._processor = processor
        self._budget = job.vision_tokens if isinstance(job.vision_tokens, int) else None
        self._options = {} if self._budget is None else {"mm_processor_kwargs": {"vision_tokens": self._budget}}
        # A bias of -100 is vLLM's least: an id that is no text is not chosen, as in `LlavaStf.generate`.
        self._sampling = SamplingParams(
            temperature=0,
            max_tokens=job.max_new_tokens,
            logit_bias=dict.fromkeys(suppressed_ids(config, processor.tokenizer), -100.0),
        )

    def ask(self, prompts: Sequence[Prompt]) -> list[str]:
        """As `Engine.ask`."""
        requests = [self._request(prompt) for prompt in prompts]
        try:
            outputs = self._llm.generate(requests, self._sampling, use_tqdm=False)
        except ValueError as error:  # a request that vLLM refuses; it drops the others with it
            raise PromptError(f"vLLM refuses the row: {error}") from error
        return [output.outputs[0].text.strip() for output in outputs]

    def _request(self, prompt: Prompt) -> dict[str, Any]:
        from llava_stf.models.llava_stf.conversation import render_chat

        ids = self._ids(render_chat(self._processor, [prompt.message]))
        image_tokens = sum(self._tokens_of(prompt.images))
        length = len(ids) - len(prompt.images) + image_tokens
        limit = self._llm.model_config.max_model_len
        if length >= limit:
            raise PromptError(
                f"The prompt has {length} tokens, {image_tokens} of them for {len(prompt.images)} image(s), and the "
                f"model has positions for {limit - 1} and an answer: ask shorter or with fewer images."
            )
        if len(prompt.images) > MAX_IMAGES:
            raise PromptError(f"A row may have {MAX_IMAGES} images with vLLM, found {len(prompt.images)}.")
        return {"prompt_token_ids": ids, "multi_modal_data": {"image": prompt.images}, **self._options}

    def _ids(self, text: str) -> list[int]:
        """Token ids with one for each image."""
        from llava_stf.models.fusion.processing import FusedProcessing
        from llava_stf.models.llava_stf.chunks import tokenize_chunks

        if isinstance(self._processor, FusedProcessing):
            return self._processor.ids_of(text)
        return tokenize_chunks(self._processor.tokenizer, text, image_token_id=self._processor.image_token_id)

    @cached_property
    def _tokens_of_plain(self) -> int:
        from llava_stf.data.preparation import tokens_per_image

        return tokens_per_image(self._processor)

    def _tokens_of(self, images: Sequence[Image.Image]) -> list[int]:
        """Tokens that each image of a prompt takes."""
        from llava_stf.models.fusion.budget import num_image_tokens
        from llava_stf.models.fusion.config import FusionConfig
        from llava_stf.models.fusion.tiles import sizes_in_prompt

        if not isinstance(self._config, FusionConfig):
            return [self._tokens_of_plain] * len(images)
        sizes = [(image.height, image.width) for image in images]
        return num_image_tokens(self._config, sizes_in_prompt(self._config, sizes), self._budget)


def check_job(job: BatchJob) -> LlavaConfig:
    """Check that vLLM can do a job, before anything is read or written; returns the model's config.

    Raises:
        FusionError: a plain LLaVA is to be patched, which vLLM does not do, or the model is none that vLLM serves on so
            many ranks, see `check_served`.
        LlavaStfError: an option is not vLLM's, or the config cannot be read.
    """
    from llava_stf.loading import read_config
    from llava_stf.models.fusion.config import FusionConfig
    from llava_stf.vllm_plugin.served import check_served

    if job.quantization is not None or job.device is not None:
        raise LlavaStfError("quantization and device are for transformers; vLLM takes them from the checkpoint itself.")
    config = read_config(job.model)
    ranks = job.vllm_options.get("tensor_parallel_size", 1)
    check_served(config, ranks if isinstance(ranks, int) and ranks > 0 else 1)
    if not isinstance(config, FusionConfig) and _vision_tokens(job, config) != "all":
        raise FusionError(
            f"{job.model} is a plain LLaVA, and vLLM runs models as they are saved: save it patched "
            "(load_model(...).model.save_pretrained), or ask for all its tokens (--vision-tokens all)."
        )
    return config


def load_vllm(job: BatchJob) -> VllmEngine:
    """Loads the job's model into vLLM.

    Raises:
        MissingDependencyError: vLLM is not installed.
        FusionError: as `check_job`.
        LlavaStfError: as `check_job`, and for what vLLM does not take.
    """
    from llava_stf.loading import BUNDLED, bundled_folder, load_processor

    config = check_job(job)
    os.environ.setdefault("VLLM_LOGGING_STREAM", "ext://sys.stderr")  # stdout is for results
    path = bundled_folder(job.model) if job.model in BUNDLED else job.model
    try:
        from vllm import LLM
    except ImportError as error:
        raise MissingDependencyError("The engine vllm needs vLLM: pip install 'llava-stf[vllm]'") from error
    options = {"dtype": job.dtype or "auto", "limit_mm_per_prompt": {"image": MAX_IMAGES}, **job.vllm_options}
    try:
        llm = LLM(str(path), **options)
    except (TypeError, ValueError) as error:
        raise LlavaStfError(f"vLLM does not take {job.model} with {options}: {one_line(error)}") from error
    return VllmEngine(llm, config, load_processor(job.model, vision_tokens=_vision_tokens(job, config)), job)


def _vision_tokens(job: BatchJob, config: Any) -> Any:
    """What the job asks for, no word, or by default what the model has of its own."""
    from llava_stf.loading.checkpoint import own_vision_tokens

    return own_vision_tokens(config, job.model) if job.vision_tokens is None else job.vision_tokens
