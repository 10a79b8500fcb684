"""Jobs: one at a time that changes the model, in a process of its own, and what becomes of it."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from engram.serve.journal import Ending, Job, Journal
from engram.versions import BusyError, ModelFolder

__all__ = ["Jobs", "settle"]

PATIENCE = 10
"""Seconds given to a process to end when it is asked to, and to a record to be written."""

AGAIN = 1
"""Seconds until something is tried again, or looked at again."""

STOPPED = "The server was stopped meanwhile. Nothing is lost: learn again."
GOING_BACK = "The server was stopped meanwhile. See under History which version is in use."
DIED = (
    "The process that learnt was ended, perhaps for lack of memory, or of room on the disk. The "
    "model is as it was: learn again, perhaps with fewer pictures at a time."
)


def settle(
    model: ModelFolder, journal: Journal, job: int, otherwise: Ending, message: str = ""
) -> None:
    """Record how a job ended, unless it did so itself: it is done if its version is there, whatever
    happened then.

    Nobody may be working on it any more.
    """
    # Whoever heard that it is done may have gone back to another version meanwhile.
    found = journal.job(job)
    if found.state != "running":
        return
    made = model.made_from(found.source)
    if made is not None:
        journal.end(job, "done", version=made)
    else:
        journal.end(job, otherwise, message=message)


@dataclass(slots=True)
class _Learning:
    """A process at work; `ending` is what to say of it if it leaves no version."""

    job: int
    process: subprocess.Popen[str]
    ending: tuple[Ending, str] = ("failed", DIED)


class Jobs:
    """Starts processes that learn, ends them, and records what became of them.

    Args:
        new_model: arguments of the `Learner` that is made or goes on; see `engram.learner.opened`.
        device: where it is learnt.
        keep: the most versions that stay.
    """

    def __init__(
        self,
        model: ModelFolder,
        journal: Journal,
        new_model: Mapping[str, Any],
        *,
        device: str,
        keep: int | None,
    ) -> None:
        self._model = model
        self._journal = journal
        self._task = {"new_model": dict(new_model), "device": device, "keep": keep}
        self._learning: _Learning | None = None
        self._watcher = threading.Thread()

    def recover(self) -> None:
        """Take up a job that another server left behind.

        A process that still works on it goes on; else it is said to be done or interrupted.
        """
        if job := self._journal.running():
            at_work = self._at_work()
            adopting = threading.Thread(target=self._adopt, args=(job,), daemon=True)
            adopting.start()
            if not at_work:
                adopting.join(PATIENCE)

    def _at_work(self) -> bool:
        """Whether another process is changing the model."""
        try:
            with self._model.changing():
                return False
        except BusyError:
            return True

    def _adopt(self, job: Job) -> None:
        while self._at_work():
            time.sleep(AGAIN)
        self._settle(job.id, "interrupted", _stopped(job))

    def _settle(self, job: int, otherwise: Ending, message: str) -> None:
        """See `settle`; as soon as the disk has room for that."""
        _persist(lambda: settle(self._model, self._journal, job, otherwise, message))

    def _end(self, job: int, ending: Ending, **said: Any) -> None:
        """Record how a job ended; later, if the disk has no room for that now."""
        ends = partial(self._journal.end, job, ending, **said)
        recording = threading.Thread(target=_persist, args=(ends,), daemon=True)
        recording.start()
        recording.join(PATIENCE)

    def learn(self) -> int:
        """Begin to learn what waits; the job's number.

        Raises:
            BusyError: another job is running.
            UserError: nothing waits.
        """
        job = self._journal.begin_learning()
        try:
            learning = _Learning(job, self._started(job))
        except BaseException as error:
            self._end(job, "failed", message=f"No process could be started: {error}.")
            raise
        self._learning = learning
        self._watcher = threading.Thread(target=self._watch, args=(learning,), daemon=True)
        self._watcher.start()
        return job

    def _started(self, job: int) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            # -P: nothing is imported from the folder that the server happens to be started in.
            [sys.executable, "-P", "-m", "engram.serve.worker"],
            stdin=subprocess.PIPE,
            text=True,
            # What interrupts the server does not reach it; the server ends it in its own way.
            start_new_session=True,
        )
        task = {"folder": str(self._model.folder.resolve()), "job": job, **self._task}
        if process.stdin is not None:
            process.stdin.write(json.dumps(task))
            process.stdin.close()
        return process

    def _watch(self, learning: _Learning) -> None:
        learning.process.wait()
        self._settle(learning.job, *learning.ending)

    def rollback(self, version: int) -> None:
        """Make an earlier version the current one, or a later one again.

        Raises:
            BusyError: a job is running, or another process changes the model.
            UserError: there is no such version.
        """
        self._model.chosen(version)
        job = self._journal.begin_rollback()
        try:
            with self._model.changing():
                self._model.rollback(version)
        except BaseException as error:
            self._end(job, "failed", message=str(error))
            raise
        self._end(job, "done", version=version)

    def cancel(self, job: int) -> None:
        """End a job if it is running; the model stays as it is, unless it was done just before.

        Raises:
            NotThereError: there is no such job.
        """
        if self._journal.job(job).state == "running":
            self._stop(job, "cancelled", "")

    def close(self) -> None:
        """End what is running, since nobody will be there to tell of it."""
        if job := self._journal.running():
            self._stop(job.id, "interrupted", _stopped(job))

    def _stop(self, job: int, ending: Ending, message: str) -> None:
        learning = self._learning
        if learning is None or learning.job != job:
            # The process of another server finds that the job was taken away when it next reports.
            self._journal.end(job, ending, message=message)
            return
        learning.ending = (ending, message)
        learning.process.terminate()
        try:
            learning.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            learning.process.kill()
        self._watcher.join(PATIENCE)


def _stopped(job: Job) -> str:
    """What to say of a job that ended with its server."""
    return GOING_BACK if job.kind == "rollback" else STOPPED


def _persist(record: Callable[[], None]) -> None:
    """Record something, again and again as long as the disk is full."""
    while True:
        try:
            return record()
        except (sqlite3.OperationalError, OSError):
            time.sleep(AGAIN)
