"""The tables of the memory study: codecs and budgets, three attempts, and what is claimed."""

from __future__ import annotations

import statistics
from dataclasses import replace

from claims import Claim, Side, judged
from measured import NOTHING, Summaries, by_rule, pooled, processors, tests_in_ten_tasks

from engram.memory import Budget
from engram.results.comparison import changed_settings
from engram.results.formats import ABSENT, format_bytes, format_seconds, markdown

BUDGETS = ("1536000B", "6144000B", "24576000B")
RAW, FLOAT32 = BUDGETS[1:]
"""What 2,000 images of uint8 pixels take, and 2,000 of float32."""

RULES = ("network", "nme")
"""The decision rules of iCaRL: the network's own outputs, and the nearest mean of exemplars."""
DECIDERS = {"network": "the network's outputs", "nme": "the nearest mean"}

FIRST_HALF = "cifar100/10,10,10,10,10"
SHORTENED = "epochs=8"
"""What all runs differ from their preset by, where `best` is chosen."""

EQUAL_EPOCHS = ("epochs=2", "updates=None")
"""How runs of the memory study with iCaRL as published differ from preset quick: only new images
carry labels there, and in a fixed number of updates, more exemplars would make them rarer."""


def of_preset(summaries: Summaries, preset: str) -> Summaries:
    """The runs of the memory study with a preset of iCaRL."""
    return [
        summary
        for summary in tests_in_ten_tasks(summaries)
        if (summary["method"], summary["preset"]) == ("icarl", preset)
        and summary["config"]["budget"] in BUDGETS
    ]


def as_published(summaries: Summaries) -> Summaries:
    """The runs with iCaRL as published, in epochs."""
    return [
        summary
        for summary in of_preset(summaries, "quick")
        if set(changed_settings(summary)) >= set(EQUAL_EPOCHS)
    ]


def by_memory(summaries: Summaries) -> Summaries:
    """The runs of preset best-quick that differ in their memories alone."""
    return [s for s in of_preset(summaries, "best-quick") if not changed_settings(s)]


def choice(summaries: Summaries) -> str:
    """What preset best was chosen by: half the stream on validation images, both decision rules."""
    found = [
        summary
        for summary in summaries
        if (summary["method"], summary["preset"]) == ("icarl", "laptop")
        and (summary["stream"], summary["evaluate_on"]) == (FIRST_HALF, "validation")
    ]
    rows = [
        [
            f"`{row.codec}`",
            ", ".join(each for each in row.differences if each != SHORTENED) or "as published",
            f"{runs[0]['exemplars']:,}",
            f"{runs[0]['updates']:,}",
            *(by_rule(runs, rule) for rule in RULES),
        ]
        for row, runs in pooled(found)
    ]
    header = ["Codec", "What differs", "Exemplars", "Updates", *RULES]
    return markdown(header, rows, texts=2) if rows else NOTHING


def attempts(summaries: Summaries) -> str:
    """iCaRL as published on memories of other codecs, by budget and accuracy."""
    header = ["Budget", "Codec", "New images through it", "Test images through it", "Exemplars"]
    header += ["Updates", "Seeds", "Average", "Last"]
    rows = [
        [
            f"{Budget.parse(row.budget).amount:,} B",
            f"`{row.codec}`",
            _share(runs[0]["config"]["settings"]["codec_augmentation"]),
            "all" if runs[0]["config"]["infer_through_codec"] else "none",
            f"{runs[0]['exemplars']:,}",
            f"{runs[0]['updates']:,}",
            str(len(runs)),
            str(row.average),
            str(row.last),
        ]
        for row, runs in pooled(as_published(summaries))
    ]
    ordered = sorted(rows, key=lambda row: (len(row[0]), row[0]))
    return markdown(header, ordered, texts=4) if rows else NOTHING


def _share(augmentation: float) -> str:
    return {0.0: "none", 1.0: "all"}.get(augmentation, f"{100 * augmentation:.0f} %")


