"""The folder of a run: what was asked, on what machine, and what came out.

| file              | holds                                                         |
|-------------------|---------------------------------------------------------------|
| config.yaml       | the resolved configuration                                    |
| data.sha256       | of the names and sizes of photographs that are learnt         |
| environment.json  | versions, machine, threads; a list, if it went on elsewhere   |
| metrics.jsonl     | a line for every epoch, twice if it had to be run once more   |
| tasks/NN.json     | results after each task                                       |
| accuracy.csv      | the accuracy matrix, a row a task                             |
| confusion.csv     | true classes by predicted ones, after the last task           |
| originals.*       | what the best exemplars of the last task were made of         |
| summary.json      | everything that is published of the run; written at its end   |
| model/task-NN     | the learner after its last finished task, or after every one  |
"""

from __future__ import annotations

import csv
import io
import json
import os
import platform
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from engram.config import as_mapping, difference, read_yaml, to_yaml
from engram.data.images import ImageSet
from engram.errors import UserError
from engram.files import held, load_tensors, save_tensors, write_atomically
from engram.results.found import read_summary

__all__ = ["OccupiedError", "RunRecord", "commit", "environment", "other_commit"]

ORIGINALS = "originals.safetensors"
DATA = "data.sha256"

PACKAGES = ("engram", "torch", "numpy", "pillow", "safetensors")


class OccupiedError(UserError):
    """Another process is at work in a run's folder."""


class RunRecord:
    """Writes and reads the folder of one run.

    Args:
        folder: made by `open`.
        data: a checksum of what the run learns, where that may change.
    """

    def __init__(self, folder: Path, data: str | None = None) -> None:
        self.folder = folder
        self.data = data

    def matches(self, config: Any) -> bool:
        """Whether the folder holds a run of `config`, a dataclass; False where there is no folder.

        Raises:
            UserError: it holds something else.
        """
        path = self.folder / "config.yaml"
        if not path.exists():
            if any(not _transient(found) for found in self.folder.glob("*")):
                raise UserError(f"{self.folder} is not empty and not a run. Choose another --out.")
            return False
        if other := difference(read_yaml(path), config):
            raise UserError(
                f"{self.folder} belongs to another configuration: {other.name} is {other.there} "
                f"there and {other.here} here. Choose another --out, or remove the folder."
            )
        written = self.folder / DATA
        if self.data and written.exists() and written.read_text().strip() != self.data:
            raise UserError(
                f"{self.folder} is a run on other photographs than are there now: files came, went "
                "or changed since it began. Choose another --out, or remove the folder."
            )
        return True

    @contextmanager
    def open(self, config: Any) -> Iterator[None]:
        """Work in the folder, alone; it is made for `config` where it does not exist yet.

        Raises:
            OccupiedError: another process is at work there.
            UserError: it holds something else.
        """
        exists = self.matches(config)
        self.folder.mkdir(parents=True, exist_ok=True)
        occupied = OccupiedError(f"Another process is at work in {self.folder}.")
        with held(self.folder / ".lock", occupied):
            if not exists:
                self._write("config.yaml", to_yaml(as_mapping(config)))
            if self.data is not None:
                self._write(DATA, f"{self.data}\n")
            (self.folder / "tasks").mkdir(exist_ok=True)
            self._note_environment()
            yield

    def _note_environment(self) -> None:
        """Add this process's environment, unless the run has been in the same one before."""
        path = self.folder / "environment.json"
        known = _read_json(path, list) if path.exists() else []
        if (here := environment()) not in known:
            self._write("environment.json", json.dumps([*known, here], indent=2))

    def environment(self) -> dict[str, Any]:
        """Where the run was begun, and under `later` where it went on if that was elsewhere."""
        begun, *later = _read_json(self.folder / "environment.json", list)
        return {**begun, "later": later} if later else begun

    def finished(self, config: Any) -> dict[str, Any] | None:
        """The summary of a finished run of `config`, or None.

        Raises:
            UserError: the folder holds something else.
        """
        return self.summary() if self.matches(config) else None

    def summary(self) -> dict[str, Any] | None:
        """The summary of a finished run, or None.

        Raises:
            UserError: it is damaged.
        """
        path = self.folder / "summary.json"
        if not path.exists():
            return None
        found = read_summary(path)
        return None if found is None else dict(found)

    def add_epoch(self, report: Mapping[str, Any]) -> None:
        """Record what came out of an epoch."""
        with (self.folder / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(dict(report)) + "\n")

    def add_task(self, index: int, results: Mapping[str, Any]) -> None:
        """Record what came out of a task; a task learnt again replaces what was there."""
        self._write(f"tasks/{index:02d}.json", json.dumps(dict(results)))

    def tasks(self, count: int) -> list[dict[str, Any]]:
        """The results of the first `count` tasks.

        Raises:
            UserError: those of one are not there, or damaged.
        """
        paths = [self.folder / f"tasks/{index:02d}.json" for index in range(count)]
        return [_read_json(path, dict) for path in paths]

    def add_originals(self, images: ImageSet) -> None:
        """Record what exemplars of the task were made of, in place of an earlier task's."""
        tensors = {"pixels": images.pixels, "labels": images.labels}
        save_tensors(self.folder / ORIGINALS, tensors, {})

    def originals(self) -> ImageSet | None:
        """What exemplars of the last task were made of; None where that is not recorded.

        Raises:
            UserError: the file is damaged.
        """
        if not (self.folder / ORIGINALS).exists():
            return None
        tensors, _ = load_tensors(self.folder / ORIGINALS)
        return ImageSet(tensors["pixels"], tensors["labels"])

    def learner(self, task: int) -> Path:
        """The folder of the learner that is saved after a task, counted from 0."""
        return self.folder / f"model/task-{task:02d}"

    def learners(self) -> dict[int, Path]:
        """The folders of saved learners, whole ones only, by their task from 0; oldest first."""
        saved = (self.folder / "model").glob("task-*")
        found = {path.name.removeprefix("task-"): path for path in saved}
        return {int(task): found[task] for task in sorted(filter(str.isdecimal, found), key=int)}

    def finish(
        self,
        summary: Mapping[str, Any],
        class_names: Sequence[str],
        confusion: Sequence[Sequence[int]],
    ) -> None:
        """Write the tables and, last of all, the summary."""
        matrix = summary["accuracy_matrix"]
        header = ["after task", *(f"task {index + 1}" for index in range(len(matrix)))]
        rows = [[index + 1, *row] for index, row in enumerate(matrix)]
        self._write("accuracy.csv", _csv([header, *rows]))
        table = [[name, *row] for name, row in zip(class_names, confusion, strict=True)]
        self._write("confusion.csv", _csv([["true class", *class_names], *table]))
        self._write("summary.json", json.dumps(dict(summary), indent=2) + "\n")

    def _write(self, name: str, text: str) -> None:
        write_atomically(self.folder / name, text.encode())


