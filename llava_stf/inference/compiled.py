"""Compiled generation of a LLaVA: tower and projector, prefill in length buckets, and decoding over a static cache.

At batch 1 a fast GPU waits for Python to launch kernels, so fewer tokens alone save little. Here everything that reads
weights is compiled for fixed shapes, on CUDA into CUDA graphs. transformers' `generate` still prepares a request, with
its logits processors, stopping criteria and streamers, and the cache is its static one. Three things are compiled, each
at the first request that needs it:

    tower and projector  per number of images in a batch, and of tokens of each
    prefill              per batch size, prompt bucket and cache length
    decoding             per batch size and cache length

The loop over tokens is our own. That of transformers gives the same ids over the same cache (5.17, 5.24), but reads the
last token of a prompt eagerly, makes each token's mask outside the graph, and takes 16 to 21 % more for a further token
(the bundled model and one of 12 layers of 768, one core of an AMD EPYC with AVX-512, 29 November 2026).

Shapes: B rows, L prompt tokens, P >= L tokens of the bucket, T new tokens, R image tokens of all rows, H LLM width.
"""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import torch
import torch._dynamo
from torch import Tensor
from torch.nn import functional
from transformers import (
    BatchFeature,
    GenerationConfig,
    LlavaForConditionalGeneration,
    LogitsProcessorList,
    StaticCache,
    StoppingCriteriaList,
)
from transformers.generation.streamers import BaseStreamer

from llava_stf.inference.reading import other_ways
from llava_stf.inference.static_caches import StaticCaches, prompt_bucket
from llava_stf.models.fusion.budget import budget_of_prompt
from llava_stf.models.fusion.config import FusionConfig
from llava_stf.models.fusion.modeling import CACHE
from llava_stf.models.fusion.tiles import has_tiles, takes_videos
from llava_stf_kernels import place_tokens

logger = logging.getLogger(__name__)

# Where torch stops compiling further shapes; its default of 8 is a few buckets and batch sizes.
MAX_SHAPES = 64
_RECORD = "return_dict_in_generate"  # with what each step gave, which the loop here does not keep
# One thread for all compiled work of the process. torch keeps CUDA graphs per thread, so a stream, which generates
# beside the thread that reads it, would record its own; and two requests must not write one cache at a time.
_WORKER = ThreadPoolExecutor(max_workers=1, thread_name_prefix="llava_stf_compiled")