def codecs_and_budgets(summaries: Summaries) -> str:
    """What preset best-quick makes of each codec, by both decision rules: columns for a budget."""
    lines: dict[str, dict[str, Summaries]] = {}
    for row, runs in pooled(by_memory(summaries)):
        lines.setdefault(row.codec, {})[row.budget] = runs
    if not lines:
        return NOTHING

    def order(codec: str) -> float:
        found = lines[codec].get(RAW)
        return -average_by(RULES[0], found) if found else 0.0

    header = ["Codec"]
    for budget in BUDGETS:
        header += [f"Exemplars in {Budget.parse(budget).amount:,} B", *RULES]
    rows = [
        [f"`{codec}`", *(cell for budget in BUDGETS for cell in _cells(lines[codec].get(budget)))]
        for codec in sorted(lines, key=order)
    ]
    return markdown(header, rows)


def average_by(rule: str, runs: Summaries) -> float:
    """Average incremental accuracy of a decision rule, mean over runs."""
    return statistics.fmean(
        run["accuracy_by_classifier"][rule]["average_incremental_accuracy"] for run in runs
    )


def _cells(runs: Summaries | None) -> list[str]:
    if runs is None:
        return [ABSENT] * (1 + len(RULES))
    return [f"{runs[0]['exemplars']:,}", *(by_rule(runs, rule) for rule in RULES)]


def best_runs(summaries: Summaries) -> str:
    """What a memory counted in bytes is worth to iCaRL, beside what it has to be compared with."""
    header = ["Method, preset", "Budget, codec", "Seeds", "Exemplars at the end"]
    header += ["Exemplars and parameters", "Updates", "Time, processor and precision"]
    header += [
        "Decides by",
        "Average",
        "Without first task",
        "Last",
        "Average / last by the other rule",
    ]
    rows = [
        [
            f"{row.method}, {row.preset_and_changes}",
            f"{row.budget}, `{row.codec}`",
            str(len(runs)),
            f"{statistics.fmean(run['exemplars'] for run in runs):,.0f}",
            format_bytes(row.total_bytes),
            f"{statistics.fmean(run['updates'] for run in runs):,.0f}",
            f"{format_seconds(row.seconds)}, {processors(runs)}",
            row.classifier,
            *map(str, (row.average, row.average_without_first_task, row.last)),
            by_rule(runs, next(rule for rule in RULES if rule != row.classifier)),
        ]
        for row, runs in pooled(_claimed(summaries))
    ]
    return markdown(header, rows, texts=2) if rows else NOTHING


def _claimed(summaries: Summaries) -> Summaries:
    presets = (("icarl", "laptop"), ("icarl", "best"), ("joint", "laptop"))
    return [
        summary
        for summary in tests_in_ten_tasks(summaries)
        if (summary["method"], summary["preset"]) in presets
        and summary["config"]["budget"] in ("2000", "all", *BUDGETS)
    ]


def _published(codec: str, budget: str, *changed: str) -> Side:
    return Side("icarl", "quick", codec, budget, (*changed, *EQUAL_EPOCHS))


WHOLE = _published("raw", RAW)
LAPTOP = Side("icarl", "laptop", "raw", "2000")
JOINT = Side("joint", "laptop", "raw", "all")
EQUAL_UPDATES = ("epochs=None", "updates=1693")
THROUGH_CODEC = "codec_augmentation={}"
TEST_TOO = "infer_through_codec=True"

