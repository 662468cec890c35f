"""Folders of LoRA weights that finetuning writes: a difference to a base model, which the folder names.

Such a folder holds PEFT's `adapter_config.json` and `adapter_model.safetensors` (low-rank weights of the language model
and the whole projector), the `config.json` of the trained model and its processor.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import LlavaConfig, LlavaForConditionalGeneration

from llava_stf.conversion.state import build_config
from llava_stf.errors import CheckpointError, MissingDependencyError
from llava_stf.io.json import read_json
from llava_stf.models.fusion.config import FusionConfig
from llava_stf.models.registry import CONFIGS, TRAINED_PLAIN, is_plain
from llava_stf.reduction.apply import apply_untrained

if TYPE_CHECKING:
    from peft import LoraConfig, PeftModel

ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PROJECTOR = "multi_modal_projector"
_TOWER_FIELDS = ("hidden_size", "num_hidden_layers", "image_size", "patch_size")
_LLM_FIELDS = ("model_type", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
_FUSION_FIELDS = (
    *("fusion", "fusion_states", "fusion_windows", "fusion_weight_window"),
    *("fusion_block_hidden_size", "fusion_hidden_size"),
)


@dataclass(frozen=True)
class LoraFolder:
    """One such folder: `base` is the name of its base model, `config` that of the trained model.

    `four_bit` says that the base's language model had 4-bit weights in training (QLoRA).
    """

    folder: Path
    base: str
    config: LlavaConfig
    four_bit: bool

    def check_base(self, config: LlavaConfig) -> None:
        """Check that a base model fits; looks at no weights.

        Raises:
            CheckpointError: it does not; it names the first field that differs.
        """
        pairs = [
            *(
                (f"vision_config.{name}", self.config.vision_config, config.vision_config, name)
                for name in _TOWER_FIELDS
            ),
            *((f"text_config.{name}", self.config.text_config, config.text_config, name) for name in _LLM_FIELDS),
        ]
        if isinstance(config, FusionConfig):
            pairs += [(name, self.config, config, name) for name in _FUSION_FIELDS]
        for label, ours, theirs, name in pairs:
            expected, found = getattr(ours, name, None), getattr(theirs, name, None)
            if expected != found:
                raise CheckpointError(
                    f"{self.folder} was trained on a base with {label} {expected}, and {self.base} has {found}; name "
                    f"the right base as base_model_name_or_path in {ADAPTER_CONFIG}."
                )

    def apply_to(self, model: LlavaForConditionalGeneration, bits: str | None) -> LlavaForConditionalGeneration:
        """The trained model, from a base that `check_base` passed and these weights.

        The low-rank weights are merged into full-precision ones, and stand beside quantized ones as PEFT's layers.

        Args:
            model: the base, changed in place.
            bits: how its language model is quantized; `None` for full precision.

        Raises:
            CheckpointError: the files are damaged or do not fit the base.
        """
        from peft import get_peft_model

        if isinstance(self.config, FusionConfig) and is_plain(model):
            apply_untrained(model, None, self.config)
        if getattr(self.config, TRAINED_PLAIN, False):
            setattr(model.config, TRAINED_PLAIN, True)
        peft_model = get_peft_model(model, self._peft_config())
        load_weights(peft_model, self.folder)
        if bits is None:
            return peft_model.merge_and_unload()
        inner = model.model
        inner.multi_modal_projector = inner.multi_modal_projector.modules_to_save["default"]
        return model.requires_grad_(False)

    def _peft_config(self) -> LoraConfig:
        from peft import LoraConfig

        config = LoraConfig.from_pretrained(str(self.folder))
        config.inference_mode, config.base_model_name_or_path = False, None  # it warns of a base elsewhere
        return config


def is_lora_folder(path: Path) -> bool:
    """Whether `path` is such a folder: other LoRA folders have no config.json of the trained model, or LLaVA's own."""
    if not all((path / name).is_file() for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS, "config.json")):
        return False
    config = read_json(path / "config.json")
    return str(config.get("model_type")) in CONFIGS and "mm_vision_tower" not in config


def read_lora_folder(folder: Path) -> LoraFolder:
    """What the folder says.

    Raises:
        CheckpointError: it is damaged.
        MissingDependencyError: PEFT is not installed.
    """
    require_peft()
    fields = read_json(folder / "config.json")
    base = read_json(folder / ADAPTER_CONFIG).get("base_model_name_or_path")
    if not isinstance(base, str):
        raise CheckpointError(f"{folder / ADAPTER_CONFIG} names no base model (base_model_name_or_path).")
    quantization = fields.pop("quantization_config", None)
    config = build_config(folder / "config.json", CONFIGS[fields["model_type"]], fields)
    return LoraFolder(folder, base, config, quantization is not None)


def require_peft() -> None:
    """Check that PEFT is installed.

    Raises:
        MissingDependencyError: it is not.
    """
    if find_spec("peft") is None:
        raise MissingDependencyError("LoRA needs PEFT: pip install 'llava-stf[train]'")


def load_weights(model: PeftModel, folder: Path) -> None:
    """Load the folder's `adapter_model.safetensors`.

    Raises:
        CheckpointError: it does not hold exactly what fits.
    """
    from peft import get_peft_model_state_dict, set_peft_model_state_dict

    file = folder / ADAPTER_WEIGHTS
    try:
        saved = load_file(file)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{file} cannot be read: {error}") from error
    expected = get_peft_model_state_dict(model, save_embedding_layers=False)
    mismatched: list[str] = sorted(expected.keys() ^ saved.keys())
    mismatched += [name for name in saved if name in expected and saved[name].shape != expected[name].shape]
    if mismatched:
        raise CheckpointError(
            f"{file} does not fit its base model: {len(mismatched)} weights are missing, unknown or of another shape, "
            f"the first is {mismatched[0]}."
        )
    set_peft_model_state_dict(model, saved)
