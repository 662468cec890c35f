"""From a request to the ids and images of its prompt, and from prompts to the inputs of a batch.

What is wrong with a request is known here, before it costs the model anything: texts are measured before they are
tokenised, and images before they are decoded, one after the other and within `Memory`.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from PIL import Image
from transformers import BatchFeature

from llava_stf.errors import ImageError, PromptError
from llava_stf.images import ImageHeader, load_image, read_header
from llava_stf.inference import Conversation, LlavaStf, Message
from llava_stf.inference.image_cache import OF_AN_IMAGE, SeenImage, digest_of, join_images
from llava_stf.inference.prefix import Prompt
from llava_stf.inference.reading import Reading
from llava_stf.models.fusion.budget import VisionTokens, budget_per_image
from llava_stf.models.fusion.detail import DETAILS, choose_budgets
from llava_stf.models.fusion.tiles import shows_several_whole
from llava_stf.models.llava_stf.chunks import IMAGE_TOKEN
from llava_stf.serving.memory import Memory, needed
from llava_stf.serving.options import ServeOptions
from llava_stf.serving.request_body import Bounds
from llava_stf.serving.rows import GenerationRequest

_Read = TypeVar("_Read")


class RequestEncoder:
    """Writes the prompts of requests; threads may share it.

    Args:
        llava: the model that they are for.
        options: `max_images`, `max_image_pixels` and `max_vision_tokens` are read.
        memory: where images are decoded.

    Attributes:
        bounds: what a request may hold at most.
    """

    def __init__(self, llava: LlavaStf, options: ServeOptions, memory: Memory) -> None:
        self._llava = llava
        self._options = options
        self._memory = memory
        self._reuses = llava.reuses()
        self._pad = llava.require_processor().tokenizer.pad_token_id
        self.bounds = Bounds(llava.positions, llava.decoder.longest * llava.positions, options.max_images)

    def encode(self, request: GenerationRequest) -> Prompt:
        """The request's ids and images.

        Raises:
            ImageError: an image cannot be read; it is named by its index.
            PromptError: as `LlavaStf.encode`.
            FusionError: as `LlavaStf.encode`.
        """
        self._check_length(request.conversation)
        # A text that does not fit is refused before any image is decoded: blank ones stand for them.
        blank, config = Image.new("RGB", (1, 1)), self._llava.model.config
        least = None if request.vision_tokens in DETAILS else request.vision_tokens
        inputs = self._llava.encode([request.conversation], [[blank] * len(request.images)], least)
        ids = inputs["input_ids"][0].tolist()
        bounds = [bound for bound in (request.max_vision_tokens, self._options.max_vision_tokens) if bound is not None]
        bound = min(bounds, default=None)
        headers = self._each(request, lambda source, _: read_header(source, max_pixels=self._options.max_image_pixels))
        asked = [detail or request.vision_tokens for detail in request.details or [None] * len(headers)]
        room = self._llava.room_for_images(len(ids) - ids.count(config.image_token_id), bound)
        budgets = choose_budgets(config, asked, [header.size[::-1] for header in headers], room=room)
        if self._reuses:
            seen = self._each(request, lambda source, at: self._see(source, headers[at], budgets[at]))
        else:  # by their pixels all images of a batch have one budget
            one = min(budgets) if any(asked) else None
            alone = len(headers) == 1
            seen = self._each(request, lambda source, at: self._see_pixels(source, headers[at], one, alone=alone))
            if seen and seen[0].inputs is not None and "batch_num_images" in inputs:
                seen[0].inputs["batch_num_images"] = inputs["batch_num_images"]
        counts = [image.count for image in seen]
        ids = self._give_places(ids, counts)
        self._llava.check_length(len(ids), counts, bound)
        return Prompt(ids, seen)

    def batch(self, prompts: Sequence[Prompt]) -> BatchFeature:
        """Inputs of prompts as one batch, nothing being known of them."""
        if self._reuses:
            return Reading(self._llava, prompts).inputs
        width = max(len(prompt.ids) for prompt in prompts)
        ids = [[self._pad] * (width - len(prompt.ids)) + prompt.ids for prompt in prompts]
        mask = [[0] * (width - len(prompt.ids)) + [1] * len(prompt.ids) for prompt in prompts]
        data = {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}
        images = [image.inputs for prompt in prompts for image in prompt.images if image.inputs is not None]
        return BatchFeature({**data, **join_images(images)}).to(self._llava.model.device)

    def _each(self, request: GenerationRequest, read: Callable[[bytes | Image.Image, int], _Read]) -> list[_Read]:
        """What is read of each image of a request. Raises `ImageError` with the image's number."""
        found = []
        for index, source in enumerate(request.images):
            try:
                found.append(read(source, index))
            except ImageError as error:
                raise ImageError(f"Image {index} of the request: {error}") from error
        return found

    def _see(self, source: bytes | Image.Image, header: ImageHeader, budget: int) -> SeenImage:
        """One image, decoded only if it is not known."""
        cache = self._llava.image_cache
        digest = digest_of(source) if isinstance(source, bytes) else None
        if digest is not None and (known := cache.find(digest, budget)) is not None:
            return known
        with self._memory.hold(needed(header)):
            image = load_image(source, max_pixels=self._options.max_image_pixels)
            return cache.see(digest or digest_of(image), image, budget)

    def _see_pixels(
        self, source: bytes | Image.Image, header: ImageHeader, vision_tokens: VisionTokens, *, alone: bool
    ) -> SeenImage:
        """One image as a model that reuses nothing takes it, alone in its prompt or not."""
        config = self._llava.model.config
        with self._memory.hold(needed(header)):
            image = load_image(source, max_pixels=self._options.max_image_pixels)
            # A blank one beside it, where others make a difference.
            beside = not alone and shows_several_whole(config)
            images = [image, Image.new("RGB", (1, 1))] if beside else [image]
            inputs = self._llava.encode([IMAGE_TOKEN * len(images)], [images], vision_tokens)
        data = BatchFeature({name: inputs[name][:1] for name in OF_AN_IMAGE if name in inputs})
        count = int((inputs["input_ids"] == config.image_token_id).sum()) // len(images)
        budget = budget_per_image(config, vision_tokens)
        return SeenImage((secrets.token_bytes(16), budget), budget, count, data)

    def _give_places(self, given: Sequence[int], counts: Sequence[int]) -> list[int]:
        """The ids of a prompt with each image's number of places instead of those of a blank one."""
        if not counts:
            return list(given)
        image_id = self._llava.model.config.image_token_id
        each, places, ids = given.count(image_id) // len(counts), 0, []
        for token in given:
            if token != image_id:
                ids.append(token)
                continue
            ids += [image_id] * (counts[places // each] if places % each == 0 else 0)
            places += 1
        return ids

    def _check_length(self, conversation: Conversation) -> None:
        """Refuses a text that cannot fit whatever its tokens are, since to find its tokens could take minutes."""
        found = len(conversation) if isinstance(conversation, str) else sum(map(_characters, conversation))
        if found > self.bounds.characters:
            raise PromptError(
                f"The prompt has {found:,} characters, and the model takes {self._llava.positions:,} tokens; "
                "ask shorter."
            )


def _characters(message: Message) -> int:
    content = message["content"]
    return len(content) if isinstance(content, str) else sum(len(item.get("text", "")) for item in content)
