"""A sentence for every comparison: how much sooner, or that there is no gain, and then why, told from the measurement.

Fewer vision tokens shorten one stage, the prefill. What remains of that for the user is a matter of how much of the
whole the prefill is, and of whether the device is busy enough for a shorter prefill to take less time.
"""

from __future__ import annotations

from typing import Any

# A gain below this is none: nobody would change a model for it, and clocks differ by as much from day to day.
NO_GAIN = 1.05
# A part of the time that is taken for the reason of what is lost.
LARGE_SHARE = 0.5
# Of the gain in FLOPs, the least that a busy device shows in the time of the prefill.
BUSY = 0.6


def verdicts(result: dict[str, Any]) -> list[str]:
    """One sentence for each row that is compared with the first of its case, in order."""
    sentences, base = [], None
    for row in result["rows"]:
        if base is None or base["case"] != row["case"]:
            base = row
        elif row["error"] is None:
            sentences.append(f"{_where(row)}: {_sentence(row, base)}")
    return sentences


def _where(row: dict[str, Any]) -> str:
    case = row["case"]
    return (
        f"{row['method']} at {row['vision_tokens']} tokens (batch {case['batch_size']}, {case['text_tokens']} text and "
        f"{case['new_tokens']} new tokens, {row['run_by']}, {case['attention']})"
    )


def _sentence(row: dict[str, Any], base: dict[str, Any]) -> str:
    first, whole = (row["stages"][stage]["times_faster"] for stage in ("first_token", "end_to_end"))
    parts = [f"first token {first:.2f}x, end to end {whole:.2f}x as fast as {base['method']}"]
    if row["run_by"] != base["run_by"]:
        return f"{parts[0]} on {base['run_by']}."
    if first >= NO_GAIN and not _stands_out(row, base, "first_token"):
        parts.append("the difference in the first token is within the spread of the runs")
    if first < NO_GAIN and whole < NO_GAIN and first_token_reason(row, base) == end_to_end_reason(row, base):
        parts.append(f"no gain, because {first_token_reason(row, base)}")
    else:
        if first < NO_GAIN:
            parts.append(f"no gain in the first token, because {first_token_reason(row, base)}")
        if whole < NO_GAIN:
            parts.append(f"no gain end to end, because {end_to_end_reason(row, base)}")
    return "; ".join(parts) + "."


def first_token_reason(row: dict[str, Any], base: dict[str, Any]) -> str:
    """Why the first token does not come sooner although the prompt is shorter."""
    before, now = _medians(base), _medians(row)
    fewer = 1 - _mean(row["llm_tokens"]) / _mean(base["llm_tokens"])
    if fewer < LARGE_SHARE:
        return f"the LLM's layers see only {fewer:.0%} fewer tokens, the rest is text or what the method keeps"
    added = now["projector"] + now["rest"] - before["projector"] - before["rest"]
    saved = before["prefill"] - now["prefill"]
    if saved > 0 and added > LARGE_SHARE * saved:
        return f"the method's own work takes {_ms(added)} more and the prefill {_ms(saved)} less"
    if before["tower"] > LARGE_SHARE * before["first_token"]:
        share = before["tower"] / before["first_token"]
        return f"{share:.0%} of it is the vision tower, which sees the whole image in any case"
    flops = base["counted"]["prefill_flops"] / row["counted"]["prefill_flops"]
    faster = before["prefill"] / now["prefill"]
    if faster < BUSY * flops:
        return (
            f"a prefill of {flops:.1f}x fewer FLOPs is only {faster:.1f}x faster: at batch {row['case']['batch_size']} "
            "such short prompts leave the device reading weights and starting kernels, a larger batch would show more"
        )
    share = before["prefill"] / before["first_token"]
    return f"the prefill, the stage that fewer tokens shorten, is {share:.0%} of it"


def end_to_end_reason(row: dict[str, Any], base: dict[str, Any]) -> str:
    """Why the whole answer does not come sooner."""
    before = _medians(base)
    decoding = before["decode"] * (base["case"]["new_tokens"] - 1)
    if decoding > LARGE_SHARE * before["end_to_end"]:
        return (
            f"{decoding / before['end_to_end']:.0%} of the time is decoding, where each token reads all weights of the "
            "LLM whatever the prompt was"
        )
    if before["preprocessing"] > LARGE_SHARE * before["end_to_end"]:
        share = before["preprocessing"] / before["end_to_end"]
        return f"{share:.0%} of the time is preprocessing of the image, on the host"
    return first_token_reason(row, base)


def _stands_out(row: dict[str, Any], base: dict[str, Any], stage: str) -> bool:
    mine, other = row["stages"][stage], base["stages"][stage]
    return abs(mine["median"] - other["median"]) > max(mine["spread"], other["spread"])


def _medians(row: dict[str, Any]) -> dict[str, float]:
    return {stage: values["median"] for stage, values in row["stages"].items()}


def _mean(values: list[int]) -> float:
    return sum(values) / len(values)


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:.1f} ms"
