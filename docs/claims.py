"""Comparisons that the documentation judges: pairs of runs that share seed and class order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from measured import AVERAGE_AND_LAST, NOTHING, Summaries

from engram.results.comparison import changed_settings
from engram.results.formats import ABSENT, markdown
from engram.results.paired import Gain

ByPair = Mapping[tuple[int, str], float]
"""A measure by what makes runs a pair: seed and class order."""

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
        in_one_precision: both runs of a pair, and all pairs, were trained in one precision, the one
            that most pairs have.
    """

    text: str
    side: Side
    other: Side
    least: float | None = None
    in_one_precision: bool = True


@dataclass(frozen=True)
class Pairs:
    """What two sides have in common.

    Attributes:
        precision: that they were trained in; empty where it differs.
        gains: of average and of last accuracy, a difference a pair.
    """

    precision: str
    gains: tuple[Sequence[float], Sequence[float]]

    def __len__(self) -> int:
        return len(self.gains[0])


def judged(claims: Sequence[Claim], summaries: Summaries) -> str:
    """A row for each claim; nothing where no runs can be compared."""
    found = [_pairs(claim, summaries) for claim in claims]
    if not any(found):
        return NOTHING
    header = ["What", "Gain in average accuracy", "Gain in last accuracy", "Pairs"]
    header.append("Verdict, by average accuracy")
    rows = [_row(claim, pairs) for claim, pairs in zip(claims, found, strict=True)]
    return markdown(header, rows)


def _row(claim: Claim, pairs: Pairs) -> list[str]:
    if not pairs:
        wanted = "" if claim.least is None else f"; {claim.least:+g} is asked"
        return [claim.text, ABSENT, ABSENT, "0", f"{NOT_MEASURED}{wanted}"]
    gains = [str(Gain.of(values)) for values in pairs.gains]
    count = ", ".join(filter(None, [str(len(pairs)), pairs.precision]))
    return [claim.text, *gains, count, verdict(pairs.gains[0], claim.least)]


def verdict(differences: Sequence[float], least: float | None = None) -> str:
    """Whether what is asked is met on average; else whether the interval tells gain from loss."""
    gain = Gain.of(differences)
    if least is not None:
        met = f"{'met' if gain.mean >= least else 'missed'}: {least:+g} is asked"
        if gain.margin is None:
            return f"{met}, one pair"
        return f"{met}, within the interval" if abs(gain.mean - least) <= gain.margin else met
    if gain.margin is None:
        return NO_VERDICT
    if gain.is_clear:
        return "gains" if gain.mean > 0 else "loses"
    return f"undecided, gains in {how_many_gain(differences)}"


def how_many_gain(differences: Sequence[float]) -> str:
    """`2 of 3`."""
    return f"{sum(each > 0 for each in differences)} of {len(differences)}"


def by_pair(runs: Summaries, measure: str, rule: str | None = None) -> ByPair:
    """A measure of every run by a decision rule, the one that counts where None.

    Raises:
        ValueError: two runs have the same seed and class order.
    """
    found: dict[tuple[int, str], float] = {}
    for run in runs:
        pair = run["seed"], run["order"]
        if pair in found:
            raise ValueError(f"Two runs of {run['method']}, {run['preset']} have {pair}.")
        found[pair] = (run if rule is None else run["accuracy_by_classifier"][rule])[measure]
    return found


def gains_by_pair(ours: ByPair, theirs: ByPair) -> list[float]:
    """By how much ours are higher, for every pair that is whole."""
    return [ours[pair] - theirs[pair] for pair in sorted(ours.keys() & theirs.keys())]


def _pairs(claim: Claim, summaries: Summaries) -> Pairs:
    """The pairs there are; of those in one precision, of the precision that has most of them."""
    here, there = _found(summaries, claim.side), _found(summaries, claim.other)
    if not claim.in_one_precision:
        return _gains(claim, here, there, "")
    return max(
        (
            _gains(claim, _trained_in(precision, here), _trained_in(precision, there), precision)
            for precision in ("fp32", "bf16")
        ),
        key=len,
    )


def _found(summaries: Summaries, side: Side) -> Summaries:
    wanted = (side.method, side.preset, side.codec, side.budget)
    return [
        run
        for run in summaries
        if (run["method"], run["preset"], run["codec"], run["config"]["budget"]) == wanted
        and set(changed_settings(run)) == set(side.changed)
    ]


def _trained_in(precision: str, runs: Summaries) -> Summaries:
    return [run for run in runs if run["config"]["precision"] == precision]


def _gains(claim: Claim, here: Summaries, there: Summaries, precision: str) -> Pairs:
    average, last = (
        gains_by_pair(
            by_pair(here, measure, claim.side.rule), by_pair(there, measure, claim.other.rule)
        )
        for measure in AVERAGE_AND_LAST
    )
    return Pairs(precision, (average, last))
