"""The model folder: a version after every `learn`, of which one is current.

| file                     | holds                                                             |
|--------------------------|-------------------------------------------------------------------|
| current                  | the number of the version in use                                  |
| versions/0003/           | a version: appears whole or not at all, and never changes         |
| .../version.json         | what was learnt, how, and what became of each class's accuracy    |
| .../weights.safetensors  | everything learnt, with what next tasks start from                |
| .../memory.safetensors   | exemplars, as bytes                                               |
| .../holdout.safetensors  | images set aside to measure forgetting, as bytes                  |
| .../README.md            | the model card                                                    |
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from engram.api import Learner
from engram.errors import UserError
from engram.files import write_atomically

__all__ = ["BusyError", "ModelFolder", "load", "save"]

FORMAT = 1


class BusyError(UserError):
    """Another process is changing the model folder."""


class ModelFolder:
    """A model with its history, in a folder.

    Whatever happens while a version is written, the one before stays current and whole.

    Args:
        folder: need not exist before the first version is added.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def current(self) -> int | None:
        """The number of the version in use; None before there is one.

        Raises:
            UserError: the folder is damaged.
        """
        path = self.folder / "current"
        if not path.exists():
            return None
        try:
            number = int(path.read_text())
        except ValueError as error:
            raise UserError(f"{path} holds no number. Write that of a version there.") from error
        if number not in self.numbers():
            raise UserError(
                f"{path} names version {number}, which is not there. Present: "
                f"{', '.join(map(str, self.numbers())) or 'none'}."
            )
        return number

    def numbers(self) -> list[int]:
        """Of all versions that are there, oldest first."""
        found = (self.folder / "versions").glob("[0-9]*")
        return sorted(int(path.name) for path in found if path.name.isdecimal())

    def path(self, number: int) -> Path:
        """The folder of a version."""
        return self.folder / "versions" / f"{number:04d}"

    @contextmanager
    def changing(self) -> Iterator[None]:
        """Be the only one who changes the model.

        Raises:
            BusyError: somebody else does.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.folder / ".lock")
        try:
            lock.acquire(timeout=0)
        except Timeout as error:
            raise BusyError(
                f"Another process is changing {self.folder}. Try again when it is done."
            ) from error
        with lock:
            yield

    def load(self, number: int | None = None, *, device: str = "auto") -> Learner:
        """A version, the current one where no number is given.

        Raises:
            UserError: there is none, or it is damaged.
        """
        chosen = self.current if number is None else number
        if chosen is None:
            raise UserError(f"There is no model in {self.folder}. Learn one: engram learn FOLDER.")
        return Learner.from_state(self.path(chosen), self.facts(chosen)["learner"], device=device)

    def facts(self, number: int) -> dict[str, Any]:
        """What a version tells of itself.

        Raises:
            UserError: there is no such version, or it cannot be read.
        """
        path = self.path(number) / "version.json"
        if number not in self.numbers():
            raise UserError(
                f"{self.folder} has no version {number}. Present: "
                f"{', '.join(map(str, self.numbers())) or 'none'}."
            )
        try:
            facts: dict[str, Any] = json.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise UserError(f"{path} cannot be read. Roll back to another version.") from error
        if facts.get("format") != FORMAT:
            raise UserError(f"{path} has format {facts.get('format')}; this engram reads {FORMAT}.")
        return facts

    def add(self, learner: Learner, *, keep: int | None = None) -> int:
        """Make what a learner knows the current version.

        Args:
            keep: the most versions that stay; older ones are removed, the current one never.

        Returns:
            The new version's number.

        Raises:
            UserError: nothing was learnt yet, or fewer than one version should be kept.
        """
        if keep is not None and keep < 1:
            raise UserError(f"At least one version must be kept, not {keep}.")
        number = max(self.numbers(), default=0) + 1
        partial = self.folder / "versions" / f"{number:04d}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        partial.parent.mkdir(parents=True, exist_ok=True)
        learner.save_state(partial)
        facts = self._facts_of(learner, number)
        write_atomically(partial / "version.json", json.dumps(facts, indent=2).encode())
        write_atomically(partial / "README.md", _card(facts).encode())
        partial.rename(self.path(number))
        self._point_to(number)
        self._remove_old(keep)
        return number

    def _facts_of(self, learner: Learner, number: int) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "number": number,
            "parent": self.current,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "seconds": round(learner.seconds_, 1),
            "exemplars": len(learner.memory),
            "bytes": learner.nbytes,
            "changes": [asdict(change) for change in learner.changes_],
            "skipped": list(learner.skipped_),
            "learner": learner.as_mapping(),
        }

    def rollback(self, number: int) -> None:
        """Make an earlier version the current one. The others stay where they are.

        Raises:
            UserError: there is no such version.
        """
        self.facts(number)
        self._point_to(number)

    def _point_to(self, number: int) -> None:
        write_atomically(self.folder / "current", f"{number}\n".encode())

    def _remove_old(self, keep: int | None) -> None:
        if keep is not None:
            old = [number for number in self.numbers() if number != self.current]
            for number in old[: max(0, len(old) + 1 - keep)]:
                shutil.rmtree(self.path(number))

    def history(self) -> list[dict[str, Any]]:
        """What all versions tell of themselves, oldest first."""
        return [self.facts(number) for number in self.numbers()]


def load(folder: str | Path, version: int | None = None, *, device: str = "auto") -> Learner:
    """The model in a folder, as it is now or was at a version.

    Raises:
        UserError: there is none, or it is damaged.
    """
    return ModelFolder(Path(folder)).load(version, device=device)


def save(learner: Learner, folder: str | Path) -> int:
    """Make what a learner knows the next version of the model in a folder; the version's number.

    Raises:
        BusyError: another process is changing the model.
        UserError: nothing was learnt yet.
    """
    model = ModelFolder(Path(folder))
    with model.changing():
        return model.add(learner)


def _card(facts: Mapping[str, Any]) -> str:
    """The model card: what the version can do and what it was made with."""
    learner = facts["learner"]
    rows = "".join(
        f"| {change['name']} | {_percent(change['before'])} | {_percent(change['after'])} "
        f"| {change['images']} |\n"
        for change in facts["changes"]
    )
    return (
        f"# Version {facts['number']}: {len(learner['classes'])} classes of images\n\n"
        f"Learnt with {learner['method']} (engram), from pictures brought to "
        f"{learner['image_size']} x {learner['image_size']} pixels, on {facts['created']}. "
        f"{facts['exemplars']} exemplars are kept in {facts['bytes']:,} bytes "
        f"({learner['codec']}, budget {learner['budget']}).\n\n"
        "It knows these classes and no others: a picture of something else is called by the name "
        "of one of them. Accuracy was measured on the few images of each class that were set aside "
        "or given for that, and says little about other kinds of pictures.\n\n"
        "| Class | Before, % | After, % | Images |\n|---|---:|---:|---:|\n" + rows
    )


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"
