"""The tables of the study of LAE: experts and votes, and what is claimed of them."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from claims import (
    NO_VERDICT,
    NOT_MEASURED,
    Runs,
    gains_of,
    how_many_gain,
    matched,
    precisions,
    value_of,
)
from measured import (
    NOTHING,
    TEN_TASKS,
    Summaries,
    by_rule,
    lae_runs,
    modules_in_words,
    pooled,
)

from engram.results.comparison import changed_settings
from engram.results.formats import ABSENT, markdown
from engram.results.paired import Gain

LAST = "last_accuracy"
ALL_AT_ONCE = "cifar100/100"
CLAIMED_ON = ("laptop", "paper-tiny", "paper")
"""The presets whose test images claims are judged on."""

NOT_CHOSEN = "TIES"
"""Stands for a density before validation images have chosen one."""

VOTE = "online + offline {}"
ALL_THREE = f"{VOTE} + ridge"
VOTES = {"offline alone": "offline {}", "online + offline": VOTE, "all three": ALL_THREE}
"""Decision rules by who decides; a merge is to be filled in."""
PUBLISHED_VOTE = VOTE.format("ema")


def lae_votes(summaries: Summaries) -> str:
    """Average / last accuracy by modules and merge: a part for each preset and its images."""
    parts = _parts(summaries, _title)
    return "\n".join(f"### {title}\n\n{_part(parts[title])}" for title in sorted(parts))


def _parts(
    summaries: Summaries, title: Callable[[Mapping[str, Any]], str]
) -> dict[str, list[dict[str, Any]]]:
    """The runs of the study that compare, by their title."""
    streams = {"lae": (TEN_TASKS, ALL_AT_ONCE), "ranpac": (TEN_TASKS,)}
    parts: dict[str, list[dict[str, Any]]] = {}
    for summary in summaries:
        if summary["stream"] in streams.get(summary["method"], ()):
            parts.setdefault(title(summary), []).append(summary)
    return parts


def _title(summary: Mapping[str, Any]) -> str:
    """What stands behind the numbers of a part: the network, and in which precision."""
    return f"{_network(summary)}, in {summary['config']['precision']}"


def _network(summary: Mapping[str, Any]) -> str:
    """The preset, the images, and the network that saw them."""
    network = summary["config"]["settings"]["pretrained"]
    return (
        f"Preset {summary['preset']}, {summary['evaluate_on']} images: {network['backbone']} at "
        f"{network['input_size']} pixels"
    )


def _part(summaries: Summaries) -> str:
    """The votes of LAE by merge, then what stands beside them."""
    rows = pooled([s for s in summaries if (s["method"], s["stream"]) == ("lae", TEN_TASKS)])
    merges = list(
        dict.fromkeys(
            rule.removeprefix("offline ")
            for _, runs in rows
            for rule in runs[0]["accuracy_by_classifier"]
            if rule.startswith("offline ")
        )
    )
    votes = []
    for row, runs in rows:
        name = [modules_in_words(runs[0]), _parameters(runs[0]), ", ".join(row.orders)]
        for who, rule in VOTES.items():
            cells = [by_rule(runs, rule.format(merge)) for merge in merges]
            if any(cell != ABSENT for cell in cells):
                votes.append([*name, who, *cells])
    header = ["Modules", "Parameters", "Orders", "Who decides", *merges]
    tables = [markdown(header, votes, texts=1)] if votes else []
    if beside := _beside(summaries):
        tables.append(markdown(["Without a vote", "Orders", "Average / last"], beside))
    return "\n".join(tables)


def _beside(summaries: Summaries) -> list[list[str]]:
    """What does not hang on a merge: single experts, RanPAC, everything at once."""
    found = []
    for row, runs in pooled(summaries):
        orders = ", ".join(row.orders)
        if row.method == "ranpac":
            name = ", ".join(["RanPAC alone", *row.differences])
            found.append([name, orders, by_rule(runs, row.classifier)])
        elif row.stream == ALL_AT_ONCE:
            name = f"{modules_in_words(runs[0])}: everything at once"
            found.append([name, orders, by_rule(runs, "online")])
        else:
            found += [
                [f"{modules_in_words(runs[0])}: {rule} alone", orders, by_rule(runs, rule)]
                for rule in ("online", "ridge")
            ]
    return [cells for cells in found if cells[-1] != ABSENT]


def _parameters(summary: Mapping[str, Any]) -> str:
    """Of the modules of one expert, where the summary tells."""
    count = summary.get("module_parameters")
    return ABSENT if count is None else f"{count:,}"


@dataclass(frozen=True)
class RuleSide:
    """One side of a comparison: a decision rule of runs with these settings."""

    rule: str
    changed: tuple[str, ...] = ()
    method: str = "lae"


@dataclass(frozen=True)
class GapClaim:
    """A comparison that is judged.

    Attributes:
        least: points that must be gained on average.
        share: of the gap to the same modules trained on everything at once that must be closed;
            None where that is not asked.
    """

    text: str
    side: RuleSide
    other: RuleSide
    least: float = 0.0
    share: float | None = None


PUBLISHED = RuleSide(PUBLISHED_VOTE)
AT_ONCE = RuleSide("online")
TWICE = ("size=10",)
"""The published adapter with twice its parameters, as many as its rivals have."""
CONVOLUTION = ("module=conv-adapter", "size=10")
BOTH_PLACES = ("place=both",)
BOTH = ("module=conv-adapter", "place=both")
DENSITIES = ("ties:0.2", "ties:0.5", "ties:1")


@dataclass(frozen=True)
class Chosen:
    """What validation images of preset quick favour; None before they can.

    Attributes:
        density: the merge among TIES at several densities that makes most of the published modules.
        best: modules and merge that make most of all three experts.
    """

    density: str | None
    best: RuleSide | None


def chosen(summaries: Summaries) -> Chosen:
    """The best on validation images, by mean last accuracy over the class orders that the published
    modules have."""
    found: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for run in lae_runs(summaries, "quick", "validation"):
        found.setdefault(changed_settings(run), []).append(run)
    found = {changed: [run for (run,) in matched(runs)] for changed, runs in found.items()}
    published = found.get((), [])
    orders = {run["order"] for run in published}
    densities = {merge: _mean(published, VOTE.format(merge)) for merge in DENSITIES if published}
    whole = {
        RuleSide(rule, changed): _mean([run for run in runs if run["order"] in orders], rule)
        for changed, runs in found.items()
        for rule in runs[0]["accuracy_by_classifier"]
        if rule.startswith("online + offline") and rule.endswith("ridge")
        if {run["order"] for run in runs} >= orders
    }
    kinds = {side.changed for side in whole}
    return Chosen(
        max(densities, key=lambda merge: densities[merge]) if densities else None,
        max(whole, key=lambda side: whole[side]) if len(kinds) > 1 else None,
    )


def _mean(runs: Summaries, rule: str) -> float:
    values = [
        run["accuracy_by_classifier"][rule][LAST]
        for run in runs
        if rule in run["accuracy_by_classifier"]
    ]
    return statistics.fmean(values) if values else 0.0


def claims_about(choice: Chosen) -> list[GapClaim]:
    """What the table of claims compares."""
    ties = VOTE.format(choice.density or NOT_CHOSEN)
    alone = RuleSide(ties)
    together = RuleSide(ties, BOTH)
    convolved = RuleSide(PUBLISHED_VOTE, BOTH)
    third = RuleSide(ALL_THREE.format("ema"))
    adapted = RuleSide("ridge", ("adapt=True",), "ranpac")
    return [
        GapClaim(
            "convolution, at equal parameters",
            RuleSide(PUBLISHED_VOTE, CONVOLUTION),
            RuleSide(PUBLISHED_VOTE, TWICE),
        ),
        GapClaim(
            "plain adapters beside the MLP too, at equal parameters",
            RuleSide(PUBLISHED_VOTE, BOTH_PLACES),
            RuleSide(PUBLISHED_VOTE, TWICE),
        ),
        GapClaim(
            "conv adapters beside the MLP too, at equal parameters",
            convolved,
            RuleSide(PUBLISHED_VOTE, CONVOLUTION),
        ),
        GapClaim("A: conv adapters beside both, for the published adapter", convolved, PUBLISHED),
        *(
            GapClaim(f"{merge} for the moving average", RuleSide(VOTE.format(merge)), PUBLISHED)
            for merge in ("mean", *DENSITIES)
        ),
        *(
            GapClaim(
                f"{merge} for the plain mean",
                RuleSide(VOTE.format(merge)),
                RuleSide(VOTE.format("mean")),
            )
            for merge in DENSITIES
        ),
        GapClaim(
            f"B: {choice.density or NOT_CHOSEN}, at the best density on validation images",
            alone,
            PUBLISHED,
        ),
        GapClaim("A and B together", together, PUBLISHED),
        GapClaim("what A adds to B", together, alone),
        GapClaim("what B adds to A", together, convolved),
        GapClaim("ridge regression as third expert", third, PUBLISHED, share=0.5),
        GapClaim(
            "the three experts, for ridge regression alone in the same run",
            third,
            RuleSide("ridge"),
        ),
        GapClaim(
            "the three experts, for RanPAC as it is",
            third,
            RuleSide("ridge", ("adapt=False",), "ranpac"),
        ),
        GapClaim("the three experts, for RanPAC on modules of the first task", third, adapted),
        GapClaim(
            "ridge regression alone, for RanPAC on modules of the first task",
            RuleSide("ridge"),
            adapted,
        ),
        GapClaim(
            f"the best on validation images ({_in_words(choice.best)})",
            choice.best or RuleSide(NOT_CHOSEN),
            PUBLISHED,
            least=1.0,
            share=0.5,
        ),
    ]


def _in_words(side: RuleSide | None) -> str:
    if side is None:
        return "not chosen yet"
    return ", ".join([side.rule, *(side.changed or ("published modules",))])


def lae_claims(summaries: Summaries) -> str:
    """Differences in points of last accuracy, class order by class order, with a verdict."""
    claims = claims_about(chosen(summaries))
    header = ["What", "Gain, points of last accuracy", "Orders in which it gains"]
    header += ["Precision", "Share of the gap to everything at once", "Verdict"]
    tables = []
    for preset in CLAIMED_ON:
        tests = [
            run for run in summaries if (run["preset"], run["evaluate_on"]) == (preset, "test")
        ]
        for title, runs in sorted(_parts(tests, _network).items()):
            if rows := _judged(claims, runs):
                tables.append(f"### {title}\n\n{markdown(header, rows)}")
    return "\n".join(tables) or NOTHING


def _judged(claims: Sequence[GapClaim], runs: Summaries) -> list[list[str]]:
    """A row for each claim; none where the published LAE was not run."""
    ten_tasks = [run for run in runs if run["stream"] == TEN_TASKS]
    if not _runs_of(ten_tasks, PUBLISHED):
        return []
    at_once = _runs_of([run for run in runs if run["stream"] == ALL_AT_ONCE], AT_ONCE)
    return [_row(claim, ten_tasks, at_once) for claim in claims]


def _row(claim: GapClaim, runs: Summaries, at_once: Summaries) -> list[str]:
    here, there = _runs_of(runs, claim.side), _runs_of(runs, claim.other)
    pairs = matched(here, there, across=claim.other.method == "ranpac")
    if not pairs:
        return [claim.text, *[ABSENT] * 4, NOT_MEASURED]
    gained = gains_of(pairs, LAST, claim.side.rule, claim.other.rule)
    share = None if claim.share is None else _share_of_gap(claim, pairs, at_once)
    told = ABSENT if share is None else f"{100 * share:.0f} %"
    gain = Gain.of(gained)
    cells = [claim.text, str(gain), how_many_gain(gained), precisions(pairs), told]
    return [*cells, _verdict(claim, gain, share)]


def _verdict(claim: GapClaim, gain: Gain, share: float | None) -> str:
    """Whether a claim holds: beyond chance, and by as much as is asked."""
    if gain.margin is None:
        return NO_VERDICT
    if not gain.is_clear:
        return "undecided"
    if gain.mean < 0:
        return "does not hold"
    if claim.share is not None and share is None:
        return "gains; no gap to close is measured"
    wanted = []
    if claim.least:
        wanted.append((gain.mean >= claim.least, f"{claim.least:g} point"))
    if claim.share is not None and share is not None:
        wanted.append((share >= claim.share, f"{100 * claim.share:.0f} % of the gap"))
    short = [text for met, text in wanted if not met]
    return f"gains, but less than {' and '.join(short)}" if short else "holds"


def _runs_of(summaries: Summaries, side: RuleSide) -> Summaries:
    return [
        run
        for run in summaries
        if run["method"] == side.method
        and set(_settings(run)) == set(side.changed)
        and side.rule in run["accuracy_by_classifier"]
    ]


def _settings(summary: Mapping[str, Any]) -> list[str]:
    """What tells runs apart; RanPAC always says whether it has adapted."""
    changed = list(changed_settings(summary))
    adapted = f"adapt={summary['config']['settings'].get('adapt')}"
    return sorted({*changed, adapted}) if summary["method"] == "ranpac" else changed


def _share_of_gap(claim: GapClaim, pairs: Sequence[Runs], at_once: Summaries) -> float | None:
    """How much of the way from the one side to everything at once the other goes, over those pairs
    that have a run of everything at once; None where there is no such way."""
    ours, theirs = zip(*pairs, strict=True)
    rules = claim.side.rule, claim.other.rule, AT_ONCE.rule
    reached = [
        [value_of(run, LAST, rule) for run, rule in zip(three, rules, strict=True)]
        for three in matched(ours, theirs, at_once)
    ]
    gap = sum(whole - there for _, there, whole in reached)
    return sum(here - there for here, there, _ in reached) / gap if gap > 0 else None
