"""What the command line shows, progress and tables; and types of its options."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any

import tyro
from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from engram import bench
from engram.config import load_preset, presets_of
from engram.engine.fit import EpochReport
from engram.methods import METHODS
from engram.results.comparison import (
    SHORT_COLUMNS,
    by_stream,
    comparison_table,
    short_cells,
    starts_differ,
)

__all__ = [
    "LOOK",
    "OptionalFloat",
    "OptionalInteger",
    "OptionalPath",
    "OptionalText",
    "RunProgress",
    "plain_console",
    "print_comparison",
    "print_facts",
    "print_methods",
    "shown_progress",
]

OptionalText = Annotated[str | None, tyro.conf.arg(metavar="TEXT", help_behavior_hint="")]
OptionalInteger = Annotated[int | None, tyro.conf.arg(metavar="INT", help_behavior_hint="")]
OptionalFloat = Annotated[float | None, tyro.conf.arg(metavar="FLOAT", help_behavior_hint="")]
OptionalPath = Annotated[Path | None, tyro.conf.arg(metavar="PATH", help_behavior_hint="")]
"""Options that may be left out; their description says what happens then."""

LOOK: dict[str, Any] = {
    "box": None,
    "header_style": "bold",
    "padding": (0, 2, 0, 0),
    "title_justify": "left",
    "title_style": "bold",
}

METHOD_WIDTH = 14
"""Characters that a method with its settings has on a line at least, so that tables are aligned."""

RULES_SHOWN = 3
"""Decision rules whose accuracies stand in a line; of more, the one that counts."""


def plain_console() -> Console:
    """A console that shows texts as they stand: names of files and classes may have anything in
    them, brackets and colons too."""
    return Console(markup=False, emoji=False, highlight=False)


class RunProgress(bench.Progress):
    """One line of progress with the time left for all runs; a line of results for every task.

    Args:
        runs: how many there are.
    """

    def __init__(self, runs: int) -> None:
        self._runs = runs
        self._begun = 0
        self._tasks = 0
        self._share = 0.0
        self._is_open = False
        self._found_done = 0.0
        self._started = time.perf_counter()
        self._bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("{task.fields[left]}"),
            console=plain_console(),
        )
        self._line = self._bar.add_task("", total=runs, left="")

    def __enter__(self) -> RunProgress:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar.live.is_started:
            self._bar.stop()

    def begin(self, name: str, tasks: int, share: float) -> None:
        """A run begins, or goes on with `share` of its work done. Nothing is shown before."""
        self._open(name, " goes on" if share else "", tasks, share)

    def finished(self, name: str, tasks: int, commit: str | None) -> None:
        """A run was finished before; where code has changed since, its commit is told."""
        code = f" by the code of {commit}; remove its folder to do it anew" if commit else ""
        self._open(name, f" finished already{code}", tasks, 1.0)

    def _open(self, name: str, state: str, tasks: int, share: float) -> None:
        self._bar.start()
        self._begun += 1
        self._tasks = tasks
        self._is_open, self._share = True, share
        self._found_done += share
        self._bar.console.print(Text.assemble((name, "bold"), state))
        self._show("", share)

    def end(self) -> None:
        """The run is done."""
        self._is_open = False

    def skip(self, reason: str) -> None:
        """The run that has begun fails, or the next one does not begin here."""
        self._bar.start()
        self._bar.console.print(reason)
        if self._is_open:
            self._show("", 1.0)
            self.end()
        else:
            self._runs -= 1
            self._bar.update(self._line, total=self._runs)

    def epoch(self, report: EpochReport, share: float) -> None:
        """An epoch has ended."""
        place = f"task {report.task + 1}/{self._tasks}, {report.stage}"
        self._show(f"{place}, epoch {report.epoch + 1}/{report.epochs}", share)

    def task(self, index: int, results: Mapping[str, Any], share: float) -> None:
        """A task has been learnt."""
        rows = results["accuracy_seen"]
        if len(rows) > RULES_SHOWN:
            rows = {results["classifier"]: rows[results["classifier"]]}
        accuracies = "  ".join(f"{name} {accuracy:5.1f} %" for name, accuracy in rows.items())
        self._bar.console.print(
            f"  task {index + 1:2}/{self._tasks}  {results['classes']:3} classes  {accuracies}  "
            f"{results['exemplars']} exemplars"
        )
        self._show(f"task {index + 1}/{self._tasks}", share)

    def _show(self, text: str, share: float) -> None:
        # A method that trains in several stages begins each anew.
        self._share = max(self._share, share)
        done = self._begun - 1 + self._share
        self._bar.update(self._line, description=text, completed=done, left=self._left(done))

    def _left(self, done: float) -> str:
        """The time left, from the speed of what was done here and not before."""
        done_here = done - self._found_done
        if done_here <= 0 or done == self._runs:
            return ""
        seconds = (time.perf_counter() - self._started) * (self._runs - done) / done_here
        return f"{timedelta(seconds=round(seconds))} left"


@contextmanager
def shown_progress() -> Iterator[Callable[[str, float], None]]:
    """A line on a terminal that is gone at the end; it shows what is done, and its share."""
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TaskProgressColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=plain_console(), transient=True) as bar:
        line = bar.add_task("", total=1.0)

        def show(stage: str, share: float) -> None:
            if bar.tasks[0].description != stage:
                bar.reset(line, description=stage)
            bar.update(line, completed=share)

        yield show


def print_comparison(summaries: Sequence[Mapping[str, Any]]) -> None:
    """For each stream, and apart for other weights to start from, a line for every method with its
    settings; seeds are pooled."""
    for rows in by_stream(comparison_table(summaries)):
        apart = starts_differ(rows)
        for start, alike in itertools.groupby(rows, key=lambda row: row.start):
            place = f"{rows[0].stream}, {rows[0].evaluate_on} images, in %"
            table = Table(title=f"{place}; starts from {start}" if apart else place, **LOOK)
            table.add_column("method", overflow="fold", min_width=METHOD_WIDTH)
            for column in SHORT_COLUMNS:
                table.add_column(column, justify="right", overflow="fold")
            for row in alike:
                table.add_row(", ".join([row.method, *row.differences]), *short_cells(row))
            plain_console().print(table)


def print_methods() -> None:
    """The methods, their presets, and what these reach."""
    for name, kind in METHODS.items():
        table = Table(
            "preset", "stream", "reaches", title=f"{name} \N{EN DASH} {kind.title}", **LOOK
        )
        for preset in presets_of(name):
            for stream, reached in load_preset(name, preset).reaches.items():
                table.add_row(preset, stream, reached.strip())
        plain_console().print(table)


def print_facts(facts: Mapping[str, Any]) -> None:
    """Facts, each beside its name."""
    table = Table(show_header=False, **LOOK)
    for name, value in facts.items():
        table.add_row(name, str(value))
    plain_console().print(table)
