"""The soak of a server tells one that answers right from one that does not."""

import asyncio
import os
import random

import pytest

from llava_stf.loading import load_model
from llava_stf.serving.app import create_app
from llava_stf.serving.options import ServeOptions
from llava_stf_eval.measurement.server_soak import Case, make_cases, soak
from llava_stf_eval.serving.client import Target


@pytest.fixture(scope="module")
def cases() -> list[Case]:
    return make_cases(random.Random(0), 6)


@pytest.mark.parametrize("wrong", [False, True])
def test_every_kind_of_request_is_compared(serve, cases, wrong: bool, capsys: pytest.CaptureFixture[str]) -> None:
    asked = [Case(case.body, case.answer + "?") if wrong else case for case in cases]
    with serve(create_app(load_model("tiny", device="cpu", dtype="float32"), ServeOptions())) as url:
        well = asyncio.run(soak(Target(url, "tiny", process=os.getpid()), asked, 60, random.Random(1)))
    assert well is not wrong
    said = capsys.readouterr().out
    assert "left in the server: nothing" in said
    assert all(kind in said for kind in ("whole", "streamed", "slow", "leaves early", "leaves amid", "half sent"))
