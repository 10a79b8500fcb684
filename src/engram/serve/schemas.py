"""What the server answers with."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from engram.serve.journal import Kind, State

__all__ = [
    "ClassName",
    "ExemplarMemory",
    "JobState",
    "KnownClass",
    "Label",
    "Made",
    "ModelState",
    "Prediction",
    "Problem",
    "Version",
    "WaitingClass",
]


class Problem(BaseModel):
    """Why something was refused, and the way out."""

    message: str


class Made(BaseModel):
    """The number of what was made."""

    id: int


class ClassName(BaseModel):
    """What a class is called."""

    name: str


class Label(BaseModel):
    """A class and its score, from 0 to 1, by which classes are ranked."""

    label: str
    score: float


class Prediction(BaseModel):
    """What a picture shows, likeliest first."""

    version: int
    labels: list[Label]


class KnownClass(BaseModel):
    """A class that was learnt; accuracy in percent, before and after the last time."""

    name: str
    new: bool
    exemplars: int
    bytes: int
    before: float | None
    after: float | None
    measured_on: int


class WaitingClass(BaseModel):
    """A class whose pictures wait to be learnt."""

    id: int
    name: str
    known: bool
    pictures: list[int]


class JobState(BaseModel):
    """Something that changes the model, or did; `seconds_left` is of the stage."""

    model_config = ConfigDict(from_attributes=True)

    id: int
    kind: Kind
    state: State
    created: str
    ended: str | None
    stage: str
    share: float
    seconds_left: float | None
    message: str
    version: int | None
    lessons: dict[str, int]


class ExemplarMemory(BaseModel):
    """What is kept of the pictures; `budget_bytes` is null where the budget counts images."""

    budget: str
    budget_bytes: int | None
    bytes: int
    exemplars: int


class ModelState(BaseModel):
    """Everything that the page shows at once; `verdict` is on what the last lesson cost."""

    name: str
    version: int | None
    method: str
    image_size: int
    classes: list[KnownClass]
    verdict: str
    memory: ExemplarMemory
    waiting: list[WaitingClass]
    job: JobState | None


class Version(BaseModel):
    """A version of the model; `learnt` names its new classes.

    `bytes` are those of the pictures that it keeps, `disk_bytes` those of all its files.
    `forgotten` is in points of accuracy, on average over the classes known before of which it was
    measured; null where there are none.
    """

    number: int
    current: bool
    created: str
    parent: int | None
    source: str
    learnt: list[str]
    classes: int
    exemplars: int
    bytes: int
    disk_bytes: int
    forgotten: float | None
