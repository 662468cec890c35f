"""Options of a run from a YAML file and from flags, as a dataclass whose annotations say what each of them may be.

Pydantic reads the values: one set of rules for files, flags and methods' options, in which `2e-5` is a number, `null`
is for optional fields alone and `no` is a choice where it is one. The flags are argparse's, so `--help` imports nothing
else. jsonargparse and tyro would do both, but the one lets `null` in a file pass for any field and wants
`--resume true` and `[144,64]`, the other does not look at the values of a file and ends the process itself.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import MISSING, fields
from math import isfinite
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml

from llava_stf.errors import LlavaStfError, nearest, one_line
from llava_stf.io.json import read_text

Options = TypeVar("Options")
_RANGES: dict[str, Callable[[float], bool]] = {
    "at least 1": lambda value: value >= 1,
    "at least 0": lambda value: value >= 0,
    "at least 0 and below 2**32": lambda value: 0 <= value < 2**32,
    "above 0": lambda value: value > 0,
    "in [0, 1)": lambda value: 0 <= value < 1,
}


def parse_options(kind: type[Options], argv: Sequence[str], *, prog: str, description: str | None) -> Options:
    """The options that `--config FILE` and flags describe; flags win over the file.

    Args:
        kind: a dataclass; the `help` in a field's metadata is that of its flag. A field of names and values is given
            as `flag` in its metadata, once for each NAME=VALUE.
        argv: the flags, each as `--field_name` or `--field-name`; without a value it says true.
        prog: name of the program, for `--help`.
        description: what the program does, for `--help`.

    Raises:
        LlavaStfError: an unknown name (the nearest known one is named), a value of the wrong kind, or a file that
            cannot be read; and what `kind` itself refuses.
    """
    parser = argparse.ArgumentParser(prog=prog, description=description, allow_abbrev=False)
    parser.add_argument("--config", type=Path, help="YAML file with any of the fields below")
    for field in fields(kind):  # type: ignore[arg-type]
        text = field.metadata["help"]
        if "flag" in field.metadata:
            parser.add_argument(field.metadata["flag"], dest=field.name, action="append", default=[], help=text)
            continue
        flags = {f"--{field.name}", f"--{field.name.replace('_', '-')}"}
        text = f"{text} [{field.default}]"
        parser.add_argument(*sorted(flags), dest=field.name, nargs="?", const="true", default=MISSING, help=text)
    known, unknown = parser.parse_known_args(argv)
    if unknown:
        raise LlavaStfError(_unknown_flag(unknown[0], [field.name for field in fields(kind)]))  # type: ignore[arg-type]
    values = read_yaml(known.config) if known.config else {}
    for name, value in vars(known).items():
        if isinstance(value, list):
            pairs = values.get(name) or {}
            if not isinstance(pairs, Mapping):
                raise LlavaStfError(f"{name} must be `name: value` lines, found {type(pairs).__name__}")
            values[name] = {**pairs, **read_pairs(value)}
        elif name != "config" and value is not MISSING:
            values[name] = value
    return kind(**read_values(kind, values))


def read_values(kind: type[Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """`values` as the annotations of `kind` ask for them.

    Args:
        kind: a dataclass. Its fields are bool, int, float, str, choices, tuples of numbers, names with values, or
            several of these.
        values: by field name; numbers, truth and None may also be texts, tuples also texts with commas.

    Raises:
        LlavaStfError: an unknown name (the nearest known one is named), or a value of the wrong kind.
    """
    types = get_type_hints(kind)
    for name in values:
        if name not in types:
            raise LlavaStfError(f"Unknown option '{name}': {nearest(str(name), types)}")
    return {name: _read_value(name, types[name], value) for name, value in values.items()}


def check_ranges(options: Any, ranges: Mapping[str, Iterable[str]]) -> None:
    """Check numbers among options.

    Args:
        options: an instance of a dataclass, or values by name.
        ranges: names of fields by what they must be, one of the keys of `_RANGES`.

    Raises:
        LlavaStfError: a field that is not None is not, or is no finite number at all.
    """
    for said, names in ranges.items():
        for name in names:
            value = options[name] if isinstance(options, Mapping) else getattr(options, name)
            number = isinstance(value, int | float) and isfinite(value)
            if value is not None and not (number and _RANGES[said](value)):
                raise LlavaStfError(f"{name} must be {said}, found {value!r}")


def read_yaml(path: Path) -> dict[str, Any]:
    """The fields of a YAML file.

    Raises:
        LlavaStfError: it cannot be read or holds anything but fields.
    """
    try:
        values = yaml.load(read_text(path), _Loader)
    except (OSError, UnicodeDecodeError, RecursionError, yaml.YAMLError) as error:
        raise LlavaStfError(f"cannot read the config {path}: {one_line(error)}") from error
    if not isinstance(values, dict):
        raise LlavaStfError(f"the config {path} must hold `field: value` lines, found {type(values).__name__}")
    return values


def read_pairs(texts: Sequence[str]) -> dict[str, Any]:
    """What NAME=VALUE texts say, values read as YAML's.

    Raises:
        LlavaStfError: any other text.
    """
    pairs = {}
    for text in texts:
        name, sign, value = text.partition("=")
        try:
            pairs[name] = yaml.load(value, _Loader)
        except yaml.YAMLError:
            sign = ""
        if not (name and sign):
            raise LlavaStfError(f"an option is NAME=VALUE, found '{text}'")
    return pairs


class _Loader(yaml.SafeLoader):
    """Safe YAML in which only true and false are truth values: `no`, `off` and their like are choices of options.

    A field that is given twice is an error.
    """

    yaml_implicit_resolvers = {  # noqa: RUF012 - PyYAML's own attribute
        first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:bool" or first in "tTfF"]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """As PyYAML's, which lets the last of several values win."""
        names = [key.value for key, _ in node.value]
        for name in names:
            if names.count(name) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"'{name}' stands there twice", node.start_mark)
        return super().construct_mapping(node, deep)


