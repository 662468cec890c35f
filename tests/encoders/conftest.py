"""Where the reference data of the four pre-training methods stands."""

from collections.abc import Callable
from pathlib import Path

import pytest

# Outputs of the authors' own code on tiny models, kept beside the checkout and not in it.
GOLDEN = Path(__file__).resolve().parents[3] / "shared" / "golden" / "ssl"


@pytest.fixture(scope="session")
def golden_ssl() -> Callable[[str], Path]:
    """The folder of a method's reference data; without it the comparison with the authors' code is skipped."""

    def folder(method: str) -> Path:
        if not (GOLDEN / method).is_dir():
            pytest.skip(f"the reference data of {method} is not at {GOLDEN}")
        return GOLDEN / method

    return folder
