"""The model class for lmms-eval: any LLaVA or LLaVA-STF, by any method, at any number of vision tokens, in batches.

    lmms_eval --model llava_stf --model_args pretrained=tiny,vision_tokens=16 --tasks pope --batch_size 16

Importing this module imports lmms-eval; its registry does so by the entry point in `llava_stf_eval.plugin`.
"""

from __future__ import annotations

import gc
import hashlib
import json
import logging
import os
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from lmms_eval.api.instance import GenerationResult, Instance, TokenCounts
from lmms_eval.api.model import lmms
from lmms_eval.models.model_utils.gen_metrics import log_metrics
from lmms_eval.protocol import ChatMessages
from PIL import Image
from tqdm import tqdm

from llava_stf.errors import CheckpointError, LlavaStfError, PromptError
from llava_stf.images import load_image
from llava_stf.images.frames import Video
from llava_stf.inference import user_turn
from llava_stf.reduction.options import known_options
from llava_stf_eval.benchmarks.generation import cut, generate_options, is_out_of_memory, unknown_settings
from llava_stf_eval.benchmarks.journal import Answer, Journal
from llava_stf_eval.benchmarks.models import ModelOptions
from llava_stf_eval.benchmarks.prompts import without_instructions

logger = logging.getLogger(__name__)


