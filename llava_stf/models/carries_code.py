"""Saving a model with its card, and a model or processor together with the code that reads it."""

from __future__ import annotations

import os
from importlib import import_module
from pathlib import Path
from typing import Any


class CarriesCode:
    """Gives `save_pretrained` of a class of transformers the keyword `with_code`."""

    _auto_class: str | None

    def save_pretrained(
        self, save_directory: str | os.PathLike[str], *args: Any, with_code: bool = False, **kwargs: Any
    ) -> Any:
        """As transformers' own `save_pretrained`.

        Args:
            save_directory: folder to write.
            *args: as there.
            with_code: put this package's code beside what is saved, so that `from_pretrained` reads it with
                `trust_remote_code=True` where the package is not installed. Give it for the model and the processor.
            **kwargs: as there.

        Returns:
            What transformers' own returns.
        """
        save: Any = super().save_pretrained  # type: ignore[misc]
        if self._auto_class is not None:  # it runs on such code itself, and transformers takes that along
            return save(save_directory, *args, **kwargs)
        holder = vars(getattr(self, "config", self))
        former = holder.pop("auto_map", None)
        code: Any = import_module("llava_stf.models.carried_code") if with_code else None
        if code is not None:
            holder["auto_map"] = code.auto_map(type(self))
        push = kwargs.pop("push_to_hub", False)  # later, with what is written here beside the weights
        try:
            saved = save(save_directory, *args, **kwargs)
        finally:
            holder.pop("auto_map", None)
            if former is not None:
                holder["auto_map"] = former
        if "config" in vars(self) and kwargs.get("is_main_process", True):
            import_module("llava_stf.models.model_card").write_card(Path(save_directory))
        if code is not None:
            code.write_code(Path(save_directory), type(self))
        if push and kwargs.get("is_main_process", True):
            import_module("llava_stf.models.push_to_hub").upload(Path(save_directory), **kwargs)
        return saved
