"""One run's report: its figures, curves, tables and confusions."""

from __future__ import annotations

import csv
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import accumulate
from typing import Any

import numpy as np

from engram.config import to_yaml
from engram.data.orders import order_label
from engram.errors import UserError
from engram.results import metrics
from engram.results.comparison import bound_of, changed_settings, in_words, method_title
from engram.results.exemplar_report import exemplar_section
from engram.results.figures import (
    CONFUSION_STEPS,
    EVEN_STEPS,
    MARKERS,
    Line,
    accuracy_chart,
    confusion_picture,
    heat_scale,
    series_style,
)
from engram.results.formats import (
    ABSENT,
    format_bytes,
    format_count,
    format_number,
    format_percent,
    format_seconds,
)
from engram.results.found import FoundRun, Summary
from engram.results.markup import (
    MOST_CELLS_WITH_NUMBERS,
    ClassNames,
    detail_list,
    figure,
    heat_table,
    legend,
    number_cells,
    page_header,
    paragraph,
    section,
    table,
)
from engram.results.record import RunRecord

__all__ = ["facts", "run_parts", "run_title", "task_table"]

SHOWN_PAIRS = 12


def run_parts(run: FoundRun) -> list[str]:
    """The report of one run, part by part; empty where the run has no such thing.

    Raises:
        UserError: a file in the run's folder is damaged.
    """
    summary = run.summary
    confusion = _read_confusion(run)
    classes = confusion.classes if confusion else ClassNames.numbered(summary["task_sizes"])
    return [
        page_header("one run", run_title(summary), _circumstances(summary)),
        _headline(summary),
        _curve_section(summary),
        section("Task by task", task_table(run)),
        _matrix_section(summary),
        _confusion_section(confusion),
        exemplar_section(run, classes),
        section("Configuration and environment", facts(summary)),
    ]


def run_title(summary: Summary) -> str:
    """What the report of a run is called."""
    return f"{summary['method']} on {summary['stream']}"


def _circumstances(summary: Summary) -> str:
    """What was done, in a few sentences."""
    sizes = summary["task_sizes"]
    tasks = "1 task" if len(sizes) == 1 else f"{len(sizes)} tasks"
    if summary["evaluate_on"] == "test":
        evaluated = "Evaluated on the test set."
    else:
        evaluated = (
            "Evaluated on validation images that were cut out of the training set; the test set "
            "was not looked at, and test results do not compare with these."
        )
    changed = ", ".join(in_words(changed_settings(summary)))
    preset = " with ".join(filter(None, [summary["preset"], changed]))
    return (
        f"{method_title(summary['method'])}. {sum(sizes)} classes in {tasks} ({_sizes(sizes)}), "
        f"class order {order_label(summary['order'])}, seed {summary['seed']}, preset {preset}, "
        f"memory budget {summary['config'].get('budget', 'unknown')}, codec "
        f"{summary['codec']}. {evaluated}"
    )


def _sizes(sizes: Sequence[int]) -> str:
    """`10 each`, `50, then 10 each`, or the list."""
    if len(set(sizes)) == 1:
        return f"{sizes[0]} each" if len(sizes) > 1 else str(sizes[0])
    if len(set(sizes[1:])) == 1 and len(sizes) > 2:
        return f"{sizes[0]}, then {sizes[1]} each"
    return ", ".join(map(str, sizes))


def _headline(summary: Summary) -> str:
    large = [
        (
            "Average incremental accuracy",
            summary["average_incremental_accuracy"],
            "mean over all tasks, the first included",
        ),
        ("Last accuracy", summary["last_accuracy"], "over all classes, at the end"),
        ("Forgetting", summary["forgetting"], "mean drop from a task's best to its last accuracy"),
    ]
    small = [
        ("Without first task", format_percent(summary["average_without_first_task"])),
        ("Backward transfer", format_percent(summary["backward_transfer"])),
        ("Memory held at most", format_bytes(summary["memory_bytes"])),
        ("Parameters at the end", format_count(summary["parameters"][-1])),
        ("Parameters on average", format_count(statistics.fmean(summary["parameters"]))),
        ("Time", format_seconds(summary["seconds"]["total"])),
    ]
    figures = "".join(
        f"<div><dt>{name}</dt><dd><strong>{format_percent(value, 1)}</strong>"
        f"<small>{meaning}</small></dd></div>"
        for name, value, meaning in large
    )
    return f'<dl class="figures">{figures}</dl>\n{detail_list(small)}'