class LlavaStfLmms(lmms):
    """Answers lmms-eval's requests; prompts, square padding and greedy decoding are those of `llava_stf.LlavaStf`.

    Args:
        pretrained: any model that `load_model` loads.
        batch_size: requests per step; halved for good when memory runs out, which is logged.
        journal: file that keeps the answers of every finished batch; a later run with the same file asks the rest.
        progress: called with (answered, all) requests after every batch, in place of a progress bar.
        **options: the other fields of `ModelOptions` and the options of its method, such as `full_layers` of FastV;
            every one is a key of `--model_args`.

    With several ranks (accelerate or torchrun) each takes the GPU of its local rank. `clean` keeps the model, so that
    one object serves several evaluations. Errors are raised; no request ever gets an empty answer in place of one.
    """

    is_simple = False

    def __init__(
        self,
        pretrained: str = "tiny",
        batch_size: int | str = 1,
        *,
        journal: str | Path | None = None,
        progress: Callable[[int, int], None] | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        options.pop("max_batch_size", None)  # of lmms-eval's command line; ours shrinks by itself
        fields, of_methods = set(ModelOptions.__dataclass_fields__), known_options()
        unknown = sorted(set(options) - fields - (of_methods - fields))
        if unknown:
            known = ", ".join([*ModelOptions.__dataclass_fields__, *sorted(of_methods - fields)])
            raise LlavaStfError(f"llava_stf has no option '{unknown[0]}'; known: {known}.")
        own = {name: options.pop(name) for name in set(options) - fields}
        options["method_options"] = {**options.get("method_options", {}), **own}
        if not str(batch_size).isdecimal() or int(batch_size) < 1:
            raise LlavaStfError(f"batch_size must be a whole number from 1 up, found '{batch_size}'.")
        self._rank, self._world_size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        if self._world_size > 1 and torch.cuda.is_available():
            options["device"] = f"cuda:{os.environ.get('LOCAL_RANK', 0)}"
            torch.cuda.set_device(options["device"])
        self.options = ModelOptions(pretrained=str(pretrained), **options).resolved()
        self.llava = self.options.load()
        if self.llava.processor is None:
            raise CheckpointError(f"{pretrained} came without a tokenizer, so it cannot be asked.")
        self.processor = self.llava.processor
        self.batch_size = int(batch_size)
        self._fits = self.batch_size
        self.journal = None if journal is None else Journal(Path(journal))
        self._progress = progress
        self._asked: dict[str, Instance] = {}

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.llava.model.device

    def generate_until(self, requests: list[Instance]) -> list[GenerationResult]:
        """Answers in the order of the requests, with the tokens of each prompt and answer.

        Args:
            requests: with arguments (context, doc_to_messages, generation settings, document id, task, split).
        """
        journal = Journal() if self.journal is None else self.journal
        keys = _keys(requests)
        self._asked = dict(zip(keys, requests, strict=True))
        done = sum(key in journal for key in keys)
        before = journal.seconds
        hidden = self.rank != 0 or self._progress is not None
        with tqdm(total=len(requests), initial=done, desc="Answering", disable=hidden) as bar:
            for batch in self._batches(requests):
                missing = [index for index in batch if keys[index] not in journal]
                while missing:
                    start = time.perf_counter()
                    answers = self._answer([requests[index] for index in missing[: self._fits]])
                    if answers is None:
                        continue
                    seconds = time.perf_counter() - start
                    part, missing = missing[: len(answers)], missing[len(answers) :]
                    journal.add(dict(zip((keys[index] for index in part), answers, strict=True)), seconds)
                    done += len(part)
                    bar.update(len(part))
                    if self._progress is not None:
                        self._progress(done, len(requests))
        found = [journal[key] for key in keys]
        for request, answer in zip(requests, found, strict=True):
            self.cache_hook.add_partial("generate_until", (request.args[0], request.args[2]), answer.text)
        self._log_throughput(found, journal.seconds - before)
        return [
            GenerationResult(answer.text, TokenCounts(answer.input_tokens, answer.output_tokens)) for answer in found
        ]

    def images(self, key: str) -> list[Image.Image]:
        """The images of a request of the last call, by its `request_key`; of a video the frames that were shown."""
        seen = self._conversation(self._asked[key])[1]
        return [image for one in seen for image in (one.frames if isinstance(one, Video) else [one])]

    def generate_until_multi_round(self, requests: list[Instance]) -> list[str]:
        """Not supported: refuses tasks of several rounds."""
        raise NotImplementedError("llava_stf answers one prompt at a time: tasks of several rounds are not supported.")

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """Not supported: refuses tasks that rank given answers."""
        raise NotImplementedError("llava_stf generates answers: tasks that rank given ones are not supported.")

    def clean(self) -> None:
        """Frees what the evaluation left over, but not the model."""
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _batches(self, requests: Sequence[Instance]) -> list[list[int]]:
        """Indices of the requests, batch by batch: same settings, long prompts first, so that memory runs out early.

        They depend on the requests alone and not on what was answered before: a batch that is repeated after a kill is
        padded as it was, and its answers are the same to the last bit.
        """
        groups: dict[str, list[int]] = defaultdict(list)
        for index, request in enumerate(requests):
            groups[json.dumps(request.args[2], sort_keys=True, default=str)].append(index)
        batches = []
        for indices in groups.values():
            unknown = unknown_settings(requests[indices[0]].args[2])
            if unknown:
                logger.warning("The task's generation settings %s mean nothing to llava_stf.", ", ".join(unknown))
            indices.sort(key=lambda index: -len(requests[index].args[0]))
            batches += [indices[at : at + self.batch_size] for at in range(0, len(indices), self.batch_size)]
        return batches

    def _answer(self, requests: Sequence[Instance]) -> list[Answer] | None:
        """Answers of one batch, or `None` if it did not fit into memory and a smaller one has to be tried."""
        try:
            return self._generate(requests)
        except (RuntimeError, MemoryError) as error:  # torch.OutOfMemoryError is a RuntimeError
            if len(requests) == 1 or not is_out_of_memory(error):
                raise
        # Outside of the handler: the traceback held the batch's tensors.
        self.clean()
        self._fits = len(requests) // 2
        logger.warning("Out of memory with a batch of %d: going on with %d at a time.", len(requests), self._fits)
        return None

    def _generate(self, requests: Sequence[Instance]) -> list[Answer]:
        settings = requests[0].args[2]
        limit, stops, options = generate_options(settings)
        if stops:
            options |= {"stop_strings": stops, "tokenizer": self.processor.tokenizer}
        read = [self._conversation(request) for request in requests]
        frames = {len(one.frames) for _, seen in read for one in seen if isinstance(one, Video)}
        if len(frames) > 1:  # which one batch cannot hold
            return [answer for request in requests for answer in self._generate([request])]
        inputs = self.llava.encode([messages for messages, _ in read], [images for _, images in read])
        lengths = inputs["attention_mask"].sum(-1).tolist()
        new = self.llava.generate(inputs, max_new_tokens=limit, **options)[:, inputs["input_ids"].shape[1] :].tolist()
        answers = []
        for (messages, _), length, row in zip(read, lengths, new, strict=True):
            ids = self._until_end(row)[: self.llava.model.config.text_config.max_position_embeddings - length]
            text = self.llava.decoder(ids)
            prompt = self.processor.apply_chat_template(messages, add_generation_prompt=True)
            answers.append(Answer(cut(text, stops).strip(), prompt, length, len(ids)))
        return answers

    def _conversation(self, request: Instance) -> tuple[list[dict[str, Any]], list[Image.Image | Video]]:
        """Messages of a request, in the form of the processor's chat template, and its images and videos."""
        _, doc_to_messages, _, doc_id, task, split = request.args
        messages: list[dict[str, Any]] = []
        visuals: list[Image.Image | Video] = []
        for message in ChatMessages(messages=doc_to_messages(self.task_dict[task][split][doc_id])).messages:
            parts = [part for part in message.content if part.type in ("image", "video")]
            texts = [part.text for part in message.content if part.type == "text"]
            if len(parts) + len(texts) != len(message.content):
                raise PromptError(f"Document {doc_id} of {task} holds a sound; expected images, videos and text.")
            try:
                visuals += [
                    Video(part.url, self.options.frames) if part.type == "video" else load_image(part.url)
                    for part in parts
                ]
                text = "\n".join(texts)
                videos = sum(part.type == "video" for part in parts)
                text = text if self.options.instructions else without_instructions(text)
                turn = user_turn(text, len(parts) - videos, videos)
            except LlavaStfError as error:
                raise type(error)(f"Document {doc_id} of {task}: {error}") from error
            messages.append(turn | {"role": message.role})
        return messages, visuals

    def _until_end(self, row: list[int]) -> list[int]:
        """New ids up to and with the first end token; a row of a batch that ended early is padded behind it."""
        ends = self.llava.model.generation_config.eos_token_id
        known = set(ends) if isinstance(ends, list) else {ends}
        pad = self.processor.tokenizer.pad_token_id
        for place, token in enumerate(row):
            if token in known:
                return row[: place + 1]
            if token == pad:
                return row[:place]
        return row

    def _log_throughput(self, answers: Sequence[Answer], seconds: float) -> None:
        said = sum(answer.output_tokens for answer in answers)
        extra = {
            "num_requests": len(answers),
            "input_tokens": sum(answer.input_tokens for answer in answers),
            "rank": self.rank,
        }
        log_metrics(seconds, said, said / seconds if seconds else 0.0, extra)


def request_key(task: str, doc_id: int, occurrence: int, context: str) -> str:
    """Name of a request in the journal; another context, that is, another data set, is another request."""
    return f"{task}/{doc_id}/{occurrence}/{hashlib.sha256(context.encode()).hexdigest()[:16]}"


def _keys(requests: Sequence[Instance]) -> list[str]:
    seen: Counter[tuple[str, int]] = Counter()
    keys = []
    for request in requests:
        context, _, _, doc_id, task, _ = request.args
        keys.append(request_key(task, doc_id, seen[task, doc_id], context))
        seen[task, doc_id] += 1
    return keys