ATTEMPTS = (
    Claim(
        "deflated float32 for float32 tensors",
        _published("zlib-float32", FLOAT32),
        _published("float32", FLOAT32),
    ),
    Claim(
        "deflated float32 for uint8 pixels",
        _published("zlib-float32", FLOAT32),
        _published("raw", FLOAT32),
    ),
    Claim(
        "deflated for plain uint8 pixels",
        _published("zlib-uint8", FLOAT32),
        _published("raw", FLOAT32),
    ),
    Claim(
        "float16 for float32",
        _published("float16", FLOAT32),
        _published("float32", FLOAT32),
    ),
    Claim("uint8 for float16", _published("raw", FLOAT32), _published("float16", FLOAT32)),
    Claim("8,000 images of 16x16 for 2,000 whole ones", _published("resize:16", RAW), WHOLE),
    Claim(
        "the same, every second new image through 16x16",
        _published("resize:16", RAW, THROUGH_CODEC.format(0.5)),
        WHOLE,
    ),
    Claim(
        "the same, all new images through 16x16",
        _published("resize:16", RAW, THROUGH_CODEC.format(1.0)),
        WHOLE,
    ),
    Claim(
        "the same, all new images and test images",
        _published("resize:16", RAW, TEST_TOO, THROUGH_CODEC.format(1.0)),
        WHOLE,
    ),
    Claim(
        "the same, test images alone",
        _published("resize:16", RAW, TEST_TOO),
        WHOLE,
    ),
    Claim(
        "16x16 images at equal updates: all new images through 16x16, for none",
        _published("resize:16", RAW, THROUGH_CODEC.format(1.0)),
        _published("resize:16", RAW),
    ),
    Claim(
        "many exemplars, and the updates that come with them: `jpeg:75`",
        _published("jpeg:75", RAW),
        WHOLE,
    ),
)
"""Three attempts of an earlier study, and the one thing that all of them rest on."""

CLAIMS = (
    Claim(
        "`best` for iCaRL with 2,000 raw images, at equal epochs: three times the updates",
        Side("icarl", "best", "klt:32", RAW),
        LAPTOP,
        least=10.0,
    ),
    Claim(
        "`best` for iCaRL with 2,000 raw images, at equal updates",
        Side("icarl", "best", "klt:32", RAW, EQUAL_UPDATES),
        LAPTOP,
    ),
    Claim(
        "the recipe with 2,000 raw images for iCaRL, at equal updates",
        Side("icarl", "best", "raw", RAW, EQUAL_UPDATES),
        LAPTOP,
    ),
    *(
        Claim(
            f"the recipe with 2,000 raw images for iCaRL, by {words} on both sides",
            Side("icarl", "best", "raw", RAW, EQUAL_UPDATES, rule),
            replace(LAPTOP, rule=rule),
        )
        for rule, words in DECIDERS.items()
    ),
    *(
        Claim(
            f"`klt:32` for raw images in the recipe, by {words} on both sides",
            Side("icarl", "best", "klt:32", RAW, EQUAL_UPDATES, rule),
            Side("icarl", "best", "raw", RAW, EQUAL_UPDATES, rule),
        )
        for rule, words in DECIDERS.items()
    ),
    Claim(
        "24,576,000 B as `klt:24` for all images at once, at as many epochs",
        Side("icarl", "best", "klt:24", FLOAT32),
        JOINT,
        least=-3.0,
    ),
)


def _in_bfloat16(codec: str, rule: str) -> Claim:
    side = Side("icarl", "best-quick", codec, RAW, rule=rule)
    return Claim(
        f"`{codec}`, by {DECIDERS[rule]}",
        replace(side, changed=("precision=bf16",)),
        side,
        across=True,
    )


PRECISIONS = tuple(
    _in_bfloat16(codec, rule)
    for codec in ("raw", "float16", "resize:16", "webp-lossless")
    for rule in RULES
)


def attempts_judged(summaries: Summaries) -> str:
    """What each of the attempts gains."""
    return judged(ATTEMPTS, as_published(summaries))


def precisions_judged(summaries: Summaries) -> str:
    """What training in bfloat16 gains over training in float32."""
    return judged(PRECISIONS, of_preset(summaries, "best-quick"))


def best_judged(summaries: Summaries) -> str:
    """What preset best gains, beside what is asked of it."""
    return judged(CLAIMS, _claimed(summaries))
