"""Jobs: one process at a time that changes the model, and what becomes of it."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Mapping
from typing import Any

from engram.serve.journal import Journal
from engram.serve.worker import source_of
from engram.versions import ModelFolder

__all__ = ["Jobs"]

PATIENCE = 10
"""Seconds that a process has to end when it is asked to."""


class Jobs:
    """Starts processes that learn, ends them, and records those that ended by themselves.

    Args:
        new_model: arguments of the `Learner` that a first version is made with.
        device: where it is learnt.
        keep: the most versions that stay.
    """

    def __init__(
        self,
        model: ModelFolder,
        journal: Journal,
        new_model: Mapping[str, Any],
        *,
        device: str = "auto",
        keep: int | None = None,
    ) -> None:
        self._model = model
        self._journal = journal
        self._task = {"new_model": dict(new_model), "device": device, "keep": keep}
        self._process: subprocess.Popen[str] | None = None

    def recover(self) -> None:
        """Say of a job that another server left behind whether it was done or interrupted.

        A process that still works on it finds so when it next reports, and gives up.
        """
        if job := self._journal.running():
            made = [
                facts["number"]
                for facts in self._model.history()
                if facts.get("source") == source_of(job.id)
            ]
            if made:
                self._journal.end(job.id, "done", version=made[-1])
            else:
                self._journal.end(
                    job.id,
                    "interrupted",
                    message="The server was stopped meanwhile. Nothing is lost: learn again.",
                )

    def learn(self) -> int:
        """Begin to learn what waits; the job's number.

        Raises:
            BusyError: another job is running.
            UserError: nothing waits.
        """
        job = self._journal.begin("learn")
        task = {"folder": str(self._model.folder.resolve()), "job": job, **self._task}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "engram.serve.worker"],
            stdin=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        if self._process.stdin is not None:
            self._process.stdin.write(json.dumps(task))
            self._process.stdin.close()
        threading.Thread(target=self._watch, args=(self._process, job), daemon=True).start()
        return job

    def _watch(self, process: subprocess.Popen[str], job: int) -> None:
        """Wait for the process; one that was killed could not say so itself."""
        process.wait()
        self._journal.end(
            job,
            "failed",
            message="The process that learnt was ended, perhaps for lack of memory. The model is "
            "as it was.",
        )

    def rollback(self, version: int) -> None:
        """Make an earlier version the current one, or a later one again.

        Raises:
            BusyError: a job is running, or another process changes the model.
            UserError: there is no such version.
        """
        self._model.chosen(version)
        job = self._journal.begin("rollback")
        try:
            with self._model.changing():
                self._model.rollback(version)
        except BaseException as error:
            self._journal.end(job, "failed", message=str(error))
            raise
        self._journal.end(job, "done", version=version)

    def cancel(self, job: int) -> None:
        """End a job that is running; the model stays as it is.

        Raises:
            NotThereError: there is no such job.
        """
        self._journal.job(job)
        self._journal.end(job, "cancelled")
        self._stop_process()

    def close(self) -> None:
        """End what is running, since nobody will be there to tell of it."""
        if job := self._journal.running():
            self._journal.end(
                job.id,
                "interrupted",
                message="The server was stopped meanwhile. Nothing is lost: learn again.",
            )
        self._stop_process()

    def _stop_process(self) -> None:
        if self._process is None or self._process.poll() is not None:
            return
        self._process.terminate()
        try:
            self._process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