def _read_value(name: str, wanted: Any, value: Any) -> Any:
    from pydantic import ConfigDict, TypeAdapter, ValidationError

    members = get_args(wanted) if get_origin(wanted) in (Union, UnionType) else (wanted,)
    given = str(value).lower() if isinstance(value, bool) else value  # truth is no number, though Python says so
    if isinstance(given, str):
        if NoneType in members and given.lower() in ("none", "null", ""):
            return None
        if "," in given and any(get_origin(member) is tuple for member in members):
            given = [part for part in given.split(",") if part.strip()]
        elif given.startswith("~"):  # a folder of the user's, that no shell has seen in a file or behind `--data=`
            given = os.path.expanduser(given)
    elif type(given) in (int, float) and all(get_args(member)[1:] == (Ellipsis,) for member in members):
        given = [given]  # several may be one
    try:
        rules = ConfigDict(coerce_numbers_to_str=True, allow_inf_nan=False)
        return TypeAdapter(wanted, config=rules).validate_python(given)
    except ValidationError as error:
        raise LlavaStfError(f"{name} must be {' or '.join(_kinds(members))}, found {value!r}") from error


def _kinds(members: Iterable[Any]) -> list[str]:
    """What an annotation allows, in words, choices first."""
    choices: list[str] = []
    kinds: list[str] = []
    for member in members:
        if get_origin(member) is Literal:
            choices += map(str, get_args(member))
        elif get_origin(member) is tuple:
            inner = get_args(member)
            kinds.append(f"{'several' if Ellipsis in inner else len(inner)} {inner[0].__name__} with commas")
        elif member is not NoneType:
            kinds.append("names with values" if get_origin(member) else member.__name__)
    return choices + kinds


def _unknown_flag(given: str, names: Iterable[str]) -> str:
    """The sentence about a flag of the command line, `--NAME` or `--NAME=VALUE`, that is none of `names`."""
    flag = given.partition("=")[0]
    asked = f"--{flag.lstrip('-').replace('-', '_')}"
    return f"Unknown flag '{flag}': {nearest(asked, [f'--{name}' for name in names])}"
