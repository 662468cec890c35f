"""Answers by vLLM's offline engine, which has all rows of a batch in flight at once."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from llava_stf.batch.engines import Engine, Prompt
from llava_stf.errors import FusionError, LlavaStfError, MissingDependencyError, PromptError

if TYPE_CHECKING:
    from vllm import LLM

    from llava_stf.batch.job import BatchJob

MAX_IMAGES = 16  # in one row; vLLM wants to know


class VllmEngine(Engine):
    """An `LLM` and the processor of the same model.

    The prompts reach vLLM as token ids, so that they are those of transformers, for a plain LLaVA, too.
    """

    def __init__(self, llm: LLM, processor: Any, job: BatchJob, suppressed: Sequence[int]) -> None:
        from vllm import SamplingParams

        from llava_stf.data.preparation import tokens_per_image

        self.batch_size = job.batch_size
        self._llm = llm
        self._processor = processor
        self._tokens_per_image = tokens_per_image(processor)
        asked = {"mm_processor_kwargs": {"vision_tokens": job.vision_tokens}}
        self._options = asked if isinstance(job.vision_tokens, int) else {}
        # A bias of -100 is vLLM's least: an id that is no text is not chosen, as in `LlavaStf.generate`.
        self._sampling = SamplingParams(
            temperature=0, max_tokens=job.max_new_tokens, logit_bias=dict.fromkeys(suppressed, -100.0)
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
        from llava_stf.models.llava_stf.chunks import tokenize_chunks
        from llava_stf.models.llava_stf.conversation import render_chat

        text = render_chat(self._processor, [prompt.message])
        image_id = self._processor.image_token_id
        ids = tokenize_chunks(self._processor.tokenizer, text, image_token_id=image_id)
        length = len(ids) + len(prompt.images) * (self._tokens_per_image - 1)
        limit = self._llm.model_config.max_model_len
        if length >= limit:
            raise PromptError(
                f"The prompt has {length} tokens, {len(prompt.images) * self._tokens_per_image} of them for "
                f"{len(prompt.images)} image(s), and the model has positions for {limit - 1} and an answer: ask "
                "shorter or with fewer images."
            )
        if len(prompt.images) > MAX_IMAGES:
            raise PromptError(f"A row may have {MAX_IMAGES} images with vLLM, found {len(prompt.images)}.")
        return {"prompt_token_ids": ids, "multi_modal_data": {"image": prompt.images}, **self._options}


def load_vllm(job: BatchJob) -> VllmEngine:
    """Loads the job's model into vLLM.

    Raises:
        MissingDependencyError: vLLM is not installed.
        FusionError: a plain LLaVA is to be patched, which vLLM does not do, the model takes images in tiles, or its
            projector is that of another paper.
        LlavaStfError: an option is not vLLM's.
    """
    from llava_stf.loading import BUNDLED, bundled_folder, load_processor, read_config
    from llava_stf.models.fusion.config import FusionConfig, refuse_resampler
    from llava_stf.models.fusion.tiles import refuse_tiles
    from llava_stf.models.llava_stf.vocabulary import suppressed_ids

    if job.quantization is not None or job.device is not None:
        raise LlavaStfError("quantization and device are for transformers; vLLM takes them from the checkpoint itself.")
    os.environ.setdefault("VLLM_LOGGING_STREAM", "ext://sys.stderr")  # stdout is for results
    path = bundled_folder(job.model) if job.model in BUNDLED else job.model
    config = read_config(job.model)
    refuse_tiles(config, "The engine vllm")
    refuse_resampler(config, "The engine vllm")
    try:
        from vllm import LLM
    except ImportError as error:
        raise MissingDependencyError("The engine vllm needs vLLM: pip install 'llava-stf[vllm]'") from error
    vision_tokens = BUNDLED.get(job.model) if job.vision_tokens is None else job.vision_tokens
    if not isinstance(config, FusionConfig) and vision_tokens != "all":
        raise FusionError(
            f"{job.model} is a plain LLaVA, and vLLM runs models as they are saved: save it patched "
            "(load_model(...).model.save_pretrained), or ask for all its tokens (--vision-tokens all)."
        )
    options = {"dtype": job.dtype or "auto", "limit_mm_per_prompt": {"image": MAX_IMAGES}, **job.vllm_options}
    try:
        llm = LLM(str(path), **options)
    except (TypeError, ValueError) as error:
        raise LlavaStfError(f"vLLM does not take {job.model} with {options}: {error}") from error
    processor = load_processor(job.model, vision_tokens=vision_tokens)  # type: ignore[arg-type]  # no word
    return VllmEngine(llm, processor, job, suppressed_ids(config, processor.tokenizer))
