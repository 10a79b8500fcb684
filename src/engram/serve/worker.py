"""The process that learns, while the server goes on answering: `python -m engram.serve.worker`."""

from __future__ import annotations

import json
import os
import sqlite3
import sys
from pathlib import Path
from typing import Any

from engram.errors import UserError
from engram.learner import opened
from engram.serve.jobs import settle
from engram.serve.journal import Journal, TakenAwayError
from engram.versions import ModelFolder

__all__ = ["learn"]

POLITENESS = 5
"""Added to the worker's `nice` value, so that predictions stay fast."""


def learn(
    model: ModelFolder,
    journal: Journal,
    job: int,
    new_model: dict[str, Any],
    device: str,
    keep: int | None,
) -> None:
    """Learn a job's pictures into the model's next version, and record how that ended.

    Args:
        new_model: arguments of the `Learner`; see `opened`.
        keep: the most versions that stay.
    """
    try:
        with model.changing():
            learner = opened(model, new_model, device=device)
            learner.on_progress = lambda stage, share: journal.report(job, stage, share)
            learner.learn(journal.pictures_of(job), update=True)
            journal.report(job, "saving", 0.0)
            number = learner.add_to(model, keep=keep, source=journal.job(job).source)
        journal.end(job, "done", version=number)
    except TakenAwayError:
        return
    except UserError as error:
        settle(model, journal, job, "failed", str(error))
    except Exception as error:
        found = f"Something went wrong: {_reason(error)}. The model is as it was."
        settle(model, journal, job, "failed", found)
        raise


def _reason(error: Exception) -> str:
    if isinstance(error, sqlite3.Error):  # a full disk
        return str(error)
    return (error.strerror if isinstance(error, OSError) else None) or type(error).__name__


def main() -> None:
    """Learn the job that standard input tells of."""
    if hasattr(os, "nice"):
        os.nice(POLITENESS)
    task = json.load(sys.stdin)
    folder = Path(task.pop("folder"))
    learn(ModelFolder(folder), Journal(folder), **task)


if __name__ == "__main__":
    main()
