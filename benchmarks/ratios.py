"""What benchmarks share: functions timed in turn, and what they find kept for the documentation."""

from __future__ import annotations

import json
import statistics
import time
from argparse import ArgumentParser
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from engram.results.record import environment


def seconds(function: Callable[[], object]) -> float:
    """What one call takes; on a GPU, of a function that waits for it."""
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


def alternate(functions: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each function, which take turns, so that a machine that slows down slows all of
    them; one call of each beforehand is not counted."""
    for function in functions.values():
        function()
    found: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            found[name].append(seconds(function))
    return found


def medians(times: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """The median of each function's times."""
    return {name: statistics.median(each) for name, each in times.items()}


def median_ratio(times: Sequence[float], baseline: Sequence[float]) -> float:
    """The median of the ratios within each round."""
    return statistics.median(one / other for one, other in zip(times, baseline, strict=True))


@dataclass(frozen=True)
class Ratio:
    """How ours compares with a baseline that was measured in the same run.

    Attributes:
        what: speed, of which more is better, or time, of which less is.
        baseline: what it is divided by.
        wanted: what the ratio should be.
        device: on which both were measured.
        precision: of ours; of the baseline too, unless it says another.
    """

    what: str
    baseline: str
    value: float
    wanted: str
    device: str = "cpu"
    precision: str = "fp32"


def add_option(parser: ArgumentParser) -> None:
    """Where to keep the ratios: `options.ratios`."""
    parser.add_argument("--ratios", type=Path, help="a JSON file to keep the ratios in too")


def publish(ratios: Sequence[Ratio], path: Path | None) -> None:
    """Print ratios, and put them into a file, where they replace older ones of the same things on
    the same device."""
    for ratio in ratios:
        print(
            f"{ratio.what} / {ratio.baseline}: {ratio.value:.3f} (wanted: {ratio.wanted}), "
            f"{ratio.precision} on {ratio.device}"
        )
    if path is None:
        return
    kept = json.loads(path.read_text())["ratios"] if path.exists() else []
    rows = {(row["what"], row["baseline"], row["device"]): row for row in kept}
    for ratio in ratios:
        row = {**asdict(ratio), "value": round(ratio.value, 3), "environment": environment()}
        rows[ratio.what, ratio.baseline, ratio.device] = row
    path.write_text(json.dumps({"ratios": list(rows.values())}, indent=2) + "\n")


def write_report(path: Path | None, content: Mapping[str, Any]) -> None:
    """Write what a benchmark found as JSON, with where it was found; nothing without a path."""
    if path is not None:
        path.write_text(json.dumps({**content, "environment": environment()}, indent=2) + "\n")
