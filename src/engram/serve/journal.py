"""The server's record: pictures that wait to be learnt, and jobs.

They lie in one SQLite file in the model folder. Pictures are in it as PNG of the model's input
size, so a class's name never becomes a path, and no file is left behind.
"""

from __future__ import annotations

import json
import secrets
import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, get_args

from engram.errors import NotThereError, UserError
from engram.serve.limits import Limits
from engram.versions import BusyError

__all__ = [
    "Ending",
    "Job",
    "Journal",
    "Kind",
    "State",
    "TakenAwayError",
    "WaitingClass",
]

FORMAT = 2

LOST_WITH_IT = "pictures that wait to be learnt are lost with it, and nothing else."

Kind = Literal["learn", "rollback"]
Ending = Literal["done", "failed", "cancelled", "interrupted"]
State = Literal["running", Ending]

SCHEMA = f"""
PRAGMA auto_vacuum = INCREMENTAL;
PRAGMA journal_mode = WAL;
BEGIN IMMEDIATE;
CREATE TABLE IF NOT EXISTS job (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    kind TEXT NOT NULL CHECK (kind IN ({", ".join(map(repr, get_args(Kind)))})),
    state TEXT NOT NULL CHECK (state IN ({", ".join(map(repr, get_args(State)))})),
    created TEXT NOT NULL,
    ended TEXT,
    stage TEXT NOT NULL,
    share REAL NOT NULL DEFAULT 0,
    stage_began REAL NOT NULL,
    message TEXT NOT NULL DEFAULT '',
    version INTEGER,
    source TEXT NOT NULL,
    lessons TEXT NOT NULL DEFAULT '{{}}',
    last_picture INTEGER NOT NULL
);
CREATE UNIQUE INDEX IF NOT EXISTS one_at_a_time ON job (state) WHERE state = 'running';
CREATE TABLE IF NOT EXISTS waiting_class (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    name TEXT NOT NULL UNIQUE,
    stays INTEGER NOT NULL DEFAULT TRUE
);
CREATE TABLE IF NOT EXISTS picture (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    class INTEGER NOT NULL REFERENCES waiting_class ON DELETE CASCADE,
    checksum INTEGER NOT NULL,
    png BLOB NOT NULL,
    UNIQUE (class, checksum)
);
PRAGMA user_version = {FORMAT};
COMMIT;
"""

LEARNING = "id <= (SELECT coalesce(max(last_picture), 0) FROM job WHERE state = 'running')"
"""Which pictures are being learnt: all that were there when the job began. So beginning and ending
one touches no picture, which would be written anew."""


class TakenAwayError(Exception):
    """The job is no longer this process's: it was cancelled, or found interrupted."""


@dataclass(frozen=True, slots=True)
class WaitingClass:
    """A class whose pictures wait to be learnt; `pictures` are their numbers."""

    id: int
    name: str
    pictures: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Job:
    """Something that changes the model, or did.

    Attributes:
        stage: what it does now, or did last.
        share: of the stage that is done.
        message: why it ended as it did; empty where all is well.
        version: that came of it.
        source: by which that version is known to be this job's.
        lessons: how many pictures of each class it learns from.
        last_picture: the newest of these; 0 where it learns none.
    """

    id: int
    kind: Kind
    state: State
    created: str
    ended: str | None
    stage: str
    share: float
    stage_began: float
    message: str
    version: int | None
    source: str
    lessons: dict[str, int]
    last_picture: int

    @property
    def seconds_left(self) -> float | None:
        """Of the stage, from its speed so far; None where there is nothing to tell it from."""
        if self.state != "running" or not 0 < self.share < 1:
            return None
        return (time.time() - self.stage_began) * (1 - self.share) / self.share


