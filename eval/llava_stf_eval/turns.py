"""Several questions about one image, one turn after another: who still answers once the first one chose the tokens?

A chat can be read again at every turn, which costs a whole prompt each time and lets a method choose anew, or go on
from the cache of the turns before. In the cache of a method that drops tokens inside the LLM is what the first question
left of the image. Methods that do not know the question answer alike in both ways, but for rounding.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from transformers import DynamicCache

from llava_stf import LlavaStf
from llava_stf.errors import LlavaStfError
from llava_stf.inference import Message, user_turn
from llava_stf.models.fusion.modeling import CACHE
from llava_stf.models.llava_stf.vocabulary import with_suppressed
from llava_stf.world import Question, draw, is_right, questions_of

MAX_NEW_TOKENS = 12
MOST_TURNS = 8


@dataclass(frozen=True)
class Turns:
    """Shares of right answers at each turn, of one method: with the chat read again, and going on from the cache."""

    method: str
    vision_tokens: int
    images: int
    again: list[float]
    cached: list[float]


def chats(images: int, turns: int, seed: int = 0) -> list[tuple[Image.Image, list[Question]]]:
    """The first held-out images with so many questions, and these; from image to image another of them comes first.

    So every family of questions is as frequent at one turn as at another.

    Raises:
        LlavaStfError: more turns than any image has questions, or no image.
    """
    if images < 1:
        raise LlavaStfError(f"questions are asked about 1 image or more, found {images}")
    if not 1 <= turns <= MOST_TURNS:
        raise LlavaStfError(f"turns must be 1 to {MOST_TURNS}, the most questions about an image; found {turns}.")
    found: list[tuple[Image.Image, list[Question]]] = []
    for index in itertools.count():
        scene, pixels = draw(index, seed=seed, split="held_out")
        questions = questions_of(scene, index, seed=seed, split="held_out")[:turns]
        if len(questions) == turns:
            first = len(found) % turns
            found.append((Image.fromarray(pixels), questions[first:] + questions[:first]))
        if len(found) == images:
            break
    return found


def read_again(llava: LlavaStf, image: Image.Image, questions: Sequence[str]) -> list[str]:
    """Answers of a chat that is read from its beginning at every turn."""
    chat = llava.chat(image)
    return [chat.ask(question, max_new_tokens=MAX_NEW_TOKENS) for question in questions]


@torch.inference_mode()
def go_on(llava: LlavaStf, image: Image.Image, questions: Sequence[str]) -> list[str]:
    """Answers of the same chat where every turn goes on from the cache of those before, greedy.

    Raises:
        LlavaStfError: the chat template writes what was read already anew once a turn is added.
    """
    model, _ = llava
    messages: list[Message] = []
    answers: list[str] = []
    cache, read = DynamicCache(config=model.config.text_config), torch.zeros(1, 0, dtype=torch.long)
    for question in questions:
        messages.append(user_turn(question, 0 if answers else 1))
        inputs = llava.encode([messages], [[image]])
        ids = inputs["input_ids"]
        if not torch.equal(ids[:, : read.shape[1]], read.to(ids)):
            raise LlavaStfError("Expected a chat template that only appends at a new turn, found one that does not.")
        if answers:
            del inputs["pixel_values"]
        inputs["input_ids"] = ids[:, read.shape[1] :]
        logits = model(**inputs, use_cache=True, **{CACHE: cache}).logits
        new = _greedy(llava, logits[:, -1], copy.deepcopy(cache), ids.shape[1])
        answers.append(llava.decoder(new).strip())
        messages.append({"role": "assistant", "content": [{"type": "text", "text": answers[-1]}]})
        read = ids
    return answers


def _greedy(llava: LlavaStf, logits: torch.Tensor, cache: DynamicCache, length: int) -> list[int]:
    model, processor = llava
    silent = with_suppressed({}, model.generation_config, model.config, processor.tokenizer)
    ends = model.generation_config.eos_token_id
    stops = {ends} if isinstance(ends, int) else set(ends or [])
    new: list[int] = []
    while len(new) < MAX_NEW_TOKENS:
        logits[:, silent] = -torch.inf
        token = logits.argmax(-1, keepdim=True)
        if int(token) in stops:
            break
        new.append(int(token))
        mask = torch.ones(1, length + len(new), dtype=torch.long, device=token.device)
        logits = model(input_ids=token, attention_mask=mask, use_cache=True, **{CACHE: cache}).logits[:, -1]
    return new


def measure_turns(name: str, llava: LlavaStf, vision_tokens: int, *, images: int, turns: int, seed: int = 0) -> Turns:
    """Ask `turns` questions about each of the first `images` of a held-out seed, in both ways."""
    right = {"again": [0] * turns, "cached": [0] * turns}
    for image, questions in chats(images, turns, seed):
        texts = [question.text for question in questions]
        for way, answers in (("again", read_again(llava, image, texts)), ("cached", go_on(llava, image, texts))):
            for turn, (answer, question) in enumerate(zip(answers, questions, strict=True)):
                right[way][turn] += is_right(answer, question.answer)
    shares = {way: [count / images for count in counts] for way, counts in right.items()}
    return Turns(name, vision_tokens, images, shares["again"], shares["cached"])
