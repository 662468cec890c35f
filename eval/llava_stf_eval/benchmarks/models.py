"""Which model a benchmark asks, at how many vision tokens and by which method: checked without weights, then loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from llava_stf.errors import FusionError, LlavaStfError, nearest

if TYPE_CHECKING:
    from transformers import LlavaConfig

    from llava_stf.inference import LlavaStf
    from llava_stf.reduction import Method

FULL, STF = "full", "stf"
EXPORTED = "exported"  # by whatever method the model was exported with, at its number of tokens


@dataclass(frozen=True)
class ModelOptions:
    """A checkpoint and how to run it; the fields are those of `load_model`, and five more.

    `method` is `"full"` (plain LLaVA, every vision token), `"stf"`, or one of `llava_stf.reduction`; `None` is what
    the checkpoint and `vision_tokens` say, which are tokens kept of an image. `method_options` are options of the
    method by name, as `{"full_layers": 3}` of FastV; without any it is the published one. `seed` is for methods that
    draw, `frames` are shown of a video. `instructions` says whether questions keep the lines that tell how to answer;
    by default all models get them but the bundled ones, which were trained on bare questions.
    """

    pretrained: str = "tiny"
    method: str | None = None
    vision_tokens: int | Literal["all"] | None = None
    method_options: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    dtype: str | None = None
    quantization: Literal["8bit", "4bit"] | None = None
    attn_implementation: str | None = None
    kernels: Literal["auto", "triton", "torch"] = "auto"
    device: str | None = None
    subfolder: str | None = None
    revision: str | None = None
    vision_tower: str | None = None
    init: str = "pool"
    compile: bool = False
    instructions: bool | None = None
    frames: int = 8

    def resolved(self) -> ModelOptions:
        """The same with a local checkpoint, a method and a count of tokens; fetches a hub model, loads no weights.

        Raises:
            LlavaStfError: no such method, or an option that the method does not take.
            ModelNotFoundError: as `load_model`.
            CheckpointError: as `load_model`.
            FusionError: as `load_model`.
        """
        from llava_stf.export.model import ExportedLlavaConfig
        from llava_stf.loading import BUNDLED
        from llava_stf.loading.checkpoint import own_vision_tokens
        from llava_stf.models.fusion.budget import patch_grid
        from llava_stf.models.fusion.config import RESAMPLERS, FusionConfig
        from llava_stf.reduction.options import changed_options

        path = self._local_path()
        config = self._config(path)
        instructions = self.pretrained not in BUNDLED if self.instructions is None else self.instructions
        if isinstance(config, ExportedLlavaConfig):
            if self.method not in (None, EXPORTED) or self.method_options:
                raise LlavaStfError(f"{self.pretrained} is an export, to which no method can be applied any more.")
            tokens = config.num_image_tokens([(0, 0)], self.vision_tokens)[0]
            return replace(
                self, pretrained=path, method=EXPORTED, vision_tokens=tokens, subfolder=None, revision=None,
                instructions=instructions,
            )  # fmt: skip
        patches = patch_grid(config) ** 2
        fused = isinstance(config, FusionConfig)
        asked = own_vision_tokens(config, self.pretrained) if self.vision_tokens is None else self.vision_tokens
        own = config.fusion if fused else STF
        method = self.method or (own if fused or asked not in ("all", patches) else FULL)
        check_method(method)
        if not fused and method in RESAMPLERS:
            raise LlavaStfError(
                f"Method '{method}' has weights that only training gives: train with --reduction {method}, and "
                "evaluate the folder that it writes."
            )
        if self.compile and not fused and method not in (FULL, STF):
            raise LlavaStfError(f"compile works with the methods {FULL} and {STF}, and the method is {method}.")
        if fused and method != own:
            raise FusionError(
                f"Method '{method}' works on a plain LLaVA, and {self.pretrained} is a LLaVA-STF; name a plain one or "
                f"take --method {own}."
            )
        if method == FULL and self.vision_tokens not in (None, "all", patches):
            raise FusionError(f"Method '{FULL}' keeps all {patches} vision tokens, found {self.vision_tokens}.")
        if method == FULL and self.method_options:
            raise FusionError(f"Method '{FULL}' has no options, found {', '.join(self.method_options)}.")
        options = {} if method == FULL else changed_options(configured(method, self.method_options))
        if method == STF or fused:
            tokens = self._fused_tokens(config, fused)
        else:
            tokens = patches if method == FULL else self._reduced_tokens(method, config, patches)
        return replace(
            self,
            pretrained=path,
            method=method,
            vision_tokens=tokens,
            method_options=options,
            subfolder=None,
            revision=None,
            instructions=instructions,
        )

    def placed(self) -> ModelOptions:
        """Of options that `resolved` gave, the same with the device and dtype that `load` would choose here.

        Raises:
            LlavaStfError: as `load_model`.
        """
        from llava_stf.loading import device_and_dtype

        if self.method == EXPORTED:  # which has its own
            return self
        device, dtype = device_and_dtype(
            self.pretrained,
            device=self.device,
            dtype=self.dtype,
            quantization=self.quantization,
            vision_tower=self.vision_tower,
        )
        return replace(self, device=device, dtype=dtype)

    def load(self) -> LlavaStf:
        """Loads what `resolved` gave.

        Raises:
            LlavaStfError: as `load_model` and `apply_reduction`.
        """
        from llava_stf.loading import load_model
        from llava_stf.models.fusion.config import FusionConfig

        assert self.method is not None, "resolve the options first"
        assert isinstance(self.vision_tokens, int)
        loaded = self.method in (STF, EXPORTED) or isinstance(self._config(self._local_path()), FusionConfig)
        llava = load_model(
            self.pretrained,
            vision_tokens=self.vision_tokens if loaded else "all",
            device=self.device,
            dtype=self.dtype,
            quantization=self.quantization,
            attn_implementation=self.attn_implementation,
            init=self.init,
            vision_tower=self.vision_tower,
            kernels=self.kernels if loaded and self.method != EXPORTED else "auto",
            compile=self.compile,
        )
        if self.method != FULL and not loaded:
            from llava_stf.reduction import apply_reduction

            method = configured(self.method, self.method_options)
            apply_reduction(llava.model, llava.processor, method, vision_tokens=self.vision_tokens, seed=self.seed)
        return llava

    def mean_tokens(self) -> float:
        """Tokens of an image in the mean over the LLM's layers, of options that `resolved` gave; reads no weights."""
        from llava_stf.models.fusion.budget import patch_grid

        assert self.method is not None, "resolve the options first"
        assert isinstance(self.vision_tokens, int)
        if self.method in (FULL, EXPORTED):
            return self.vision_tokens
        config, method = self._config(self._local_path()), configured(self.method, self.method_options)
        return method.mean_tokens(config.text_config.num_hidden_layers, patch_grid(config) ** 2, self.vision_tokens)

    def _local_path(self) -> str:
        from llava_stf.conversion.locate import locate
        from llava_stf.loading import BUNDLED

        if self.pretrained in BUNDLED:
            return self.pretrained
        revision = None if self.revision is None else str(self.revision)
        return str(locate(self.pretrained, subfolder=self.subfolder, revision=revision).resolve())

    def _config(self, path: str) -> LlavaConfig:
        from llava_stf.loading import read_config_to_ask

        return read_config_to_ask(path, vision_tower=self.vision_tower)

    def _fused_tokens(self, config: LlavaConfig, fused: bool) -> int:
        from llava_stf.models.fusion.budget import patch_grid, resolve_window
        from llava_stf.models.fusion.tiles import cells_of

        if not fused and self.vision_tokens == "all":
            raise FusionError(f"Method '{STF}' takes a count of vision tokens, found 'all'; that is '{FULL}'.")
        return cells_of(patch_grid(config), resolve_window(config, self.vision_tokens)) ** 2

    def _reduced_tokens(self, method: str, config: LlavaConfig, patches: int) -> int:
        from llava_stf.reduction import check_reduction

        asked = patches // 4 if self.vision_tokens is None else self.vision_tokens
        tokens = patches if asked == "all" else asked
        check_reduction(config, configured(method, self.method_options), tokens)
        return tokens


def configured(method: str, options: Mapping[str, Any]) -> Method:
    """A method of `llava_stf.reduction` with these options.

    Raises:
        FusionError: no such method, option or value.
    """
    from llava_stf.reduction import find_method, with_options

    return with_options(find_method(method), options)


def check_method(method: str) -> None:
    """Check that the method exists; the error of another names the nearest."""
    if method == FULL:
        return
    from llava_stf.reduction import METHODS

    if method not in METHODS:
        raise LlavaStfError(f"Unknown method '{method}': {nearest(method, [FULL, *METHODS])}")
