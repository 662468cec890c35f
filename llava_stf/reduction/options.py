"""Options of a method by name, as a command line or a configuration gives them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from numbers import Integral
from typing import Any, Literal, get_args, get_origin, get_type_hints

from llava_stf.errors import FusionError, nearest
from llava_stf.reduction.catalogue import METHODS
from llava_stf.reduction.method import Method
from llava_stf.reduction.model import TrainingFreeMethod


def option_types(method: Method) -> dict[str, Any]:
    """Names and types (`bool`, `int` or a `Literal`) of the options that a method without weights has.

    Options that `apply_stf` and `apply_pooling` have are not listed here; pooling has one more, `attention_bias`.
    """
    if not dataclasses.is_dataclass(method):
        return {}
    hints = get_type_hints(type(method))
    names = [field.name for field in dataclasses.fields(method)]
    if not isinstance(method, TrainingFreeMethod):
        names = [name for name in names if name == "attention_bias"]
    types = {name: hints[name] for name in names}
    return {name: kind for name, kind in types.items() if kind in (bool, int) or get_origin(kind) is Literal}


def known_options() -> set[str]:
    """Names of the options of all methods."""
    return {name for method in METHODS.values() for name in option_types(method)}


def with_options(method: Method, options: Mapping[str, Any]) -> Method:
    """A method with other values of its options.

    Args:
        method: as in `METHODS`.
        options: by name; a value may be text, as in `{"full_layers": "3"}`.

    Raises:
        FusionError: no such option, or no such value.
    """
    types, values = option_types(method), {}
    for name, value in options.items():
        if not types:
            raise FusionError(f"Method '{method.name}' has no options, found {name}={value}.")
        if name not in types:
            raise FusionError(f"Method '{method.name}' has no option '{name}': {nearest(name, types)}")
        value = _value(method, name, value, types[name])
        if value != getattr(method, name):
            values[name] = value
    return dataclasses.replace(method, **values) if values else method  # type: ignore[type-var]


def parse_options(texts: Sequence[str]) -> dict[str, str]:
    """Options by name from `name=value` texts of a command line.

    Raises:
        FusionError: a text is no such pair, or a name stands twice.
    """
    options: dict[str, str] = {}
    for text in texts:
        name, _, value = (part.strip() for part in text.partition("="))
        if not name or not value or name in options:
            raise FusionError(f"Expected each option of a method once, as name=value; found '{text}'.")
        options[name] = value
    return options


def checked_options(method: Method) -> Method:
    """The method with its options' values as they are meant, such as 3 for "3".

    Raises:
        FusionError: it was made with a value that its option does not have.
    """
    return with_options(method, {name: getattr(method, name) for name in option_types(method)})


def checked_seed(seed: int) -> int:
    """The seed of what a method draws.

    Raises:
        FusionError: it is no whole number that torch takes for one.
    """
    if isinstance(seed, bool) or not isinstance(seed, Integral) or not -(2**63) <= seed < 2**64:
        raise FusionError(f"seed must be a whole number of 64 bits, found {seed!r}.")
    return int(seed)


def changed_options(method: Method) -> dict[str, Any]:
    """The options in which a method differs from the one of its name in `METHODS`, the published one."""
    usual = METHODS[method.name]
    values = {name: getattr(method, name) for name in option_types(method)}
    return {name: value for name, value in values.items() if value != getattr(usual, name)}


def _value(method: Method, name: str, value: Any, kind: Any) -> Any:
    allowed: tuple[Any, ...] = (True, False) if kind is bool else get_args(kind) if get_origin(kind) is Literal else ()
    for one in allowed:
        if value is one or str(value).lower() == str(one).lower():
            return one
    if kind is int and not isinstance(value, bool) and str(value).isdecimal():
        return int(value)
    expected = " or ".join(str(one).lower() for one in allowed) or "a whole number"
    raise FusionError(f"Option '{name}' of method '{method.name}' is {expected}, found '{value}'.")
