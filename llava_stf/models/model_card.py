"""The model card of a checkpoint, README.md with metadata: what the files beside it tell, and what its maker adds.

It ends in its own digest. A README.md of which that is not true is a user's own, or was edited, and stays as it is.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData
from huggingface_hub.utils import HFValidationError, validate_repo_id

from llava_stf.io.json import read_json
from llava_stf.io.publish import write_file
from llava_stf.models.auto_classes import MODEL_TYPES

CARD = "README.md"


def write_card(
    folder: Path,
    *,
    base: str | None = None,
    license: str | None = None,
    training: Mapping[str, Any] | None = None,
    measured: str | None = None,
) -> bool:
    """Write the card of a saved model, unless a README.md stands there that this function did not write.

    Args:
        folder: of the model, with its config.json.
        base: folder or hub id of the model that it was made from.
        license: identifier of its licence on the hub, such as `"llama2"`.
        training: how it was trained, by name of the option.
        measured: Markdown with what was measured of it.

    Returns:
        Whether it was written.

    Raises:
        CheckpointError: there is no config.json, or a broken one.
        LlavaStfError: the card cannot be written.
    """
    config = read_json(folder / "config.json")
    file = folder / CARD
    if file.exists() and not _is_unedited(file.read_text(encoding="utf-8", errors="replace")):
        return False
    text = _text(config, base, license, training, measured)
    write_file(file, f"{text}\n<!-- llava-stf card {_digest(text)} -->\n")  # half of one would pass for a user's own
    return True


def _is_unedited(card: str) -> bool:
    text, _, end = card.rpartition("\n<!-- llava-stf card ")
    return end == f"{_digest(text)} -->\n"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _text(
    config: dict[str, Any],
    base: str | None,
    license: str | None,
    training: Mapping[str, Any] | None,
    measured: str | None,
) -> str:
    fused = config.get("model_type") in MODEL_TYPES
    data = ModelCardData(
        base_model=base if base is not None and _is_hub_id(base) else None,
        license=license,
        library_name="transformers",
        pipeline_tag="image-text-to-text",
        tags=["llava", "llava_stf", "token-reduction"] if fused else ["llava"],
    )
    parts = [f"---\n{data.to_yaml()}\n---", f"# {'LLaVA-STF' if fused else 'LLaVA'}", _summary(config, base)]
    if fused:
        parts.append(_FUSED)
    parts += ["## Training", _table(training) if training else "Not said."]
    parts += ["## Measurements", measured or "Not measured."]
    return "\n\n".join(parts) + "\n"


_FUSED = """## Use

```python
from llava_stf import load_model

llava = load_model("FOLDER")
llava.ask("image.jpg", "What is in it?")
```

A folder saved `with_code=True` loads without the package llava_stf, too, by
`AutoModelForImageTextToText.from_pretrained("FOLDER", trust_remote_code=True)`."""


def _summary(config: dict[str, Any], base: str | None) -> str:
    facts: dict[str, Any] = {}
    if base is not None:
        facts["base model"] = base if _is_hub_id(base) else Path(base).name
    vision = config.get("vision_config") or {}
    windows = config.get("fusion_windows") or [config.get("fusion_window") or 1]
    image, patch = vision.get("image_size"), vision.get("patch_size")
    if isinstance(image, int) and isinstance(patch, int) and patch > 0:
        grid = image // patch
        place = "tile" if "image_grid_pinpoints" in config else "image"
        facts[f"vision tokens per {place}"] = " or ".join(f"{(grid // k) ** 2}" for k in windows) + f" of {grid**2}"
    if config.get("model_type") in MODEL_TYPES:
        facts["fusion"] = config.get("fusion", "stf")
        facts["windows of patches"] = ", ".join(f"{k}x{k}" for k in windows)
        facts["fused hidden states"] = config.get("fusion_layers")
    facts["language model"] = (config.get("text_config") or {}).get("model_type", config.get("model_type"))
    return _table(facts)


def _table(values: Mapping[str, Any]) -> str:
    rows = [f"| {name} | {str(value).replace('|', '&#124;')} |" for name, value in values.items()]
    return "\n".join(["| | |", "| --- | --- |", *rows])


def _is_hub_id(name: str) -> bool:
    """Whether a name is owner/name and no path from here."""
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return name.count("/") == 1 and not Path(name).exists()
