"""The end of every sentence about a name that is not known."""

import pytest

from llava_stf.errors import LISTED, nearest

MANY = [f"option_{number}" for number in range(LISTED)] + ["learning_rate"]


@pytest.mark.parametrize(
    ("name", "known", "said"),
    [
        ("tomee", ["pool", "tome"], "expected one of pool, tome; did you mean 'tome'?"),
        ("Tome", ["pool", "ToMe"], "expected one of pool, ToMe; did you mean 'ToMe'?"),
        ("zzz", ["pool", "tome"], "expected one of pool, tome."),
        ("lerning_rate", MANY, "did you mean 'learning_rate'?"),
    ],
)
def test_few_names_are_listed_and_of_many_the_nearest_is_named(name: str, known: list[str], said: str) -> None:
    assert nearest(name, known) == said
