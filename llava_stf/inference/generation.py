"""What generation needs beside the model: its options, checks of what is asked for and comes, and a stream of text."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Generator, Iterator, Mapping
from typing import Any

import torch
import transformers
from transformers import (
    GenerationConfig,
    LlavaForConditionalGeneration,
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteriaList,
)
from transformers.generation.streamers import BaseStreamer

from llava_stf.errors import CheckpointError, PromptError
from llava_stf.inference.answer_text import AnswerText, Decoder
from llava_stf.io.requirements import release_of
from llava_stf.models.fusion.modeling import places_of
from llava_stf.models.llava_stf.vocabulary import with_suppressed

# Before 5.23 transformers reads a prompt in parts without its images.
_CHUNKS_HAVE_IMAGES = (release_of(transformers.__version__) or (5, 23)) >= (5, 23)
# Before 5.19 it repeats each image, and not the images of each prompt, for several sequences of one.
_REPEATS_PROMPTS = (release_of(transformers.__version__) or (5, 19)) >= (5, 19)
_PIXELS = {"image": ("pixel_values", "pixel_values_images"), "video": ("pixel_values_videos",)}


def generation_options(
    model: LlavaForConditionalGeneration,
    tokenizer: Any,
    given: Mapping[str, Any],
    max_new_tokens: int,
    inputs: Mapping[str, Any],
    *,
    room: int,
) -> dict[str, Any]:
    """The keywords of `generate` that a batch is generated with: greedy unless told otherwise.

    Args:
        model: what generates.
        tokenizer: of the model, for stop strings; `None` if it has none.
        given: what the user gave.
        max_new_tokens: that the user asked for.
        inputs: of the batch.
        room: positions that the model has left for an answer.

    Raises:
        PromptError: `max_new_tokens` is below 1, or this version of transformers would answer about other images.
    """
    if not isinstance(max_new_tokens, int) or max_new_tokens < 1:
        raise PromptError(f"max_new_tokens must be a whole number of at least 1, found {max_new_tokens!r}.")
    greedy = {} if "generation_config" in given else {"do_sample": False}
    options = {**greedy, **given, "max_new_tokens": min(max_new_tokens, room)}
    settings = options.get("generation_config") or model.generation_config
    if options.get("stop_strings", settings.stop_strings):
        options.setdefault("tokenizer", tokenizer)
    reduction = getattr(model.model, "reduction", None)
    reads_prompt = reduction is not None and reduction.method.reads_prompt
    if len(inputs["input_ids"]) > 1 or reads_prompt:
        # Faster for one row, not done for several; and what reads the prompt would read guesses at its answer.
        options["prompt_lookup_num_tokens"] = None
    if reads_prompt or not _CHUNKS_HAVE_IMAGES:
        options["prefill_chunk_size"] = None  # it saves memory, and answers stay those of the prompt in one piece
    if not _REPEATS_PROMPTS:
        _check_images_of_sequences(model, inputs, options, settings)
    options["logits_processor"] = LogitsProcessorList([*options.get("logits_processor", []), RefuseNan()])
    options["suppress_tokens"] = with_suppressed(options, model.generation_config, model.config, tokenizer)
    return options


def _check_images_of_sequences(
    model: LlavaForConditionalGeneration, inputs: Mapping[str, Any], options: dict[str, Any], settings: GenerationConfig
) -> None:
    """Raise `PromptError` for several sequences of prompts that have several images, or videos, each."""
    for name in ("num_beams", "num_return_sequences"):
        count = options.get(name, getattr(settings, name)) or 1
        if count == 1:
            continue
        for kind, places in places_of(model.config, inputs["input_ids"]).items():
            shown = next((inputs[key] for key in _PIXELS[kind] if inputs.get(key) is not None), ())
            if len(shown) != int(places.any(-1).sum()):
                raise PromptError(
                    f"transformers {transformers.__version__} mixes up the {kind}s of a prompt that has several where "
                    f"{name} is {count}; 5.19 and later do not."
                )


def check_one_answer(options: dict[str, Any], defaults: GenerationConfig) -> None:
    """Raise `PromptError` for several answers to a question, of which a text has no place for the others."""
    settings = options.get("generation_config") or defaults
    count = options.get("num_return_sequences", settings.num_return_sequences)
    if count not in (None, 1):
        raise PromptError(
            f"A question gets one answer, and num_return_sequences is {count}, here or in generation_config.json; call "
            "LlavaStf.generate for several."
        )


def searches(options: dict[str, Any], defaults: GenerationConfig) -> bool:
    """Whether answers are searched by beams, so that no token is known before all are."""
    settings = options.get("generation_config") or defaults
    return (options.get("num_beams", settings.num_beams) or 1) > 1


def stream_pieces(
    generate: Callable[..., Any], generate_kwargs: dict[str, Any], decoder: Decoder
) -> Generator[str, None, None]:
    """The text of one row, piece by piece, while a thread of its own generates it.

    Closing the iterator ends the generation. What `generate` raises is raised here.

    Args:
        generate: takes keywords of `generate`.
        generate_kwargs: those that the user gave.
        decoder: of the tokenizer.
    """
    answer, streamer = AnswerText(decoder), _NewTokens()
    closed = threading.Event()
    failures: list[BaseException] = []

    def is_closed(ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        return torch.full((ids.shape[0],), closed.is_set(), device=ids.device)

    criteria = StoppingCriteriaList([*generate_kwargs.get("stopping_criteria", []), is_closed])
    options = {**generate_kwargs, "streamer": streamer, "stopping_criteria": criteria}

    def run() -> None:
        try:
            generate(**options)
        except BaseException as error:  # noqa: BLE001 - raised again in the thread that reads
            failures.append(error)
        finally:
            streamer.end()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        for token in streamer:
            yield from filter(None, [answer.add(token)[0]])
    finally:
        closed.set()
        thread.join()
    if failures:
        raise failures[0]
    yield from filter(None, [answer.finish()])


def one_piece(ask: Callable[[], str]) -> Generator[str, None, None]:
    """An answer that is known as a whole only, as an iterator of pieces."""
    yield from filter(None, [ask()])


class RefuseNan(LogitsProcessor):
    """Raises `CheckpointError` if the logits behind a prompt are no numbers, of which any id could be made."""

    def __init__(self) -> None:
        self._seen = False

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """`scores` [B, vocabulary] as they are."""
        if not self._seen and scores.isnan().any():
            raise CheckpointError(
                "The model computes no numbers (NaN): its weights or its config.json are damaged, or float16 is too "
                "small for it; load it with dtype='bfloat16' or 'float32'."
            )
        self._seen = True
        return scores


class _NewTokens(BaseStreamer):
    """The new ids of one row, for the thread that iterates: `generate` first puts the prompt, then id by id."""

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[int | None] = queue.SimpleQueue()
        self._prompt_is_next = True

    def put(self, value: torch.Tensor) -> None:
        """Take what `generate` gives, several ids where it foretells some; raises nothing."""
        if not self._prompt_is_next:
            for token in value.flatten().tolist():
                self._queue.put(token)
        self._prompt_is_next = False

    def end(self) -> None:
        """No id follows."""
        self._queue.put(None)

    def __iter__(self) -> Iterator[int]:
        return iter(self._queue.get, None)