def _curve_section(summary: Summary) -> str:
    """The rule that counts first, then whatever other rules the method has."""
    counting = summary["classifier"]
    curves = summary["accuracy_by_classifier"]
    names = [counting, *sorted(name for name in curves if name != counting)]
    lines = [
        Line(
            label=f"{name} (the one that counts)" if name == counting else name,
            style=bound_of(summary["method"], summary["memory_bytes"]) or series_style(index),
            marker=MARKERS[index % len(MARKERS)],
            x=list(accumulate(summary["task_sizes"])),
            y=curves[name]["accuracy_per_task"],
        )
        for index, name in enumerate(names)
    ]
    note = (
        ""
        if len(lines) == 1
        else "A line for each decision rule; the key gives its accuracy after the last task."
    )
    return section(
        "Accuracy as classes arrive",
        figure(
            accuracy_chart(lines),
            legend(lines),
            f"Accuracy over all classes seen so far, after each task. {note}",
        ),
    )


def task_table(run: FoundRun) -> str:
    """A row for each task; what only the run's folder tells is left open where there is none.

    Raises:
        UserError: a file in the run's folder is damaged.
    """
    summary = run.summary
    matrix = summary["accuracy_matrix"]
    of_rule = summary["accuracy_by_classifier"][summary["classifier"]]
    accuracies = of_rule["accuracy_per_task"]
    tasks = _read_tasks(run)
    measured = summary.get("measures") or [{} for _ in matrix]
    names = list(dict.fromkeys(name for measures in measured for name in measures))
    rows = []
    for index, seen in enumerate(accumulate(summary["task_sizes"])):
        forgotten = metrics.forgetting(matrix[: index + 1])
        task = tasks[index] if tasks else {}
        seconds = task.get("seconds", {})
        cells = [
            str(seen),
            format_number(accuracies[index]),
            format_number(matrix[index][index]),
            ABSENT if forgotten is None else format_number(forgotten),
            *(
                _of_task(of_rule, kind, index, format_number)
                for kind in ("old_as_new", "new_as_old")
            ),
            str(task.get("exemplars", ABSENT)),
            *(_measure(measured[index].get(name)) for name in names),
            format_count(summary["parameters"][index]),
            _of_task(summary, "multiply_adds", index, format_count),
            _of_task(summary, "latency_ms", index, "{:.1f}".format),
            format_seconds(sum(seconds.values())) if seconds else ABSENT,
        ]
        numbers = number_cells(map(escape, cells))
        rows.append(f'<tr><th scope="row" class="number">{index + 1}</th>{numbers}</tr>')
    header = (
        "Task",
        "Classes seen",
        "Accuracy, %",
        "On new classes, %",
        "Forgetting so far, %",
        "Old mistaken for new, %",
        "New mistaken for old, %",
        "Exemplars",
        *(name.capitalize() for name in names),
        "Parameters",
        "Multiply-adds an image",
        "One image, ms",
        "Time",
    )
    return table(header, rows)


def _measure(value: float | None) -> str:
    """What a method tells of a task: a count, or a share."""
    if value is None:
        return ABSENT
    return str(value) if isinstance(value, int) else f"{value:.3f}"


def _of_task(
    measures: Mapping[str, Any], name: str, task: int, form: Callable[[float], str]
) -> str:
    """A measure after a task. Older summaries lack some, and some have no value after the first."""
    values = measures.get(name)
    value = values[task] if values else None
    return ABSENT if value is None else form(value)


def _read_tasks(run: FoundRun) -> list[dict[str, Any]]:
    """What the run's folder holds of each task; nothing where it is not there."""
    if run.folder is None:
        return []
    try:
        return RunRecord(run.folder).tasks(len(run.summary["task_sizes"]))
    except FileNotFoundError:
        return []
    except ValueError as error:
        raise UserError(f"A file in {run.folder / 'tasks'} is damaged ({error}).") from error


