"""The report: one HTML file without scripts and without anything fetched from elsewhere."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from itertools import accumulate, count
from pathlib import Path
from urllib.parse import quote

from engram.errors import UserError
from engram.files import write_atomically
from engram.results.comparison import (
    ComparisonRow,
    Estimate,
    bound_of,
    by_stream,
    comparison_table,
    method_title,
    starts_differ,
)
from engram.results.figures import MARKERS, Line, accuracy_chart, series_style, swatch
from engram.results.formats import ABSENT, format_bytes, format_count, format_number, format_seconds
from engram.results.found import Findings, FoundRun, find_runs
from engram.results.markup import (
    figure,
    legend,
    number_cells,
    page,
    page_header,
    paragraph,
    section,
    table,
)
from engram.results.paired import Gain, gains
from engram.results.run_report import facts, run_parts, run_title, task_table

__all__ = ["write_report"]

EVALUATIONS = {"test": "test set", "validation": "validation images"}
BOUNDS = {
    "ceiling": "Dashed grey: trained on all data of all classes seen.",
    "floor": "Dotted grey: trained on each task's data, with no remedy against forgetting.",
}


def write_report(folder: Path, against: str | None = None) -> Path:
    """Write `report.html` into a run's folder, or into a folder that holds runs.

    Of one run it shows everything; of several it compares them. The same runs give the same bytes.

    Args:
        against: the name of a setting, as the report calls it but for its class order, or how the
            name begins: the others' gains over it are shown, over pairs of runs.

    Returns:
        The file.

    Raises:
        UserError: there is no finished run, a file of one is damaged, or no setting, or more than
            one, has such a name.
    """
    findings = find_runs(folder)
    if against is not None and len(findings.runs) == 1:
        raise UserError(f"{folder} has one run, so that there is nothing to compare it with.")
    if len(findings.runs) == 1:
        [run] = findings.runs
        title, kind, parts = run_title(run.summary), "run", run_parts(run)
    else:
        title, kind = "Comparison", "comparison"
        parts = _comparison_parts(findings, folder.resolve(), against)
    content = page(f"{title} · engram", kind, [*parts, _left_out(findings.left_out)])
    path = folder / "report.html"
    write_atomically(path, content.encode("utf-8", "replace"))
    return path


def _left_out(sentences: Sequence[str]) -> str:
    if not sentences:
        return ""
    items = "".join(f"<li>{escape(sentence)}</li>" for sentence in sentences)
    return section("Left out", f"<ul>{items}</ul>")


def _comparison_parts(findings: Findings, folder: Path, against: str | None) -> list[str]:
    """The report of several runs: the table first, then curves, then run by run."""
    runs = findings.runs
    rows = comparison_table([run.summary for run in runs])
    groups = _shown_by_stream(rows)
    titles = [method_title(method) for method in dict.fromkeys(row.method for row in rows)]
    lead = (
        f"{len(runs)} runs of {len(titles)} {'method' if len(titles) == 1 else 'methods'} "
        f"\N{EN DASH} {'; '.join(titles)}. Only seeds are averaged: ± is the sample standard "
        "deviation over them, and a single run has none. "
        "Accuracies are in percent, over all classes seen, by the decision rule that counts."
    )
    return [
        page_header("comparison", _title(rows), lead),
        section("Comparison", _comparison(groups)),
        "" if against is None else _gain_section(groups, findings, against),
        section("Accuracy as classes arrive", *map(_group_figure, groups)),
        section("Runs", *(_row_part(shown, runs, folder) for group in groups for shown in group)),
    ]


@dataclass(frozen=True, slots=True)
class _Shown:
    """A row as the report shows it.

    Attributes:
        number: from 1; by it, tables lead to what there is to say of the row's runs.
        name: what tells the row from others of its stream, but for the class order.
        line: its curve. The label tells the class order too, where it has to.
    """

    number: int
    row: ComparisonRow
    name: str
    line: Line


def _shown_by_stream(rows: Sequence[ComparisonRow]) -> list[list[_Shown]]:
    """The rows of each stream with their curves.

    A label has the same colour wherever it appears.
    """
    colours: dict[str, int] = {}
    numbers = count(1)
    groups = []
    for group in by_stream(rows):
        shown = []
        for row in group:
            rivals = [other for other in group if other.method == row.method]
            name = label = _name(row, rivals)
            if len({other.orders for other in rivals}) > 1:
                label += f" · order {_orders(row)}"
            shown.append(_Shown(next(numbers), row, name, _line(row, label, colours)))
        groups.append(shown)
    return groups


def _title(rows: Sequence[ComparisonRow]) -> str:
    methods = list(dict.fromkeys(row.method for row in rows))
    streams = list(dict.fromkeys(row.stream for row in rows))
    subject = ", ".join(methods) if len(methods) <= 4 else f"{len(methods)} methods"
    place = streams[0] if len(streams) == 1 else f"{len(streams)} streams"
    return f"{subject} on {place}"


def _name(row: ComparisonRow, rivals: Sequence[ComparisonRow]) -> str:
    """The method, and what but for the class order tells a row from others of the method."""
    parts = [row.method]
    if len({other.preset for other in rivals}) > 1:
        parts.append(row.preset)
    if len({other.budget for other in rivals}) > 1:
        parts.append(row.budget)
    if len({other.codec for other in rivals}) > 1:
        parts.append(row.codec)
    if len({other.changed for other in rivals}) > 1:
        parts += row.differences
    if starts_differ(rivals):
        parts.append(f"from {row.start}")
    return " · ".join(parts)


def _orders(row: ComparisonRow) -> str:
    return ", ".join(row.orders)


def _line(row: ComparisonRow, label: str, colours: dict[str, int]) -> Line:
    """A row's curve: the mean over its seeds in a band from the lowest to the highest.

    Args:
        colours: of labels; one that is new takes the next.
    """
    bound = bound_of(row.method, row.memory_bytes)
    colour = 0 if bound else colours.setdefault(label, len(colours))
    several = len(row.accuracies) > 1
    values = list(zip(*row.accuracies, strict=True))
    return Line(
        label=label,
        style=bound or series_style(colour),
        marker=MARKERS[colour % len(MARKERS)],
        x=list(accumulate(row.task_sizes)),
        y=[statistics.fmean(task) for task in values],
        low=[min(task) for task in values] if several else (),
        high=[max(task) for task in values] if several else (),
    )


def _comparison(groups: Sequence[Sequence[_Shown]]) -> str:
    rows = [shown.row for group in groups for shown in group]
    apart = starts_differ(rows)
    header = (
        "Method",
        *(("Starts from",) if apart else ()),
        "Memory budget",
        "Seeds and class order",
        "Average incremental",
        "Without first task",
        "Last",
        "Forgetting",
        "Backward transfer",
        "Memory held",
        "Memory and parameters",
        "Kept to learn on",
        "Parameters",
        "Time",
    )
    spread = any(row.average.deviation is not None for row in rows)
    markup = []
    for group in groups:
        markup.append(
            f'<tr class="group"><th scope="colgroup" colspan="{len(header)}">'
            f"{_place(group[0].row)}</th></tr>"
        )
        markup += [_comparison_row(shown, start=apart) for shown in group]
    texts = range(4 if apart else 3)
    return table(header, markup, texts=texts, kind="spread" if spread else "")


def _place(row: ComparisonRow) -> str:
    return escape(f"{row.stream}, {EVALUATIONS.get(row.evaluate_on, row.evaluate_on)}")


def _comparison_row(shown: _Shown, *, start: bool) -> str:
    row = shown.row
    estimates = (
        row.average,
        row.average_without_first_task,
        row.last,
        row.forgetting,
        row.backward_transfer,
    )
    numbers = [
        *(_estimate(estimate) for estimate in estimates),
        format_bytes(row.memory_bytes),
        format_bytes(row.total_bytes),
        format_bytes(row.kept_bytes),
        format_count(row.parameters),
        format_seconds(row.seconds),
    ]
    seeds = f'{", ".join(map(str, row.seeds))} <span class="task">n = {len(row.seeds)}</span>'
    return (
        f"<tr>{_heading(shown)}"
        + (f"<td>{escape(row.start)}</td>" if start else "")
        + f"{_budget_cell(row)}<td>{seeds}<small>{escape(_orders(row))}</small></td>"
        f"{number_cells(numbers)}</tr>"
    )


def _heading(shown: _Shown) -> str:
    """What a row of a table begins with."""
    return (
        f'<th scope="row">{swatch(shown.line)}'
        f'<a href="#row-{shown.number}">{escape(shown.row.method)}</a>'
        f"<small>{escape(shown.row.preset_and_changes)}</small></th>"
    )


def _budget_cell(row: ComparisonRow) -> str:
    return f"<td>{escape(row.budget)}<small>{escape(row.codec)}</small></td>"


def _gain_section(groups: Sequence[Sequence[_Shown]], findings: Findings, against: str) -> str:
    """What other settings gain over one, on every stream that has it.

    Raises:
        UserError: no setting has such a name, or several on one stream.
    """
    parts = []
    for group in groups:
        base = _fitting([shown.name for shown in group], against)
        if base is not None:
            parts += [
                f"<h3>{_place(group[0].row)}: over {escape(base)}</h3>",
                _gain_table(group, findings, base),
            ]
    if not parts:
        there = dict.fromkeys(shown.name for group in groups for shown in group)
        raise UserError(f'No setting begins with "{against}". There are: {"; ".join(there)}.')
    explained = (
        "Differences in points, over pairs of runs with the same seed, class order and precision: "
        "their mean with its 95 % confidence interval by Student's t, bold where it excludes zero. "
        "One pair has no interval, and among many rows some exclude zero by chance. Left out are "
        "settings from other starting weights, or with no such pairs. Settings that differ in "
        "nothing but the precision are compared across it."
    )
    return section("Gains", paragraph(explained), *parts)


def _fitting(names: Sequence[str], text: str) -> str | None:
    """The name that is `text`, or else the only one that begins so; None where none does.

    Raises:
        UserError: several do.
    """
    fitting = list(dict.fromkeys(name for name in names if name.startswith(text)))
    if len(fitting) > 1 and text not in fitting:
        raise UserError(f'Several settings begin with "{text}": {"; ".join(fitting)}.')
    return text if text in fitting else next(iter(fitting), None)


def _gain_table(group: Sequence[_Shown], findings: Findings, base: str) -> str:
    """A row for every setting that shares runs with the base."""
    summaries = [run.summary for run in findings.runs]
    by_name: dict[str, list[_Shown]] = {}
    for shown in group:
        by_name.setdefault(shown.name, []).append(shown)
    base_rows = [shown.row for shown in by_name.pop(base)]
    markup = []
    for alike in by_name.values():
        first = alike[0].row
        if first.start != base_rows[0].start:
            continue
        rows = [shown.row for shown in alike]
        average, last = (
            gains(summaries, rows, base_rows, measure)
            for measure in ("average_incremental_accuracy", "last_accuracy")
        )
        if not average:
            continue
        cells = [str(len(average)), _gain(average), _gain(last)]
        markup.append(f"<tr>{_heading(alike[0])}{_budget_cell(first)}{number_cells(cells)}</tr>")
    if not markup:
        return paragraph("No other setting has seed, class order and precision in common with it.")
    header = ("Method", "Memory budget", "Pairs", "Average incremental", "Last")
    return table(header, markup, texts=range(2))


def _gain(differences: Sequence[float]) -> str:
    """The mean and its interval."""
    gain = Gain.of(differences)
    return f"<strong>{gain}</strong>" if gain.is_clear else str(gain)


def _estimate(estimate: Estimate | None) -> str:
    """Mean and deviation in two columns of their own, so that both align."""
    if estimate is None:
        return f'<span class="mean">{ABSENT}</span><span class="deviation"></span>'
    spread = "" if estimate.deviation is None else f"± {estimate.deviation:.2f}"
    mean = format_number(estimate.mean)
    return f'<span class="mean">{mean}</span><span class="deviation">{spread}</span>'


def _group_figure(group: Sequence[_Shown]) -> str:
    """The curves on one stream."""
    rows, lines = [shown.row for shown in group], [shown.line for shown in group]
    orders = {row.orders for row in rows}
    remarks = [
        "Bands go from the lowest to the highest seed." if any(line.low for line in lines) else "",
        *(text for bound, text in BOUNDS.items() if any(line.style == bound for line in lines)),
        "The lines do not all share their class orders; see the table." if len(orders) > 1 else "",
        "Lines that start from different weights do not compare methods; see the table."
        if starts_differ(rows)
        else "",
    ]
    caption = " ".join(filter(None, ["The key gives accuracy after the last task.", *remarks]))
    picture = figure(accuracy_chart(lines), legend(lines), caption)
    return f"<h3>{_place(rows[0])}</h3>\n{picture}"


def _row_part(shown: _Shown, runs: Sequence[FoundRun], folder: Path) -> str:
    """What there is to say of each run of a row, folded away."""
    row = shown.row
    circumstances = (
        f"Preset {row.preset_and_changes}, from {row.start}; memory budget {row.budget}, codec "
        f"{row.codec}; decision rule {row.classifier}; class order {_orders(row)}."
    )
    details = [
        f"<details><summary>Seed {run.summary['seed']}: "
        f"{run.summary['average_incremental_accuracy']:.2f} % on average, "
        f"{run.summary['last_accuracy']:.2f} % at the end</summary>\n"
        f"{_source(run, folder)}\n{task_table(run)}\n{facts(run.summary)}</details>"
        for run in (runs[position] for position in row.runs)
    ]
    return (
        f'<article id="row-{shown.number}">\n<h3>{escape(shown.line.label)} '
        f'<span class="task">{_place(row)}</span></h3>\n'
        f"{paragraph(circumstances)}\n{chr(10).join(details)}\n</article>"
    )


def _source(run: FoundRun, folder: Path) -> str:
    """The run's name, which leads to its own report where that lies beside this one."""
    own = run.folder and run.folder / "report.html"
    if own is None or not own.exists():
        return paragraph(run.name, "source")
    place = quote(own.relative_to(folder).as_posix())
    return f'<p class="source"><a href="{place}">{escape(run.name)}</a></p>'
