"""Ways to fewer tokens: which stand where, and what README shows of them."""

from pathlib import Path

import pytest

from llava_stf_eval.tables.methods import answers_table, read_asked, summary_table

DOCS = Path(__file__).resolve().parents[3] / "docs"


@pytest.fixture(scope="module")
def asked():
    return read_asked(DOCS)


def test_all_tokens_and_trained_ways_come_first_and_in_the_llm_last(asked):
    names = list(asked)
    assert names[:4] == ["full", "pooled", "fused", "tiny"]
    kept = asked["tiny"].mean_tokens
    inside = [name for name in names[1:] if asked[name].mean_tokens > kept]
    assert sorted(inside) == ["dart", "fastv", "pyramiddrop", "sparsevlm"]
    assert names[-4:] == inside
    others = [asked[name].accuracy for name in names[4:-4]]
    assert others == sorted(others, reverse=True)


def test_trained_ways_are_means_of_their_seeds(asked):
    assert len(asked["fused"].results) == len(asked["pooled"].results) == 3
    shares = [result["accuracy"] for result in asked["fused"].results]
    assert asked["fused"].accuracy == pytest.approx(sum(shares) / 3)
    assert f"| {100 * sum(shares) / 3:.1f} |" in answers_table(DOCS)


def test_readme_says_the_mean_of_what_chooses_in_the_llm():
    (row,) = [row for row in summary_table(DOCS).splitlines() if "FastV" in row]
    assert row.startswith("| FastV, mean over layers 32 and 171 | no | ")
