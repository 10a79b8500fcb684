"""The rows in which runs are compared: seeds pooled, nothing else."""

from __future__ import annotations

import dataclasses
import json
import statistics
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from engram.config import as_mapping, leaves, load_preset, setting
from engram.data.orders import order_label
from engram.errors import UserError
from engram.methods import METHODS
from engram.results.formats import ABSENT, format_bytes, format_count, format_seconds, markdown
from engram.results.found import Summary
from engram.results.metrics import total_bytes
from engram.runs import RunConfig, preset_settings

__all__ = [
    "SHORT_COLUMNS",
    "ComparisonRow",
    "Estimate",
    "bound_of",
    "by_stream",
    "changed_settings",
    "comparison_table",
    "in_words",
    "markdown_table",
    "method_title",
    "short_cells",
    "start_of",
    "starts_differ",
]

APART = ("method", "stream", "preset", "evaluate_on", "codec", "classifier")
"""What tells settings apart, beside the configuration."""

GENERAL = ("input_mean", "image_size", "images_per_class", "infer_through_codec", "precision")
"""Settings of a run that are told like those of its method."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A measure over several seeds.

    Attributes:
        mean: over the seeds.
        deviation: the sample standard deviation; None of one seed.
    """

    mean: float
    deviation: float | None

    @classmethod
    def of(cls, values: Sequence[float]) -> Estimate:
        """From a value a seed, one at least."""
        return cls(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None)

    def __str__(self) -> str:
        spread = "" if self.deviation is None else f" ± {self.deviation:.2f}"
        return f"{self.mean:.2f}{spread}"


@dataclass(frozen=True, kw_only=True, slots=True)
class ComparisonRow:
    """Runs that differ in nothing but their seed, and in the class order where it follows the seed.

    Attributes:
        changed: settings that differ from the preset's, as `name=value`.
        start: the weights that they started from; rows that differ in it do not compare methods.
        orders: of the classes, each once. Several only where every run has its own seed's.
        classifier: the decision rule that counts.
        accuracies: in percent after each task, one sequence a seed.
        memory_bytes: the most that any of the runs held.
        total_bytes: see `engram.results.metrics.total_bytes`.
        kept_bytes: exemplars and all of the saved model, with what only learning on needs, such as
            the sums of a ridge regression.
        parameters: of the model after the last task.
        seconds: of one run, on average.
        runs: positions of the runs among the summaries that were given.
    """

    method: str
    stream: str
    preset: str
    evaluate_on: str
    budget: str
    codec: str
    changed: tuple[str, ...]
    start: str
    seeds: tuple[int, ...]
    orders: tuple[str, ...]
    classifier: str
    task_sizes: tuple[int, ...]
    accuracies: tuple[tuple[float, ...], ...]
    average: Estimate
    average_without_first_task: Estimate | None
    last: Estimate
    forgetting: Estimate | None
    backward_transfer: Estimate | None
    memory_bytes: int
    total_bytes: int
    kept_bytes: int
    parameters: int
    seconds: float
    runs: tuple[int, ...]

    @property
    def differences(self) -> list[str]:
        """`changed`, in words."""
        return in_words(self.changed)

    @property
    def changed_but_precision(self) -> tuple[str, ...]:
        """`changed` without the precision of training."""
        return tuple(each for each in self.changed if not each.startswith("precision="))

    @property
    def preset_and_changes(self) -> str:
        """The preset, and what differs from it."""
        return ", ".join([self.preset, *self.differences])


def comparison_table(summaries: Sequence[Summary]) -> list[ComparisonRow]:
    """A row for every method with its settings, with seeds pooled.

    Rows of a stream that start from the same weights stand together, the best of them first.

    Runs of different class orders share a row only where each has the order of its own seed
    (`seed3` for seed 3); a run that is there twice, perhaps from two machines, never counts as two
    seeds.
    """
    alike: dict[str, list[int]] = {}
    for position, summary in enumerate(summaries):
        alike.setdefault(_pool_key(summary), []).append(position)
    rows = [
        _row(summaries, pool)
        for positions in alike.values()
        for pool in _pools(summaries, positions)
    ]
    return sorted(rows, key=lambda row: (row.stream, row.evaluate_on, row.start, -row.average.mean))


def by_stream(rows: Sequence[ComparisonRow]) -> list[list[ComparisonRow]]:
    """The rows of each stream, parted by the images that they were evaluated on."""
    found: dict[tuple[str, str], list[ComparisonRow]] = {}
    for row in rows:
        found.setdefault((row.stream, row.evaluate_on), []).append(row)
    return list(found.values())


