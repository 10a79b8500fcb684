"""The model folder: a version after every `learn`, of which one is current.

| file                     | holds                                                             |
|--------------------------|-------------------------------------------------------------------|
| current                  | the number of the version in use                                  |
| versions/0003/           | a version: appears whole or not at all, and never changes         |
| .../version.json         | what was learnt, how, and what became of each class's accuracy    |
| .../learner/             | weights and exemplars, and what the next task starts from         |
| .../holdout.safetensors  | images set aside to measure forgetting, as bytes                  |
| .../seen.safetensors     | checksums of all images that were learnt from or set aside        |
| .../README.md            | the model card                                                    |
"""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from engram.config import Precision, as_mapping, from_mapping
from engram.errors import NotThereError, UserError
from engram.files import held, write_atomically
from engram.results.formats import several
from engram.results.outcomes import Change, mean_forgetting

__all__ = ["BusyError", "MadeWith", "ModelFolder", "VersionFacts", "check_keep"]

FORMAT = 4

PARTIAL = ".partial"


class BusyError(UserError):
    """Another process is changing the model folder."""


def check_keep(keep: int | None) -> None:
    """Refuse to keep fewer than one version.

    Raises:
        UserError: that is what is asked for.
    """
    if keep is not None and keep < 1:
        raise UserError(f"At least one version must be kept, not {keep}.")