def _matrix_section(summary: Summary) -> str:
    matrix = summary["accuracy_matrix"]
    names = [str(index + 1) for index in range(len(matrix))]
    return section(
        "Accuracy on each task",
        figure(
            heat_table("after task", names, names, matrix, steps=EVEN_STEPS, kind="matrix"),
            heat_scale(EVEN_STEPS) if len(names) > MOST_CELLS_WITH_NUMBERS else "",
            "In percent: a row after each task, a column for the classes of each task. A column "
            "that fades downwards is a task that is being forgotten.",
        ),
    )


@dataclass(frozen=True, slots=True)
class _Confusion:
    """The confusion matrix after the last task.

    Attributes:
        counts: (classes, classes); rows are true classes, in order of arrival as columns are.
    """

    classes: ClassNames
    counts: np.ndarray

    def shares(self) -> np.ndarray:
        """Each row in percent of its class's images."""
        totals = self.counts.sum(axis=1, keepdims=True)
        return np.asarray(100 * self.counts / np.maximum(totals, 1))


def _read_confusion(run: FoundRun) -> _Confusion | None:
    """None where the run has no folder, or its folder no such table.

    Raises:
        UserError: the table is damaged.
    """
    path = run.folder / "confusion.csv" if run.folder else None
    if path is None or not path.exists():
        return None
    sizes = run.summary["task_sizes"]
    count = sum(sizes)
    try:
        with path.open(newline="", encoding="utf-8") as file:
            header, *rows = csv.reader(file)
        counts = np.array([[int(cell) for cell in row[1:]] for row in rows])
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}). Remove it to report without it.") from error
    if len(header) != count + 1 or counts.shape != (count, count):
        raise UserError(
            f"{path} is damaged: not {count} rows and columns. Remove it to report without it."
        )
    return _Confusion(ClassNames(header[1:], sizes), counts)


def _confusion_section(confusion: _Confusion | None) -> str:
    if confusion is None:
        return ""
    shares = confusion.shares()
    names, sizes = confusion.classes.names, confusion.classes.task_sizes
    title = "Confusion after the last task"
    if len(names) <= MOST_CELLS_WITH_NUMBERS:
        picture = heat_table(
            "true class", names, names, shares.tolist(), steps=CONFUSION_STEPS, kind="confusions"
        )
        explained = "columns are predicted classes. Both stand in the order in which they arrived."
    else:
        picture = confusion_picture(shares, sizes, names, title)
        explained = (
            "columns are predicted classes, both in the order in which they arrived; lines part "
            "the tasks. The steps of the scale are uneven, so that small confusions show."
        )
    return section(
        title,
        figure(
            picture,
            heat_scale(CONFUSION_STEPS),
            f"In percent of the images of each true class, a row each; {explained}",
        ),
        "<h3>Most confused classes</h3>",
        _pair_table(confusion),
    )


def _pair_table(confusion: _Confusion) -> str:
    """The largest shares off the diagonal."""
    classes, counts, shares = confusion.classes, confusion.counts, confusion.shares()
    np.fill_diagonal(shares, 0)
    worst = np.argsort(-shares, axis=None, kind="stable")[:SHOWN_PAIRS]
    rows = []
    for true, predicted in (divmod(int(position), len(shares)) for position in worst):
        if shares[true, predicted] > 0:
            share = f"{shares[true, predicted]:.1f}"
            images = f"{counts[true, predicted]} of {counts[true].sum()}"
            rows.append(
                f"<tr><td>{classes.label(true)}</td>"
                f"<td>{classes.label(predicted)}</td>{number_cells([share, images])}</tr>"
            )
    if not rows:
        return paragraph("No image was taken for one of another class.")
    return table(
        ("True class", "Taken for", "Share, %", "Images"), rows, texts=(0, 1), kind="pairs"
    )


def facts(summary: Summary) -> str:
    """The resolved configuration and the environment, folded away."""
    parts = (
        ("Resolved configuration", summary["config"]),
        ("Environment", summary["environment"]),
    )
    return "\n".join(
        f"<details><summary>{name}</summary><pre>{escape(to_yaml(content).rstrip())}</pre></details>"
        for name, content in parts
    )
