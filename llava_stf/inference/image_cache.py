"""Images that are encoded once: their tokens, kept by what the image is and how many tokens it was asked for.

What an image becomes does not depend on the question (a method that looks at the prompt says so, `reads_prompt`), so
that its tokens serve every later turn and every other conversation. They are kept up to a number of bytes, those used
last.
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional
from transformers import BatchFeature

from llava_stf.inference.interface import Encoder
from llava_stf.models.fusion.budget import FusedConfig, VisionTokens, budget_per_image
from llava_stf.models.llava_stf.chunks import IMAGE_TOKEN

IMAGE_BYTES = 128 * 2**20  # 113 images of a 7B model at 144 tokens in 16 bits
OF_AN_IMAGE = ("pixel_values", "pixel_values_images", "image_sizes")  # what processors call what they make of images
MAX_TOGETHER = 16  # images in one run of the tower


@dataclass
class SeenImage:
    """An image in a prompt: pixels until it is encoded, and then its tokens.

    Attributes:
        key: tells it from every other image and from itself at another budget.
        budget: tokens of the image, or of one of its tiles.
        count: placeholders that it takes in a prompt.
        inputs: what the processor made of it, `pixel_values` [1, ...] among it; `None` once it is encoded.
        tokens: [count, H], on the model's device and in its dtype.
    """

    key: tuple[bytes, int]
    budget: int
    count: int
    inputs: BatchFeature | None = None
    tokens: Tensor | None = None

    @property
    def nbytes(self) -> int:
        """Of the tensors that it holds."""
        held = [] if self.inputs is None else [value for value in self.inputs.values() if isinstance(value, Tensor)]
        return sum(tensor.nbytes for tensor in (*held, *([] if self.tokens is None else [self.tokens])))


def digest_of(source: bytes | Image.Image) -> bytes:
    """What tells a file or an opened image from others."""
    if isinstance(source, bytes):
        return hashlib.sha256(source).digest()
    return hashlib.sha256(f"{source.mode} {source.size} ".encode() + source.tobytes()).digest()


def stamp_of(model: nn.Module) -> int:
    """Changes with the weights, the class and the parts of a model, but for weights that are written to by `.data`."""
    weights = ((parameter.data_ptr(), parameter._version) for parameter in model.parameters())
    return hash((type(model), id(model.config), *weights))


class ImageCache:
    """The images that one pipeline has encoded; threads may share it.

    Args:
        llava: what encodes them.
        limit: bytes of tokens that are kept.
    """

    def __init__(self, llava: Encoder, limit: int = IMAGE_BYTES) -> None:
        self.limit = limit
        self._llava = llava
        self._lock = threading.Lock()
        self._kept: OrderedDict[tuple[bytes, int], Tensor] = OrderedDict()
        self._stamp = 0

    @property
    def nbytes(self) -> int:
        """Of the tokens that are kept."""
        with self._lock:
            return sum(tokens.nbytes for tokens in self._kept.values())

    def renew(self) -> int:
        """Forgets what another state of the model has made; the model's stamp."""
        stamp = stamp_of(self._llava.model)
        with self._lock:
            if stamp != self._stamp:
                self._kept.clear()
            self._stamp = stamp
        return stamp

    def find(self, digest: bytes, vision_tokens: VisionTokens = None) -> SeenImage | None:
        """An image that is encoded already. Raises `FusionError` where the model has no such budget."""
        budget = budget_per_image(self._llava.model.config, vision_tokens)
        with self._lock:
            tokens = self._kept.get((digest, budget))
            if tokens is None:
                return None
            self._kept.move_to_end((digest, budget))
        return SeenImage((digest, budget), budget, len(tokens), tokens=tokens)

    def see(self, digest: bytes, image: Image.Image, vision_tokens: VisionTokens = None) -> SeenImage:
        """An image ready to be encoded, or encoded already.

        Raises:
            FusionError: the model has no such budget.
            PromptError: it alone does not fit into the model's positions.
        """
        found = self.find(digest, vision_tokens)
        if found is not None:
            return found
        config = self._llava.model.config
        budget = budget_per_image(config, vision_tokens)
        inputs = self._llava.encode([IMAGE_TOKEN], [[image]], vision_tokens)
        count = int((inputs.pop("input_ids") == config.image_token_id).sum())
        del inputs["attention_mask"]
        return SeenImage((digest, budget), budget, count, inputs)

    def encode(self, images: Iterable[SeenImage]) -> None:
        """Runs tower and projector for the images that have no tokens yet, once for each that differs."""
        missing: dict[tuple[bytes, int], list[SeenImage]] = {}
        for image in images:
            if image.tokens is None:
                missing.setdefault(image.key, []).append(image)
        for key, same in missing.items():
            with self._lock:
                tokens = self._kept.get(key)
            for image in same if tokens is not None else ():
                image.tokens = tokens
        new = [same for same in missing.values() if same[0].tokens is None]
        for budget in {same[0].budget for same in new}:
            group = [same for same in new if same[0].budget == budget]
            for start in range(0, len(group), MAX_TOGETHER):
                part = group[start : start + MAX_TOGETHER]
                for same, tokens in zip(part, self._tokens([same[0] for same in part]), strict=True):
                    for image in same:
                        image.tokens = tokens
                    self._keep(same[0].key, tokens)
        for same in missing.values():
            for image in same:
                image.inputs = None

    @torch.no_grad()
    def _tokens(self, images: Sequence[SeenImage]) -> list[Tensor]:
        """The tokens of images of one budget, each a tensor of its own."""
        model = self._llava.model
        inputs = join_images([image.inputs for image in images])  # what has no tokens has pixels
        asked: dict[str, Any] = {"vision_tokens": images[0].budget} if isinstance(model.config, FusedConfig) else {}
        features = model.get_image_features(**inputs, **asked, return_dict=True).pooler_output
        if features[0].dim() == 3:  # tiles, in versions of transformers that join them later
            inner, sizes = model.model, inputs["image_sizes"]
            strategy = model.config.vision_feature_select_strategy
            features = inner.pack_image_features(features, sizes, strategy, inner.image_newline)[0]
        for image, tokens in zip(images, features, strict=True):
            assert len(tokens) == image.count, f"{image.count} placeholders for {len(tokens)} tokens"
        return [tokens.clone() for tokens in features]

    def _keep(self, key: tuple[bytes, int], tokens: Tensor) -> None:
        with self._lock:
            self._kept[key] = tokens
            used = sum(kept.nbytes for kept in self._kept.values())
            while used > self.limit:
                used -= self._kept.popitem(last=False)[1].nbytes


def join_images(inputs: Sequence[BatchFeature]) -> dict[str, Tensor]:
    """The images of several inputs as one batch; those in tiles are padded to the most of them."""
    joined = {}
    for name in (*OF_AN_IMAGE, "batch_num_images"):
        values = [each[name] for each in inputs if name in each]
        if values and values[0].ndim == 5:
            most = max(value.shape[1] for value in values)
            values = [functional.pad(value, (0, 0) * 3 + (0, most - value.shape[1])) for value in values]
        if values:
            joined[name] = torch.cat(values)
    return joined