def start_of(summary: Summary) -> str:
    """The weights that a run started from."""
    checksum = summary.get("weights_sha256")
    if checksum is None:
        return "random weights"
    settings = summary["config"]["settings"]
    pretrained = settings.get("pretrained", {})
    architecture, _, tag = {**settings, **pretrained}.get("backbone", "unknown").partition(".")
    named = f"sha256 {checksum[:12]}" if pretrained.get("weights") or not tag else tag
    return f"{architecture}, pretrained ({named})"


def starts_differ(rows: Sequence[ComparisonRow]) -> bool:
    """Whether rows have to be told apart by the weights that they started from."""
    return len({row.start for row in rows}) > 1


def _pool_key(summary: Summary) -> str:
    """Everything that a result depends on, but for the seed, the class order and the machine.

    A setting that was not there yet when a run was done had the preset's value.
    """
    usual = _usual(summary["method"], summary["preset"])
    config = {
        key: value
        for key, value in leaves(summary["config"]).items()
        if key not in ("seed", "order", "device") and (key not in usual or value != usual[key])
    }
    fields = [summary[key] for key in APART]
    return json.dumps([fields, start_of(summary), summary["task_sizes"], config], sort_keys=True)


def _pools(summaries: Sequence[Summary], positions: Sequence[int]) -> Iterator[list[int]]:
    """Runs of one setting, parted into those that may be averaged.

    A run that is there again, with its class order and seed, belongs to another round.
    """
    before: Counter[tuple[str, int]] = Counter()
    rounds: dict[int, dict[str, list[int]]] = {}
    for position in positions:
        order, seed = summaries[position]["order"], summaries[position]["seed"]
        rounds.setdefault(before[order, seed], {}).setdefault(order, []).append(position)
        before[order, seed] += 1
    for orders in rounds.values():
        own = []
        for order, pool in orders.items():
            if len(pool) == 1 and order == f"seed{summaries[pool[0]]['seed']}":
                own += pool
            else:
                yield pool
        if own:
            yield own


def _row(summaries: Sequence[Summary], pool: Sequence[int]) -> ComparisonRow:
    positions = sorted(pool, key=lambda position: summaries[position]["seed"])
    runs = [summaries[position] for position in positions]
    first = runs[0]
    return ComparisonRow(
        method=first["method"],
        stream=first["stream"],
        preset=first["preset"],
        evaluate_on=first["evaluate_on"],
        budget=str(first["config"].get("budget", "")),
        codec=first["codec"],
        changed=_changed(first, summaries),
        start=start_of(first),
        seeds=tuple(run["seed"] for run in runs),
        orders=tuple(dict.fromkeys(order_label(run["order"]) for run in runs)),
        classifier=first["classifier"],
        task_sizes=tuple(first["task_sizes"]),
        accuracies=tuple(
            tuple(run["accuracy_by_classifier"][run["classifier"]]["accuracy_per_task"])
            for run in runs
        ),
        average=Estimate.of([run["average_incremental_accuracy"] for run in runs]),
        average_without_first_task=_estimate(runs, "average_without_first_task"),
        last=Estimate.of([run["last_accuracy"] for run in runs]),
        forgetting=_estimate(runs, "forgetting"),
        backward_transfer=_estimate(runs, "backward_transfer"),
        memory_bytes=max(run["memory_bytes"] for run in runs),
        total_bytes=max(total_bytes(run["memory_bytes"], run["parameters"][-1]) for run in runs),
        kept_bytes=max(run["memory_bytes"] + run["model_bytes"] for run in runs),
        parameters=max(run["parameters"][-1] for run in runs),
        seconds=statistics.fmean(run["seconds"]["total"] for run in runs),
        runs=tuple(positions),
    )


def _estimate(runs: Sequence[Summary], key: str) -> Estimate | None:
    """Of a measure that does not exist where there was one task only."""
    values = [run[key] for run in runs if run[key] is not None]
    return Estimate.of(values) if values else None


def _changed(summary: Summary, summaries: Sequence[Summary]) -> tuple[str, ...]:
    """What to tell a setting by: what differs from its preset.

    What a preset does not speak of (precision, mostly), or all of it where the preset is not known
    here, is told where runs of the preset differ in it.
    """
    named = (summary["method"], summary["preset"])
    siblings = [_settings(run) for run in summaries if (run["method"], run["preset"]) == named]
    usual = _usual(*named)
    return tuple(
        setting(name, value)
        for name, value in _settings(summary).items()
        if (
            value != usual[name]
            if name in usual
            else any(value != other.get(name, value) for other in siblings)
        )
    )


def changed_settings(summary: Summary) -> tuple[str, ...]:
    """What of a run differs from its preset, as `name=value`."""
    return _changed(summary, [summary])


