"""Comparisons that the documentation judges: pairs of runs that share seed, class order and
precision."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from measured import AVERAGE_AND_LAST, NOTHING, Summaries

from engram.results.comparison import changed_settings
from engram.results.formats import ABSENT, markdown
from engram.results.paired import Gain

Runs = tuple[dict[str, Any], ...]
"""A run of each side of a comparison, which differ in what is compared."""

NOT_MEASURED = "not measured"
NO_VERDICT = "one pair, no verdict"


@dataclass(frozen=True)
class Side:
    """One side of a comparison: the runs of a preset with a memory and these settings.

    Attributes:
        rule: the decision rule that is read; the one that counts where None.
    """

    method: str
    preset: str
    codec: str
    budget: str
    changed: tuple[str, ...] = ()
    rule: str | None = None


@dataclass(frozen=True)
class Claim:
    """A comparison, pair by pair.

    Attributes:
        least: points of average accuracy that are asked for; None where what comes out is only
            told.
        across: runs of a pair may differ in precision, as where that is what is compared.
    """

    text: str
    side: Side
    other: Side
    least: float | None = None
    across: bool = False


def judged(claims: Sequence[Claim], summaries: Summaries) -> str:
    """A row for each claim; nothing where no runs can be compared."""
    found = [_pairs(claim, summaries) for claim in claims]
    if not any(found):
        return NOTHING
    header = ["What", "Gain in average accuracy", "Gain in last accuracy", "Pairs"]
    header.append("Verdict, by average accuracy")
    rows = [_row(claim, pairs) for claim, pairs in zip(claims, found, strict=True)]
    return markdown(header, rows)


def _row(claim: Claim, pairs: Sequence[Runs]) -> list[str]:
    if not pairs:
        wanted = "" if claim.least is None else f"; {claim.least:+g} is asked"
        return [claim.text, ABSENT, ABSENT, "0", f"{NOT_MEASURED}{wanted}"]
    rules = claim.side.rule, claim.other.rule
    average, last = (gains_of(pairs, measure, *rules) for measure in AVERAGE_AND_LAST)
    gains = [str(Gain.of(average)), str(Gain.of(last))]
    count = f"{len(pairs)}, {precisions(pairs)}"
    return [claim.text, *gains, count, verdict(average, claim.least)]


def verdict(differences: Sequence[float], least: float | None = None) -> str:
    """Whether what is asked is met on average; else whether the interval tells gain from loss. One
    pair decides nothing."""
    gain = Gain.of(differences)
    wanted = "" if least is None else f"{least:+g} is asked"
    if gain.margin is None:
        return ": ".join(filter(None, [NO_VERDICT, wanted]))
    if least is not None:
        met = f"{'met' if gain.mean >= least else 'missed'}: {wanted}"
        return f"{met}, within the interval" if abs(gain.mean - least) <= gain.margin else met
    if gain.is_clear:
        return "gains" if gain.mean > 0 else "loses"
    return f"undecided, gains in {how_many_gain(differences)}"


def how_many_gain(differences: Sequence[float]) -> str:
    """`2 of 3`."""
    return f"{sum(each > 0 for each in differences)} of {len(differences)}"


def matched(*sides: Summaries, across: bool = False) -> list[Runs]:
    """A run of every side for each seed and class order that they have in common, in one precision:
    float32 where there are several.

    Args:
        across: also runs in different precisions, where there are none in one.

    Raises:
        ValueError: two runs of a side have the same seed, class order and precision.
    """
    found = [_by_identity(side) for side in sides]
    common = sorted(set(found[0]).intersection(*found[1:]))
    pairs = {identity[:2]: tuple(runs[identity] for runs in found) for identity in common}
    if across:
        loose = [{identity[:2]: runs[identity] for identity in sorted(runs)} for runs in found]
        for pair in set(loose[0]).intersection(*loose[1:]) - pairs.keys():
            pairs[pair] = tuple(runs[pair] for runs in loose)
    return [pairs[pair] for pair in sorted(pairs)]


def _by_identity(runs: Summaries) -> dict[tuple[int, str, str], dict[str, Any]]:
    """Runs by seed, class order and precision; bf16 comes before fp32."""
    found: dict[tuple[int, str, str], dict[str, Any]] = {}
    for run in runs:
        identity = run["seed"], run["order"], run["config"]["precision"]
        if identity in found:
            raise ValueError(f"Two runs of {run['method']}, {run['preset']} have {identity}.")
        found[identity] = run
    return found


def gains_of(
    pairs: Sequence[Runs], measure: str, rule: str | None, other: str | None
) -> list[float]:
    """By how much the first run of a pair is above the second, each by its decision rule."""
    return [
        value_of(here, measure, rule) - value_of(there, measure, other) for here, there in pairs
    ]


def value_of(run: dict[str, Any], measure: str, rule: str | None = None) -> float:
    """A measure by a decision rule, the one that counts where None."""
    found = run if rule is None else run["accuracy_by_classifier"][rule]
    return float(found[measure])


def precisions(pairs: Sequence[Runs]) -> str:
    """In which precisions pairs were trained; of those that differ in it, in both."""
    each = {tuple(run["config"]["precision"] for run in pair) for pair in pairs}
    return ", ".join(" against ".join(dict.fromkeys(pair)) for pair in sorted(each))


def _pairs(claim: Claim, summaries: Summaries) -> list[Runs]:
    here, there = _found(summaries, claim.side), _found(summaries, claim.other)
    return matched(here, there, across=claim.across)


def _found(summaries: Summaries, side: Side) -> Summaries:
    wanted = (side.method, side.preset, side.codec, side.budget)
    return [
        run
        for run in summaries
        if (run["method"], run["preset"], run["codec"], run["config"]["budget"]) == wanted
        and set(changed_settings(run)) == set(side.changed)
    ]