@dataclass(frozen=True, kw_only=True, slots=True)
class MadeWith:
    """The arguments of a version's `Learner`, its method by name and by settings, and the names of
    its classes."""

    method: str
    preset: str
    budget: str
    codec: str
    image_size: int
    holdout: float
    seed: int
    device: str
    precision: Precision
    settings: Mapping[str, Any]
    classes: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class VersionFacts:
    """What a version tells of itself.

    Attributes:
        number: given by `ModelFolder.add`.
        parent: the version it was learnt from; None of a first one.
        created: given by `ModelFolder.add`.
        source: where its images came from; empty where that was not told.
        seconds: that learning took.
        exemplars: images that are kept.
        bytes: of these and of the images set aside.
        changes: accuracy on each class before and after.
        skipped: pictures that could not be read, a line each.
        learner: what it takes to make its learner again.
    """

    number: int = 0
    parent: int | None = None
    created: str = ""
    source: str
    seconds: float
    exemplars: int
    bytes: int
    changes: tuple[Change, ...]
    skipped: tuple[str, ...]
    learner: MadeWith

    @property
    def forgetting(self) -> float | None:
        """See `mean_forgetting`."""
        return mean_forgetting(self.changes)


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
        path, there = self.folder / "current", self.numbers()
        if not path.exists() and len(there) < 2:
            # Whoever wrote the only one may have been stopped just before it was pointed to.
            return there[0] if there else None
        try:
            number = int(path.read_text())
        except FileNotFoundError as error:
            raise self._nothing_current(f"There is no {path}") from error
        except ValueError as error:
            raise self._nothing_current(f"{path} holds no number") from error
        if number not in there:
            raise self._nothing_current(f"{path} names version {number}, which is not there")
        return number

    def _nothing_current(self, reason: str) -> UserError:
        there = self.numbers()
        choice = f" Choose one: engram rollback {self.folder} {there[-1]}" if there else ""
        return UserError(f"{reason}. Present: {', '.join(map(str, there)) or 'none'}.{choice}")

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
        busy = BusyError(f"Another process is changing {self.folder}. Try again when it is done.")
        with ExitStack() as afterwards, held(self.folder / ".lock", busy):
            try:
                yield
            finally:
                if not self.numbers():
                    afterwards.callback(self._leave_nothing_behind)
                    self._sweep()

    def _leave_nothing_behind(self) -> None:
        """Remove the folder where nothing came of what should have been its first version."""
        (self.folder / ".lock").unlink(missing_ok=True)
        for folder in (self.folder / "versions", self.folder):
            with suppress(OSError):  # there is something else in it, or it was never made
                folder.rmdir()

    def chosen(self, number: int | None = None) -> int:
        """The number that is meant: the current version's where none is given.

        Raises:
            NotThereError: there is no such version.
            UserError: there is none at all.
        """
        found = self.current if number is None else number
        if found is None:
            raise self.absence()
        if found not in self.numbers():
            raise NotThereError(
                f"{self.folder} has no version {found!r}. Present: "
                f"{', '.join(map(str, self.numbers())) or 'none'}."
            )
        return found

    def absence(self) -> UserError:
        """The error where a model is needed and there is none."""
        return UserError(
            f"There is no model in {self.folder}. Learn one: engram learn FOLDER --into "
            f"{self.folder}"
        )

    def pack(self, number: int, file: IO[bytes]) -> None:
        """Write a model folder that holds one version alone, as ZIP.

        Raises:
            UserError: there is no such version.
        """
        version = self.path(self.chosen(number))
        name = self.folder.resolve().name
        with zipfile.ZipFile(file, "w", strict_timestamps=False) as archive:
            archive.writestr(f"{name}/current", _pointer(number))
            for path in sorted(version.rglob("*")):
                archive.write(path, Path(name, path.relative_to(self.folder)))

    def disk_bytes(self, number: int) -> int:
        """What the files of a version take; 0 if it is being removed."""
        try:
            files = [path for path in self.path(number).rglob("*") if path.is_file()]
            return sum(path.stat().st_size for path in files)
        except FileNotFoundError:
            return 0

    def facts(self, number: int) -> VersionFacts:
        """What a version tells of itself.

        Raises:
            UserError: there is no such version, or it cannot be read.
        """
        path = self.path(self.chosen(number)) / "version.json"
        try:
            written = dict(json.loads(path.read_text()))
        except (OSError, ValueError, TypeError) as error:
            raise UserError(f"{path} cannot be read. {self._way_out(number)}") from error
        if (found := written.pop("format", None)) != FORMAT:
            raise UserError(f"{path} has format {found}; this engram reads {FORMAT}.")
        with self.reading(number):
            return from_mapping(VersionFacts, written, str(path))

    @contextmanager
    def reading(self, number: int) -> Iterator[None]:
        """Read the files of a version: what is wrong with them is told with the way out.

        Raises:
            UserError: something was.
        """
        try:
            yield
        except UserError as error:
            raise UserError(f"{error} {self._way_out(number)}") from error

    def _way_out(self, number: int) -> str:
        """What to do when a version is damaged."""
        others = [one for one in self.numbers() if one != number]
        if not others:
            return "No other version is there: learn the pictures anew, into another folder."
        nearest = max((one for one in others if one < number), default=others[0])
        return f"Another version may be whole: engram rollback {self.folder} {nearest}"

    def add(
        self,
        write: Callable[[Path], None],
        facts: VersionFacts,
        *,
        keep: int | None = None,
    ) -> int:
        """Make what `write` puts into a folder the current version.

        Args:
            facts: what the version tells of itself.
            keep: the most versions that stay: the new one, the one it was learnt from, and the
                newest of the others.

        Returns:
            The new version's number.

        Raises:
            UserError: fewer than one version should be kept.
        """
        check_keep(keep)
        number = max(self.numbers(), default=0) + 1
        partial = self.path(number).with_suffix(PARTIAL)
        self._sweep()
        facts = replace(
            facts,
            number=number,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
        )
        try:
            partial.mkdir(parents=True)
            write(partial)
            written = {"format": FORMAT, **as_mapping(facts)}
            write_atomically(partial / "version.json", json.dumps(written, indent=2).encode())
            write_atomically(partial / "README.md", _card(facts).encode())
        except BaseException:
            # A disk that is full would stay so.
            self._sweep()
            raise
        partial.rename(self.path(number))
        self._point_to(number)
        if keep is not None:
            self._remove_all_but(keep, facts)
        return number

    def _sweep(self) -> None:
        """Remove what was not written or not removed to its end."""
        for path in (self.folder / "versions").glob(f"[0-9]*{PARTIAL}"):
            shutil.rmtree(path)

    def rollback(self, number: int) -> None:
        """Make an earlier version the current one. The others stay where they are.

        Raises:
            UserError: there is no such version, or it cannot be read.
        """
        self.facts(number)
        self._point_to(number)

    def _point_to(self, number: int) -> None:
        write_atomically(self.folder / "current", _pointer(number).encode())

    def _remove_all_but(self, keep: int, newest: VersionFacts) -> None:
        dear = (newest.parent, newest.number)
        for number in sorted(self.numbers(), key=lambda one: (one in dear, one))[:-keep]:
            # So that it is gone at once, whatever happens while its files are removed.
            self.path(number).rename(self.path(number).with_suffix(PARTIAL))
        self._sweep()

    def made_from(self, source: str) -> int | None:
        """The version that was learnt from `source`, if there is one; the newest of several.

        It becomes the current one if whoever wrote it was stopped just before that.
        """
        for number in reversed(self.numbers()):
            facts = self._facts_if_whole(number)
            if facts is not None and facts.source == source:
                if self.current == facts.parent:
                    self._point_to(number)
                return number
        return None

    def history(self) -> dict[int, VersionFacts | None]:
        """What all versions tell of themselves, by number, oldest first; None of a damaged one."""
        return {number: self._facts_if_whole(number) for number in self.numbers()}

    def _facts_if_whole(self, number: int) -> VersionFacts | None:
        try:
            return self.facts(number)
        except UserError:
            return None


def _pointer(number: int) -> str:
    """What the file `current` holds."""
    return f"{number}\n"


def _card(facts: VersionFacts) -> str:
    """The model card: what the version can do and what it was made with."""
    learner = facts.learner
    rows = "".join(
        f"| {_cell(change.name)} | {_percent(change.before)} | {_percent(change.after)} "
        f"| {change.images} |\n"
        for change in facts.changes
    )
    known = several(len(learner.classes), "class", "classes")
    return (
        f"# Version {facts.number}: {known} of images\n\n"
        f"Learnt with {learner.method} (engram), from pictures brought to "
        f"{learner.image_size} x {learner.image_size} pixels, on {facts.created}. "
        f"Exemplars: {facts.exemplars}, in {facts.bytes:,} bytes "
        f"({learner.codec}, budget {learner.budget}).\n\n"
        "It knows these classes and no others: a picture of something else is called by the name "
        "of one of them. Accuracy was measured on the few images of each class that were set aside "
        "or given for that, and says little about other kinds of pictures.\n\n"
        "| Class | Before, % | After, % | Images |\n|---|---:|---:|---:|\n" + rows
    )


def _cell(name: str) -> str:
    return " ".join(name.split()).replace("|", "\\|")


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"