def method_title(name: str) -> str:
    """A method's full name; as it stands where this installation does not know it."""
    return METHODS[name].title if name in METHODS else name


def bound_of(method: str, memory_bytes: int) -> Literal["ceiling", "floor"] | None:
    """Which bound of the other methods this one is meant as; None where it is none."""
    if method == "joint":
        return "ceiling"
    return "floor" if method == "finetune" and memory_bytes == 0 else None


def _settings(summary: Summary) -> dict[str, Any]:
    config = summary["config"]
    general = {key: config[key] for key in GENERAL if key in config}
    return {**general, **leaves(config["settings"])}


def _usual(method: str, preset: str) -> dict[str, Any]:
    """The settings that a preset stands for, as far as this installation knows it."""
    defaults = {field.name: field.default for field in dataclasses.fields(RunConfig)}
    general = {name: defaults[name] for name in ("input_mean", "image_size", "infer_through_codec")}
    try:
        given = load_preset(method, preset)
        settings = preset_settings(method, preset)
    except UserError:
        return general
    general["images_per_class"] = given.images_per_class
    if given.precision != "auto":
        general["precision"] = given.precision
    return {**general, **leaves(as_mapping(settings))}


def in_words(changed: Sequence[str]) -> list[str]:
    """How settings that differ from a preset's are shown: of epochs and updates, the one given."""
    names = {each.partition("=")[0] for each in changed}
    silent = {"epochs=None", "updates=None"} if names >= {"epochs", "updates"} else set()
    return [_in_words(each) for each in changed if each not in silent]


def _in_words(changed: str) -> str:
    name, _, value = changed.partition("=")
    return f"{int(value):,} updates a task" if name == "updates" and value != "None" else changed


SHORT_COLUMNS = ("average", "last", "forgetting", "n", "all kept", "time a run")


def short_cells(row: ComparisonRow) -> list[str]:
    """What the terminal shows of a row, under `SHORT_COLUMNS`: narrow, n is of seeds."""
    return [
        *(_or_absent(each).replace(" ", "") for each in (row.average, row.last, row.forgetting)),
        str(len(row.seeds)),
        format_bytes(row.kept_bytes),
        format_seconds(row.seconds),
    ]


def markdown_table(summaries: Sequence[Summary]) -> str:
    """The comparison as Markdown: for each stream and the images it was evaluated on a heading, a
    table of accuracies in percent as mean ± sample deviation, and one of what they took."""
    parts = []
    for rows in by_stream(comparison_table(summaries)):
        names = [_name_cells(row, start=starts_differ(rows)) for row in rows]
        header = [*names[0]]
        accuracies = markdown(
            [*header, *ACCURACY_COLUMNS],
            [
                [*name.values(), *_accuracy_cells(row)]
                for name, row in zip(names, rows, strict=True)
            ],
            texts=len(header) + 1,
        )
        costs = markdown(
            [*header, *COST_COLUMNS],
            [[*name.values(), *_cost_cells(row)] for name, row in zip(names, rows, strict=True)],
            texts=len(header),
        )
        title = f"#### {rows[0].stream}, {rows[0].evaluate_on} images"
        parts.append(f"{title}\n\n{accuracies}\n{costs}")
    return "\n".join(parts)


ACCURACY_COLUMNS = (
    *("Class order", "Seeds", "Average incremental accuracy", "Without first task"),
    *("Last accuracy", "Forgetting", "Backward transfer"),
)


def _accuracy_cells(row: ComparisonRow) -> list[str]:
    estimates = (
        *(row.average, row.average_without_first_task, row.last),
        *(row.forgetting, row.backward_transfer),
    )
    return [
        ", ".join(row.orders),
        f"{', '.join(map(str, row.seeds))} (n = {len(row.seeds)})",
        *map(_or_absent, estimates),
    ]


COST_COLUMNS = ("Memory held", "Memory and parameters", "Kept to learn on", "Parameters", "Time")


def _cost_cells(row: ComparisonRow) -> list[str]:
    return [
        *map(format_bytes, (row.memory_bytes, row.total_bytes, row.kept_bytes)),
        format_count(row.parameters),
        format_seconds(row.seconds),
    ]


def _name_cells(row: ComparisonRow, *, start: bool) -> dict[str, str]:
    """What tells a row from others, under the names of columns."""
    cells = {
        "Method": row.method,
        "Preset": row.preset_and_changes,
        **({"Starts from": row.start} if start else {}),
        "Memory budget": f"{row.budget} {row.codec}",
    }
    return {name: " ".join(cell.replace("|", "\\|").split()) for name, cell in cells.items()}


def _or_absent(estimate: Estimate | None) -> str:
    return ABSENT if estimate is None else str(estimate)
