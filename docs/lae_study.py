"""The tables of the study of LAE: experts and votes, and what is claimed of them."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from claims import by_pair
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

ALL_AT_ONCE = "cifar100/100"
CLAIMED_ON = ("laptop", "paper-tiny", "paper")
"""The presets whose test images claims are judged on."""

NOT_MEASURED = "not measured"
NOT_CHOSEN = "TIES"
"""Stands for a density before validation images have chosen one."""


def lae_votes(summaries: Summaries) -> str:
    """Average / last accuracy by modules and merge: a part for each preset and its images."""
    parts = _parts(summaries)
    return "\n".join(f"### {title}\n\n{_part(parts[title])}" for title in sorted(parts))


def _parts(summaries: Summaries) -> dict[str, Summaries]:
    """The runs of the study that compare, by their title."""
    streams = {"lae": (TEN_TASKS, ALL_AT_ONCE), "ranpac": (TEN_TASKS,)}
    parts: dict[str, list[dict[str, Any]]] = {}
    for summary in summaries:
        if summary["stream"] in streams.get(summary["method"], ()):
            parts.setdefault(_title(summary), []).append(summary)
    return dict(parts)


def _title(summary: Mapping[str, Any]) -> str:
    """The preset, the images, the network that stands behind every number of a part, and in which
    precision."""
    network = summary["config"]["settings"]["pretrained"]
    return (
        f"Preset {summary['preset']}, {summary['evaluate_on']} images: {network['backbone']} at "
        f"{network['input_size']} pixels, in {summary['config']['precision']}"
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
    votes = [
        [
            modules_in_words(runs[0]),
            _parameters(runs[0]),
            str(len(runs)),
            vote,
            *(_cell(runs, rule.format(merge)) for merge in merges),
        ]
        for _, runs in rows
        for vote, rule in VOTES.items()
        if any(_cell(runs, rule.format(merge)) != ABSENT for merge in merges)
    ]
    header = ["Modules", "Parameters", "Orders", "Who decides", *merges]
    tables = [markdown(header, votes, texts=1)] if votes else []
    if beside := _beside(summaries):
        tables.append(markdown(["Without a vote", "Orders", "Average / last"], beside))
    return "\n".join(tables)


VOTE = "online + offline {}"
ALL_THREE = "online + offline {} + ridge"
VOTES = {"offline alone": "offline {}", "online + offline": VOTE, "all three": ALL_THREE}


def _beside(summaries: Summaries) -> list[list[str]]:
    """What does not hang on a merge: single experts, RanPAC, everything at once."""
    found = []
    for row, runs in pooled(summaries):
        if row.method == "ranpac":
            name = ", ".join(["RanPAC alone", *row.differences])
            found.append([name, str(len(runs)), _cell(runs, row.classifier)])
        elif row.stream == ALL_AT_ONCE:
            name = f"{modules_in_words(runs[0])}: everything at once"
            found.append([name, str(len(runs)), _cell(runs, "online")])
        else:
            found += [
                [f"{modules_in_words(runs[0])}: {rule} alone", str(len(runs)), _cell(runs, rule)]
                for rule in ("online", "ridge")
            ]
    return [cells for cells in found if cells[-1] != ABSENT]


def _parameters(summary: Mapping[str, Any]) -> str:
    """Of the modules of one expert, where the summary tells."""
    count = summary.get("module_parameters")
    return ABSENT if count is None else f"{count:,}"


def _cell(runs: Summaries, rule: str) -> str:
    return by_rule(runs, rule)


@dataclass(frozen=True)
class Side:
    """One side of a comparison: a decision rule of runs with these settings."""

    rule: str
    changed: tuple[str, ...] = ()
    method: str = "lae"


@dataclass(frozen=True)
class Claim:
    """A comparison that is judged.

    Attributes:
        least: points that must be gained on average.
        share: of the gap to the same modules trained on everything at once that must be closed;
            None where that is not asked.
    """

    text: str
    side: Side
    other: Side
    least: float = 0.0
    share: float | None = None


PUBLISHED = Side(VOTE.format("ema"))
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
    best: Side | None


def chosen(summaries: Summaries) -> Chosen:
    """The best on validation images, by mean last accuracy over the class orders that the published
    modules have."""
    found: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for run in lae_runs(summaries, "quick", "validation"):
        found.setdefault(changed_settings(run), []).append(run)
    published = found.get((), [])
    orders = {run["order"] for run in published}
    densities = {merge: _mean(published, VOTE.format(merge)) for merge in DENSITIES if published}
    whole = {
        Side(rule, changed): _mean([run for run in runs if run["order"] in orders], rule)
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
        run["accuracy_by_classifier"][rule]["last_accuracy"]
        for run in runs
        if rule in run["accuracy_by_classifier"]
    ]
    return statistics.fmean(values) if values else 0.0


def claims_about(choice: Chosen) -> list[Claim]:
    """What the table of claims compares."""
    ties = VOTE.format(choice.density or NOT_CHOSEN)
    alone = Side(ties)
    together = Side(ties, BOTH)
    convolved = Side(PUBLISHED.rule, BOTH)
    third = Side(ALL_THREE.format("ema"))
    return [
        Claim(
            "convolution, at equal parameters",
            Side(PUBLISHED.rule, CONVOLUTION),
            Side(PUBLISHED.rule, TWICE),
        ),
        Claim(
            "plain adapters beside the MLP too, at equal parameters",
            Side(PUBLISHED.rule, BOTH_PLACES),
            Side(PUBLISHED.rule, TWICE),
        ),
        Claim(
            "conv adapters beside the MLP too, at equal parameters",
            convolved,
            Side(PUBLISHED.rule, CONVOLUTION),
        ),
        Claim("A: conv adapters beside both, for the published adapter", convolved, PUBLISHED),
        *(
            Claim(f"{merge} for the moving average", Side(VOTE.format(merge)), PUBLISHED)
            for merge in ("mean", *DENSITIES)
        ),
        *(
            Claim(
                f"{merge} for the plain mean", Side(VOTE.format(merge)), Side(VOTE.format("mean"))
            )
            for merge in DENSITIES
        ),
        Claim(
            f"B: {choice.density or NOT_CHOSEN}, at the best density on validation images",
            alone,
            PUBLISHED,
        ),
        Claim("A and B together", together, PUBLISHED),
        Claim("what A adds to B", together, alone),
        Claim("what B adds to A", together, convolved),
        Claim("ridge regression as third expert", third, PUBLISHED, share=0.5),
        Claim(
            "the three experts, for ridge regression alone in the same run", third, Side("ridge")
        ),
        Claim(
            "the three experts, for RanPAC as it is",
            third,
            Side("ridge", ("adapt=False",), "ranpac"),
        ),
        Claim(
            "the three experts, for RanPAC on modules of the first task",
            third,
            Side("ridge", ("adapt=True",), "ranpac"),
        ),
        Claim(
            f"the best on validation images ({_in_words(choice.best)})",
            choice.best or Side(NOT_CHOSEN),
            PUBLISHED,
            least=1.0,
            share=0.5,
        ),
    ]


def _in_words(side: Side | None) -> str:
    if side is None:
        return "not chosen yet"
    return ", ".join([side.rule, *(side.changed or ("published modules",))])


def lae_claims(summaries: Summaries) -> str:
    """Differences in points of last accuracy, class order by class order, with a verdict."""
    claims = claims_about(chosen(summaries))
    tables = []
    for preset in CLAIMED_ON:
        tests = [
            run for run in summaries if (run["preset"], run["evaluate_on"]) == (preset, "test")
        ]
        for title, runs in sorted(_parts(tests).items()):
            ten_tasks = [run for run in runs if run["stream"] == TEN_TASKS]
            if not _last(ten_tasks, PUBLISHED):
                continue
            at_once = [run for run in runs if run["stream"] == ALL_AT_ONCE]
            rows = [_judged(claim, ten_tasks, _last(at_once, Side("online"))) for claim in claims]
            header = ["What", "Gain, points of last accuracy", "Orders in which it gains"]
            header += ["Share of the gap to everything at once", "Verdict"]
            tables.append(f"### {title}\n\n{markdown(header, rows)}")
    return "\n".join(tables) or NOTHING


Accuracies = Mapping[tuple[int, str], float]
"""By what makes runs a pair: seed and class order."""


def _judged(claim: Claim, summaries: Summaries, at_once: Accuracies) -> list[str]:
    here, there = _last(summaries, claim.side), _last(summaries, claim.other)
    differences = [here[pair] - there[pair] for pair in sorted(here.keys() & there.keys())]
    if not differences:
        return [claim.text, *[ABSENT] * 3, NOT_MEASURED]
    above = sum(each > 0 for each in differences)
    share = None if claim.share is None else _share_of_gap(here, there, at_once)
    told = ABSENT if share is None else f"{100 * share:.0f} %"
    gain = Gain.of(differences)
    cells = [claim.text, str(gain), f"{above} of {len(differences)}", told]
    return [*cells, _verdict(claim, gain, share)]


def _verdict(claim: Claim, gain: Gain, share: float | None) -> str:
    """Whether a claim holds: beyond chance, and by as much as is asked."""
    if gain.margin is None:
        return "one order, no verdict"
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


def _last(summaries: Summaries, side: Side) -> Accuracies:
    """Last accuracy by pair."""
    runs = [
        run
        for run in summaries
        if run["method"] == side.method
        and set(_settings(run)) == set(side.changed)
        and side.rule in run["accuracy_by_classifier"]
    ]
    return {
        pair: run["accuracy_by_classifier"][side.rule]["last_accuracy"]
        for pair, run in by_pair(runs).items()
    }


def _settings(summary: Mapping[str, Any]) -> list[str]:
    """What tells runs apart; RanPAC always says whether it has adapted."""
    changed = list(changed_settings(summary))
    adapted = f"adapt={summary['config']['settings'].get('adapt')}"
    return sorted({*changed, adapted}) if summary["method"] == "ranpac" else changed


def _share_of_gap(here: Accuracies, there: Accuracies, at_once: Accuracies) -> float | None:
    """How much of the way from `there` to everything at once `here` goes, over the pairs that all
    three have; None where there is no such way."""
    pairs = here.keys() & there.keys() & at_once.keys()
    gap = sum(at_once[pair] - there[pair] for pair in pairs)
    return sum(here[pair] - there[pair] for pair in pairs) / gap if gap > 0 else None
