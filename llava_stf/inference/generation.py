"""What generation needs beside the model: checks of what is asked for and of what comes, and a stream of text."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Generator, Iterator
from typing import Any

import torch
from transformers import GenerationConfig, LogitsProcessor, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

from llava_stf.errors import CheckpointError, PromptError
from llava_stf.inference.answer_text import AnswerText, Decoder


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


def searches(options: dict[str, Any], defaults: GenerationConfig) -> bool:
    """Whether answers are searched by beams, so that no token is known before all are."""
    settings = options.get("generation_config") or defaults
    return (options.get("num_beams", settings.num_beams) or 1) > 1


def check_one_answer(options: dict[str, Any], defaults: GenerationConfig) -> None:
    """Raise `PromptError` for several answers to a question, of which a text has no place for the others."""
    settings = options.get("generation_config") or defaults
    count = options.get("num_return_sequences", settings.num_return_sequences)
    if count not in (None, 1):
        raise PromptError(
            f"A question gets one answer, and num_return_sequences is {count}, here or in generation_config.json; call "
            "LlavaStf.generate for several."
        )