class Journal:
    """The record, for any number of processes and threads.

    Args:
        folder: the model's; where there is none it is made, for its owner alone.

    Raises:
        UserError: another engram wrote the record, or it is damaged.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.path = folder / "serve.sqlite"
        # Pictures are private; the files that SQLite makes beside it get the same permissions.
        self.path.touch(mode=0o600)
        try:
            self._open()
        except sqlite3.DatabaseError as error:
            raise UserError(
                f"{self.path} cannot be used: {error}. If it is damaged, remove it: {LOST_WITH_IT}"
            ) from error

    def _open(self) -> None:
        with self._connected() as database:
            (found,) = database.execute("PRAGMA user_version").fetchone()
            if found not in (0, FORMAT):
                raise UserError(
                    f"{self.path} has format {found}; this engram reads {FORMAT}. Learn what waits "
                    f"with the engram that wrote it, then remove the file: {LOST_WITH_IT}"
                )
            if not found:
                database.executescript(SCHEMA)

    @contextmanager
    def _connected(self) -> Iterator[sqlite3.Connection]:
        with closing(sqlite3.connect(self.path, timeout=30, isolation_level=None)) as database:
            database.execute("PRAGMA foreign_keys = ON")
            # Pictures are private: what is deleted is overwritten.
            database.execute("PRAGMA secure_delete = ON")
            yield database

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """All of it is recorded, or nothing."""
        with self._connected() as database:
            database.execute("BEGIN IMMEDIATE")
            try:
                yield database
            except BaseException:
                # A full disk has ended it already; another error here would hide that one.
                if database.in_transaction:
                    database.execute("ROLLBACK")
                raise
            database.execute("COMMIT")

    # Pictures that wait.

    def waiting(self) -> list[WaitingClass]:
        """Classes in the order in which they were made, without what is being learnt."""
        with self._connected() as database:
            classes = database.execute("SELECT id, name FROM waiting_class ORDER BY id").fetchall()
            pictures: dict[int, list[int]] = {number: [] for number, _ in classes}
            for of, number in database.execute(
                f"SELECT class, id FROM picture WHERE NOT {LEARNING} ORDER BY id"
            ):
                pictures.setdefault(of, []).append(number)
        return [WaitingClass(number, name, tuple(pictures[number])) for number, name in classes]

    def add_class(self, name: str, limits: Limits) -> int:
        """Make a class, if none of that name waits; its number.

        One that is being learnt stays when that is done, to take further pictures.

        Raises:
            TooLargeError: so many others wait that there is no room.
        """
        with self._transaction() as database:
            question = "SELECT id FROM waiting_class WHERE name = ?"
            if there := database.execute(question, (name,)).fetchone():
                database.execute("UPDATE waiting_class SET stays = TRUE WHERE id = ?", there)
                return int(there[0])
            (count,) = database.execute("SELECT count(*) FROM waiting_class").fetchone()
            limits.check_classes(count)
            made = database.execute("INSERT INTO waiting_class (name) VALUES (?)", (name,))
            return _inserted(made)

    def rename_class(self, number: int, name: str) -> None:
        """Give a class another name.

        Raises:
            NotThereError: there is no such class.
            BusyError: it is being learnt.
            UserError: there is another one of that name.
        """
        with self._transaction() as database:
            _expect_not_learning(database, number)
            try:
                renamed = database.execute(
                    "UPDATE waiting_class SET name = ? WHERE id = ?", (name, number)
                )
            except sqlite3.IntegrityError as error:
                raise UserError(
                    f"Another class {name} waits already. Add the pictures to that one."
                ) from error
            _expect_one(renamed, f"There is no class {number} that waits.")

    def remove_class(self, number: int) -> None:
        """Remove a class that waits, with its pictures.

        Raises:
            NotThereError: there is no such class.
            BusyError: it is being learnt.
        """
        with self._transaction() as database:
            _expect_not_learning(database, number)
            _expect_one(
                database.execute("DELETE FROM waiting_class WHERE id = ?", (number,)),
                f"There is no class {number} that waits.",
            )

    def add_picture(self, number: int, png: bytes, checksum: int, limits: Limits) -> int:
        """Let a picture of a class wait; its number, which is the old one if it is there already.

        Raises:
            NotThereError: there is no such class.
            TooLargeError: so many others wait that there is no room.
        """
        with self._transaction() as database:
            question = "SELECT id FROM picture WHERE class = ? AND checksum = ?"
            if there := database.execute(question, (number, checksum)).fetchone():
                return int(there[0])
            taken = "SELECT count(*), coalesce(sum(length(png)), 0) FROM picture"
            limits.check_room(*database.execute(taken).fetchone())
            try:
                made = database.execute(
                    "INSERT INTO picture (class, checksum, png) VALUES (?, ?, ?)",
                    (number, checksum, png),
                )
            except sqlite3.IntegrityError as error:
                raise NotThereError(f"There is no class {number} that waits.") from error
            return _inserted(made)

    def remove_picture(self, number: int) -> None:
        """Remove a picture that waits.

        Raises:
            NotThereError: there is no such picture, or it is being learnt.
        """
        with self._transaction() as database:
            _expect_one(
                database.execute(f"DELETE FROM picture WHERE id = ? AND NOT {LEARNING}", (number,)),
                f"There is no picture {number} that waits.",
            )

    def picture(self, number: int) -> bytes:
        """A picture as PNG.

        Raises:
            NotThereError: there is no such picture.
        """
        question = "SELECT png FROM picture WHERE id = ?"
        with self._connected() as database:
            found = database.execute(question, (number,)).fetchone()
        if found is None:
            raise NotThereError(f"There is no picture {number} that waits.")
        return bytes(found[0])

    # Jobs.

    def begin_learning(self) -> int:
        """Begin a job that learns all pictures that wait; its number.

        Raises:
            BusyError: another job is running.
            UserError: nothing waits.
        """
        with self._transaction() as database:
            lessons, newest = _lessons(database)
            if not lessons:
                raise UserError("There is nothing to learn. Make a class and add pictures to it.")
            job = _begin(database, "learn", lessons, newest)
            database.execute(
                "UPDATE waiting_class SET stays = id NOT IN (SELECT class FROM picture)"
            )
            return job

    def begin_rollback(self) -> int:
        """Begin a job that makes another version the current one; its number.

        Raises:
            BusyError: another job is running.
        """
        with self._transaction() as database:
            return _begin(database, "rollback", {}, 0)

    def pictures_of(self, job: int) -> dict[str, list[bytes]]:
        """What a job learns: PNG by the names of classes."""
        found: dict[str, list[bytes]] = {}
        with self._connected() as database:
            for name, png in database.execute(
                "SELECT name, png FROM picture JOIN waiting_class ON class = waiting_class.id "
                "WHERE picture.id <= ? ORDER BY waiting_class.id, picture.id",
                (self.job(job).last_picture,),
            ):
                found.setdefault(name, []).append(png)
        return found

    def report(self, job: int, stage: str, share: float) -> None:
        """Record how far a job is.

        Raises:
            TakenAwayError: it is no longer running.
        """
        with self._transaction() as database:
            changed = database.execute(
                "UPDATE job SET stage_began = iif(stage = ?, stage_began, ?), stage = ?, share = ? "
                "WHERE id = ? AND state = 'running'",
                (stage, time.time(), stage, share, job),
            )
            if not changed.rowcount:
                raise TakenAwayError

    def end(
        self, job: int, state: Ending, *, message: str = "", version: int | None = None
    ) -> None:
        """Record how a job ended, unless that is known. What was not learnt waits again."""
        with self._transaction() as database:
            changed = database.execute(
                "UPDATE job SET state = ?, ended = ?, message = ?, version = ? "
                "WHERE id = ? AND state = 'running'",
                (state, _now(), message, version, job),
            )
            if not changed.rowcount:
                return
            if state == "done":
                database.execute(
                    "DELETE FROM picture WHERE id <= (SELECT last_picture FROM job WHERE id = ?)",
                    (job,),
                )
                database.execute(
                    "DELETE FROM waiting_class "
                    "WHERE NOT stays AND id NOT IN (SELECT class FROM picture)"
                )
            database.execute("UPDATE waiting_class SET stays = TRUE")
        with self._connected() as database:
            database.executescript("PRAGMA incremental_vacuum; PRAGMA wal_checkpoint(TRUNCATE)")

    def running(self) -> Job | None:
        """The job that is running."""
        return next(iter(self._jobs("WHERE state = 'running'")), None)

    def job(self, number: int) -> Job:
        """A job by its number.

        Raises:
            NotThereError: there is none.
        """
        found = self._jobs("WHERE id = ?", number)
        if not found:
            raise NotThereError(f"There is no job {number}.")
        return found[0]

    def jobs(self, most: int) -> list[Job]:
        """The last ones, newest first."""
        return self._jobs("ORDER BY id DESC LIMIT ?", most)

    def _jobs(self, which: str, *values: Any) -> list[Job]:
        with self._connected() as database:
            database.row_factory = sqlite3.Row
            rows: Sequence[Mapping[str, Any]] = database.execute(
                f"SELECT * FROM job {which}", values
            ).fetchall()
        return [Job(**{**dict(row), "lessons": json.loads(row["lessons"])}) for row in rows]


def _begin(
    database: sqlite3.Connection, kind: Kind, lessons: Mapping[str, int], last_picture: int
) -> int:
    """Record a job that begins; its number.

    Raises:
        BusyError: another one is running.
    """
    begun = (kind, _now(), time.time(), f"page, {secrets.token_hex(4)}")
    try:
        made = database.execute(
            "INSERT INTO job (state, stage, kind, created, stage_began, source, lessons, "
            "last_picture) VALUES ('running', 'starting', ?, ?, ?, ?, ?, ?)",
            (*begun, json.dumps(lessons), last_picture),
        )
    except sqlite3.IntegrityError as error:
        raise BusyError("The model is being changed. Wait until that is done.") from error
    return _inserted(made)


def _lessons(database: sqlite3.Connection) -> tuple[dict[str, int], int]:
    """How many pictures of each class wait, and the number of the newest."""
    question = (
        "SELECT name, count(*), max(picture.id) FROM waiting_class "
        "JOIN picture ON class = waiting_class.id GROUP BY class ORDER BY class"
    )
    found = database.execute(question).fetchall()
    newest = max((last for _, _, last in found), default=0)
    return {name: count for name, count, _ in found}, newest


def _expect_not_learning(database: sqlite3.Connection, number: int) -> None:
    question = f"SELECT count(*) FROM picture WHERE class = ? AND {LEARNING}"
    (learning,) = database.execute(question, (number,)).fetchone()
    if learning:
        raise BusyError("This class is being learnt. Cancel that first.")


def _expect_one(changed: sqlite3.Cursor, otherwise: str) -> None:
    if changed.rowcount != 1:
        raise NotThereError(otherwise)


def _inserted(made: sqlite3.Cursor) -> int:
    """The number of the row that was added."""
    assert made.lastrowid is not None
    return made.lastrowid


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
