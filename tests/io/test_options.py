"""Options from files and flags have the kind that their field names, or one sentence says which it must be."""

import subprocess
import sys
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

import pytest

from llava_stf.encoders.objectives.mos import MOSOptions
from llava_stf.encoders.pretrain.config import PretrainConfig
from llava_stf.errors import LlavaStfError
from llava_stf.io.options import parse_options, read_pairs, read_values
from llava_stf.training.config import FinetuneConfig


def option(default: Any) -> Any:
    return field(default=default, metadata={"help": "an option"})


@dataclass(frozen=True, kw_only=True)
class Options:
    rate: float = option(1.0)
    steps: int | None = option(None)
    name: str = option("")
    precision: Literal["no", "bf16"] = option("bf16")
    share: bool | Literal["auto"] = option("auto")
    counts: int | Literal["all"] | tuple[int, ...] | None = option(None)
    scale: tuple[float, float] = option((0.1, 1.0))
    more: dict[str, Any] = field(default_factory=dict, metadata={"help": "more", "flag": "--one-more"})


def parse(tmp_path: Path, text: str, *flags: str) -> Options:
    file = tmp_path / "run.yaml"
    file.write_text(text, encoding="utf-8")
    return parse_options(Options, ["--config", str(file), *flags], prog="test", description=None)


@pytest.mark.parametrize(
    ("text", "name", "value"),
    [
        ("rate: 2e-5", "rate", 2e-5),
        ("rate: 2", "rate", 2.0),
        ("steps: null", "steps", None),
        ("name: 2024", "name", "2024"),
        ("name: no", "name", "no"),
        ("precision: no", "precision", "no"),
        ("share: no", "share", False),
        ("share: true", "share", True),
        ("share: auto", "share", "auto"),
        ("counts: 4", "counts", 4),
        ("counts: [4, 1]", "counts", (4, 1)),
        ("counts: 4,1", "counts", (4, 1)),
        ("scale: [0, 1e-1]", "scale", (0.0, 0.1)),
        ("\ufeffrate: 3", "rate", 3.0),
    ],
)
def test_a_file_says_what_it_says(tmp_path: Path, text: str, name: str, value: Any) -> None:
    found = getattr(parse(tmp_path, text), name)
    assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("rate: null", "rate must be float, found None"),
        ("rate: true", "rate must be float, found True"),
        ("steps: true", "steps must be int, found True"),
        ("steps: 1.5", "steps must be int, found 1.5"),
        ("share: maybe", "share must be auto or bool, found 'maybe'"),
        ("precision: fp8", "precision must be no or bf16, found 'fp8'"),
        ("counts: few", "counts must be all or int or several int with commas, found 'few'"),
        ("scale: [1]", r"scale must be 2 float with commas, found \[1\]"),
        ("more: 3", "more must be `name: value` lines, found int"),
        ("raet: 1", "Unknown option 'raet'.*'rate'"),
        ("rate: [", "cannot read the config"),
        ("- rate", "must hold `field: value` lines, found list"),
    ],
)
def test_what_a_field_cannot_be_is_refused_in_one_sentence(tmp_path: Path, text: str, sentence: str) -> None:
    with pytest.raises(LlavaStfError, match=sentence) as error:
        parse(tmp_path, text)
    assert "\n" not in str(error.value)


def test_several_numbers_may_be_one() -> None:
    assert read_values(MOSOptions, {"sides": 2}) == {"sides": (2,)}
    assert read_values(FinetuneConfig, {"vision_tokens": 64}) == {"vision_tokens": 64}


def test_a_folder_of_the_users_own_needs_no_shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert parse(tmp_path, "name: ~/runs/mine").name == str(tmp_path / "runs" / "mine")
    assert parse(tmp_path, "name: mine", "--name=~/other").name == str(tmp_path / "other")


def test_flags_win_over_the_file_and_pairs_are_joined(tmp_path: Path) -> None:
    text = "rate: 1\nsteps: 5\nmore:\n  a: 1\n  b: 1\n"
    found = parse(tmp_path, text, "--rate", "2", "--steps=none", "--one-more", "b=[2]", "--one-more", "c=x", "--share")
    assert found == Options(rate=2.0, steps=None, more={"a": 1, "b": [2], "c": "x"}, share=True)
    with pytest.raises(LlavaStfError, match="an option is NAME=VALUE, found 'b'"):
        read_pairs(["b"])
    with pytest.raises(LlavaStfError, match=r"Unknown flag '--rte': .*'--rate'"):
        parse(tmp_path, text, "--rte=1")


@pytest.mark.parametrize("kind", [FinetuneConfig, PretrainConfig])
def test_only_optional_fields_can_be_null(kind: type[Any]) -> None:
    for each in fields(kind):
        if "None" in str(each.type):
            assert read_values(kind, {each.name: None}) == {each.name: None}
        else:
            with pytest.raises(LlavaStfError, match=f"{each.name} must be .*, found None"):
                read_values(kind, {each.name: None})


@pytest.mark.parametrize("module", ["llava_stf.training.finetune", "llava_stf.encoders.pretrain.__main__"])
def test_help_imports_nothing_heavy(module: str) -> None:
    code = (
        f"import sys; from {module} import main\ntry:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
        "heavy = {'torch', 'transformers', 'pydantic', 'datasets'} & sys.modules.keys()\nsys.exit(len(heavy))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "--config" in done.stdout