class CompiledGeneration:
    """Generates as `model.generate` does, compiled; the model itself stays as it is and runs eagerly for others.

    Args:
        model: a LLaVA-STF or a plain LLaVA, on one device.
        backend: of `torch.compile`; CUDA graphs come with `"inductor"` alone.

    The `MAX_CACHES` caches used last are kept, each `2 * layers * B * kv_heads * head_dim * length` elements: 256 MiB
    for a 7B LLaVA-1.5 in bfloat16 at B = 1 and 512 tokens. A request takes the shortest that it fits, so a longer
    answer costs nothing until prompt and answer pass the cache's length.
    """

    def __init__(self, model: LlavaForConditionalGeneration, backend: Any = "inductor") -> None:
        self._model = model
        options = {"dynamic": False, "backend": backend, "mode": _mode(model.device)}
        self._image_tokens = torch.compile(self._eager_image_tokens, **options)
        self._logits = torch.compile(self._eager_logits, **options)
        self._caches = StaticCaches(model)
        self._told: list[list[str]] = []
        self._run_once()

    def covers(self, options: dict[str, Any]) -> bool:
        """Whether `generate` with these keywords is compiled; says once, in a sentence, that others are not."""
        defaults = self._model.generation_config
        settings = options.get("generation_config") or defaults
        other = other_ways(options, defaults)
        if options.get(_RECORD, getattr(settings, _RECORD, None)):
            other.append(_RECORD)
        if other and other not in self._told:
            self._told.append(other)
            logger.warning("Generation with %s is not compiled and runs eagerly.", " and ".join(other))
        return not other

    def generate(self, inputs: BatchFeature, options: dict[str, Any]) -> Tensor:
        """Prompt and new ids [B, L + T], int64, as `model.generate(**inputs, **options)`; padding is on the left."""
        # Bound here: `generate` itself encodes images eagerly, and hands no streamer to a loop that is not its own.
        decode = partial(self._decode, pixel_values=inputs.get("pixel_values"), streamer=options.get("streamer"))
        prompt = {"input_ids": inputs["input_ids"], "attention_mask": inputs["attention_mask"]}
        return _WORKER.submit(self._model.generate, **prompt, custom_generate=decode, **options).result()

    @torch._dynamo.config.patch(recompile_limit=MAX_SHAPES)
    def _decode(
        self,
        model: LlavaForConditionalGeneration,
        input_ids: Tensor,
        logits_processor: LogitsProcessorList,
        stopping_criteria: StoppingCriteriaList,
        generation_config: GenerationConfig,
        pixel_values: Tensor | None,
        streamer: BaseStreamer | None,
        **model_kwargs: Any,
    ) -> Tensor:
        """The loop that `generate` runs in place of its own, which compiles decoding but no prefill with images."""
        rows, length = input_ids.shape
        prompt = prompt_bucket(length)
        start = prompt - length
        cache = self._caches.get(rows, prompt + generation_config.max_length - length)
        # Over the whole cache, so that its shape stays; causality hides what is not written yet.
        mask = input_ids.new_ones(rows, cache.get_max_length())
        mask[:, :start] = 0
        if model_kwargs.get("attention_mask") is not None:  # dropped by `generate` where it hides nothing
            mask[:, start:prompt] = model_kwargs["attention_mask"]
        positions = (mask[:, :prompt].cumsum(-1) - 1).clamp(min=0)
        new = {"inputs_embeds": self._embed(functional.pad(input_ids, (start, 0)), pixel_values)}
        filler = _filler(generation_config)
        finished = torch.zeros(rows, dtype=torch.bool, device=input_ids.device)
        while True:
            # Copied, because the next replay of a CUDA graph writes over it. Every compiled call is a step of its own
            # to torch; `torch.compiler.cudagraph_mark_step_begin`, once called, would join all calls up to the next
            # mark to one step and record a graph for each token of an answer.
            logits = self._logits(mask, positions, cache, **new).to(torch.float32, copy=True)
            scores = logits_processor(input_ids, logits)
            if generation_config.do_sample:
                tokens = torch.multinomial(scores.softmax(-1), 1).squeeze(1)
            else:
                tokens = scores.argmax(-1)
            tokens = torch.where(finished, filler, tokens)
            input_ids = torch.cat([input_ids, tokens[:, None]], dim=-1)
            if streamer is not None:
                streamer.put(tokens.cpu())
            finished = finished | stopping_criteria(input_ids, None)
            if finished.all():
                break
            new = {"input_ids": tokens[:, None]}
            positions = positions[:, -1:] + 1
        if streamer is not None:
            streamer.end()
        return input_ids

    def _embed(self, ids: Tensor, pixel_values: Tensor | None) -> Tensor:
        """Embeddings of a prompt with its image tokens in place: [B, P] -> [B, P, H]."""
        embeddings = self._model.get_input_embeddings()(ids)
        if pixel_values is None:
            return embeddings
        projector = self._model.model.multi_modal_projector
        places = ids == self._model.config.image_token_id
        tokens = self._image_tokens(pixel_values, **self._asked(places, pixel_values)).to(embeddings.dtype)
        backend = getattr(projector, "kernels", "torch")  # a plain LLaVA names none
        return place_tokens(embeddings, tokens, places, backend=backend)

    def _asked(self, image_token_mask: Tensor, pixel_values: Tensor) -> dict[str, int]:
        """What a fused model is told of the tokens that each image takes."""
        config = self._model.config
        if not isinstance(config, FusionConfig):
            return {}
        sizes = self._model.model.sizes_of_images(pixel_values)
        return {"vision_tokens": budget_of_prompt(config, image_token_mask, sizes)}

    def _eager_image_tokens(self, pixel_values: Tensor, **asked: int) -> Tensor:
        """Tower and projector: [images, 3, height, width] -> [R, H]."""
        return torch.cat(self._model.get_image_features(pixel_values, return_dict=True, **asked).pooler_output)

    def _eager_logits(self, mask: Tensor, positions: Tensor, cache: StaticCache, **new: Tensor) -> Tensor:
        """Logits [B, vocabulary] after `new`, which the cache takes in: `inputs_embeds` of a prompt or `input_ids`."""
        fixed = {"attention_mask": mask, "position_ids": positions, CACHE: cache, "use_cache": True}
        return self._model(**new, **fixed, logits_to_keep=1).logits[:, -1]

    @torch.no_grad()
    def _run_once(self) -> None:
        """What tracing cannot do: transformers hooks the tower's states."""
        side = self._model.config.vision_config.image_size
        pixels = torch.zeros(1, 3, side, side, dtype=self._model.dtype, device=self._model.device)
        self._eager_image_tokens(pixels)


def compile_generation(model: LlavaForConditionalGeneration) -> CompiledGeneration | None:
    """Compiled generation of this model, or `None` and one sentence in the log where it cannot be had."""
    reason = _reason_for_eager(model)
    if reason is not None:
        logger.warning("Nothing is compiled and everything runs eagerly: %s", reason)
        return None
    return CompiledGeneration(model)


def _reason_for_eager(model: LlavaForConditionalGeneration) -> str | None:
    """Why this model cannot be compiled here; `None` if it can."""
    if has_tiles(model.config):
        return "images in tiles, as LLaVA-NeXT takes them, differ in their number of tokens."
    if takes_videos(model.config):
        return "a model that takes videos is told of frames, too."
    quantizer = getattr(model, "hf_quantizer", None)
    if quantizer is not None and not quantizer.is_compileable:
        return "transformers does not compile weights that are quantized in this way."
    devices = {str(device) for device in getattr(model, "hf_device_map", {}).values()}
    if len(devices) > 1:
        return f"the model is spread over {', '.join(sorted(devices))}, expected one device."
    attention = model.config.text_config._attn_implementation
    if attention not in ("sdpa", "eager"):
        return f"a static cache needs attn_implementation 'sdpa' or 'eager', found '{attention}'."
    return _WORKER.submit(_probe, model.device).result()


@torch.no_grad()
def _probe(device: torch.device) -> str | None:
    """Asks the platform by compiling a line for it: a compiler or Triton may be missing, or the GPU be too old."""
    add_one = torch.compile(lambda x: x + 1, dynamic=False, mode=_mode(device))
    try:
        for _ in range(3):  # CUDA graphs: warm up, record, replay
            add_one(torch.ones(8, device=device))
    except (RuntimeError, AssertionError) as error:  # the latter from CUDA graphs in a thread, in older torch
        return str(error).strip().partition("\n")[0]
    return None


def _filler(config: GenerationConfig) -> int:
    """The id that follows the end of a row while others go on."""
    end = config.eos_token_id[0] if isinstance(config.eos_token_id, list) else config.eos_token_id
    return next((id_ for id_ in (config.pad_token_id, end) if id_ is not None), 0)


def _mode(device: torch.device) -> str:
    """The mode of `torch.compile`; CUDA graphs where there are any."""
    return "reduce-overhead" if device.type == "cuda" else "default"