def _read_json(path: Path, kind: type[Any]) -> Any:
    """What a JSON file of a run holds.

    Raises:
        UserError: it is not there, or holds something else.
    """
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise _damaged(path) from error
    if not isinstance(found, kind):
        raise _damaged(path)
    return found


def _damaged(path: Path) -> UserError:
    return UserError(f"{path} is damaged or gone. Remove the run's folder to begin it anew.")


def _transient(path: Path) -> bool:
    """Whether a file may be left of a run that was killed before it wrote its configuration."""
    return path.name == ".lock" or path.suffix == ".partial"


def _csv(rows: Sequence[Sequence[Any]]) -> str:
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows(rows)
    return out.getvalue()


def environment() -> dict[str, Any]:
    """Versions and machine: what a result may depend on."""
    facts: dict[str, Any] = {
        "python": platform.python_version(),
        **{name: version(name) for name in PACKAGES},
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "commit": commit(),
    }
    if torch.cuda.is_available():
        facts["gpu"] = torch.cuda.get_device_name()
        facts["cuda"] = torch.version.cuda
        facts["cudnn"] = torch.backends.cudnn.version()
    return facts


def _processor() -> str:
    """The processor's name where Linux tells it."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor()


def commit() -> str | None:
    """The checkout's commit, marked where files have changed since; None when installed, be it in
    a folder that is a checkout of something else."""
    package = Path(__file__).resolve().parents[1]
    try:
        if Path(_git(package, "rev-parse", "--show-toplevel")) / "src" / "engram" != package:
            return None
        return _git(package, "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*")
    except (OSError, subprocess.CalledProcessError):
        return None


def other_commit(summary: Mapping[str, Any]) -> str | None:
    """A commit by whose code a run was done, where methods or presets here are not as they were in
    it, or that cannot be told."""
    begun = summary["environment"]
    commits = [found.get("commit") for found in (begun, *begun.get("later", ()))]
    here = commit()
    others = (there for there in commits if there and there != here and _differs(there))
    return next(others, None) if here else None


def _differs(there: str) -> bool:
    package = Path(__file__).resolve().parents[1]
    try:
        _git(package, "diff", "--quiet", there, "--", ".", ":/experiments")
    except subprocess.CalledProcessError:
        return True
    return False


def _git(folder: Path, *words: str) -> str:
    answer = subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True, check=True)
    return answer.stdout.strip()
