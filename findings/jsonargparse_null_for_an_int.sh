#!/usr/bin/env bash
# jsonargparse 4.53.0; run 2026-11-28.
#
# A dataclass has a field `epochs: int`. The value null comes once from the command line and once from a YAML file.
# Expected: the same type check on both ways in.
# Happens:  the command line refuses null and a file with a text is refused, too; but a file's null passes validation and
#           the field is None, which only fails much later, where the number is used.
#
# Seen:
#   command line: refused
#   file, text: refused
#   file, null: Config(epochs=None)
set -euo pipefail

dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
python3 -m venv venv
venv/bin/pip install -q --disable-pip-version-check jsonargparse==4.53.0 PyYAML==6.0.3
venv/bin/python - <<'PY'
from dataclasses import dataclass
from pathlib import Path

from jsonargparse import ArgumentError, ArgumentParser


@dataclass
class Config:
    epochs: int = 3


def parse(*arguments):
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--config", action="config")
    parser.add_class_arguments(Config, "train")
    return parser.instantiate(parser.parse_args(list(arguments))).train


Path("train.yaml").write_text("train:\n  epochs: null\n")
Path("text.yaml").write_text("train:\n  epochs: three\n")
for name, arguments in (
    ("command line", ("--train.epochs=null",)),
    ("file, text", ("--config=text.yaml",)),
):
    try:
        raise AssertionError(parse(*arguments))
    except ArgumentError:
        print(f"{name}: refused")
train = parse("--config=train.yaml")
print("file, null:", train)
assert train.epochs is None
PY
