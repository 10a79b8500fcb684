"""The ratios that benchmarks find: printed, and kept for the documentation."""

from __future__ import annotations

import json
from argparse import ArgumentParser
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from engram.results.record import environment


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
