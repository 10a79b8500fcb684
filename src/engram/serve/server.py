"""Operations behind the HTTP routes."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import IO, Any, TypeVar

import torch
from anyio import CapacityLimiter, to_thread

from engram.data.images import checksums
from engram.data.pictures import as_png, picture
from engram.errors import NotThereError
from engram.learner import Learner
from engram.memory import Budget
from engram.results.verdict import forgetting_verdict
from engram.serve import schemas
from engram.serve.current import CurrentModel
from engram.serve.jobs import Jobs
from engram.serve.journal import Journal
from engram.serve.limits import Limits
from engram.serve.names import checked_name
from engram.versions import ModelFolder, VersionFacts

__all__ = ["Server"]

DECODED_AT_ONCE = 2
"""Pictures; the largest take a gigabyte while they are decoded."""

Value = TypeVar("Value")


class Server:
    """A model folder, and what the routes do with it.

    Args:
        folder: the model's.
        new_model: arguments of the `Learner` that is made or goes on; see `engram.learner.opened`.
        device: where it computes.
        keep: the most versions that stay.
        limits: on what is sent.
    """

    def __init__(
        self,
        folder: Path,
        new_model: Mapping[str, Any],
        device: str,
        keep: int | None,
        limits: Limits,
    ) -> None:
        self.model = ModelFolder(folder)
        self.journal = Journal(folder)
        self.jobs = Jobs(self.model, self.journal, new_model, device=device, keep=keep)
        self.current = CurrentModel(self.model, device)
        self.limits = limits
        self.untaught = Learner(**new_model)
        self.decoding = CapacityLimiter(DECODED_AT_ONCE)
        self.packing = CapacityLimiter(1)
        self.jobs.recover()
        self.current.get()

    @asynccontextmanager
    async def lifespan(self, app: object) -> AsyncIterator[None]:
        """Leave nothing running behind."""
        yield
        await to_thread.run_sync(self.jobs.close)

    async def decoded(self, work: Callable[[], Value]) -> Value:
        """Do work that decodes a picture in a thread, while other requests are answered."""
        return await to_thread.run_sync(work, limiter=self.decoding)

    def answering(self, version: int) -> Learner:
        """The learner of a version, if it is the one that answers.

        Raises:
            NotThereError: it is not.
        """
        there = self.current.get()
        if there is None or there[0] != version:
            raise NotThereError(f"Version {version} is not the one that answers.")
        return there[1]

    def state(self) -> schemas.ModelState:
        """Everything that the page shows at once."""
        version, learner = self.current.get() or (None, self.untaught)
        return schemas.ModelState(
            name=self.model.folder.resolve().name,
            version=version,
            method=learner.method_name,
            image_size=learner.image_size,
            classes=_known_classes(learner),
            verdict=forgetting_verdict(learner.changes_),
            memory=_memory(learner),
            waiting=[
                schemas.WaitingClass(
                    id=found.id,
                    name=found.name,
                    known=found.name in learner.classes_,
                    pictures=list(found.pictures),
                )
                for found in self.journal.waiting()
            ],
            job=next(iter(self.last_jobs(1)), None),
        )

    def add_class(self, name: str) -> int:
        """Make a class that waits, or find it.

        Raises:
            TooLargeError: so many others wait that there is no room.
            UserError: it is no name.
        """
        return self.journal.add_class(checked_name(name, self.limits.name_length), self.limits)

    def rename_class(self, number: int, name: str) -> None:
        """Give a class that waits another name.

        Raises:
            NotThereError: there is no such class.
            BusyError: it is being learnt.
            UserError: it is no name, or that of another class that waits.
        """
        self.journal.rename_class(number, checked_name(name, self.limits.name_length))

    def add_picture(self, number: int, content: bytes) -> int:
        """Let a picture wait, brought to the size at which it will be learnt.

        Raises:
            NotThereError: there is no such class.
            UserError: it cannot be read, or there is no room.
        """
        _, learner = self.current.get() or (None, self.untaught)
        pixels = picture(content, learner.image_size)
        (checksum,) = checksums(torch.tensor(pixels)[None])
        return self.journal.add_picture(number, as_png(pixels), checksum, self.limits)

    def job(self, number: int) -> schemas.JobState:
        """How far a job is, or how it ended.

        Raises:
            NotThereError: there is no such job.
        """
        return schemas.JobState.model_validate(self.journal.job(number))

    def last_jobs(self, most: int) -> list[schemas.JobState]:
        """Newest first."""
        return [schemas.JobState.model_validate(job) for job in self.journal.jobs(most)]

    def versions(self) -> list[schemas.Version]:
        """All versions that can be read, newest first."""
        current = self.model.current
        newest_first = reversed(self.model.history().values())
        return [self._version(facts, current) for facts in newest_first if facts is not None]

    def _version(self, facts: VersionFacts, current: int | None) -> schemas.Version:
        return schemas.Version(
            number=facts.number,
            current=facts.number == current,
            created=facts.created,
            parent=facts.parent,
            source=facts.source,
            learnt=[change.name for change in facts.changes if change.new],
            classes=len(facts.learner.classes),
            exemplars=facts.exemplars,
            bytes=facts.bytes,
            disk_bytes=self.model.disk_bytes(facts.number),
            forgotten=facts.forgetting,
        )

    def packed(self, version: int) -> IO[bytes]:
        """A temporary file with a model folder that holds one version; closed, it is gone.

        Raises:
            UserError: there is no such version.
        """
        file = tempfile.TemporaryFile()  # noqa: SIM115 - it is closed when all of it was sent
        try:
            self.model.pack(version, file)
        except BaseException:
            file.close()
            raise
        file.seek(0)
        return file


def _known_classes(learner: Learner) -> list[schemas.KnownClass]:
    if not learner.classes_:
        return []
    counts, sizes = learner.memory.counts, learner.memory.bytes_of_classes
    return [
        schemas.KnownClass(
            name=change.name,
            new=change.new,
            exemplars=counts.get(label, 0),
            bytes=sizes.get(label, 0),
            before=change.before,
            after=change.after,
            measured_on=change.images,
        )
        for label, change in enumerate(learner.changes_)
    ]


def _memory(learner: Learner) -> schemas.ExemplarMemory:
    budget = Budget.parse(learner.budget)
    return schemas.ExemplarMemory(
        budget=learner.budget,
        budget_bytes=budget.amount if budget.kind == "bytes" else None,
        bytes=learner.nbytes if learner.classes_ else 0,
        exemplars=len(learner.memory) if learner.classes_ else 0,
    )
