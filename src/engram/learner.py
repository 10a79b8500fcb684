"""`Learner`: learns named classes from pictures, and says what a picture shows.

For those who have folders of images. It is built on `engram.task_learner`, which is for research.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping, Sequence
from numbers import Integral, Real
from pathlib import Path
from typing import Any, TypedDict, cast, overload

import numpy as np
import torch

from engram.config import Precision, as_mapping, from_mapping
from engram.data.images import ImageSet
from engram.data.pictures import (
    Labelled,
    NamedImages,
    Picture,
    is_one,
    pixels_of,
    read_labelled,
)
from engram.data.stream import Task
from engram.errors import UserError, unknown
from engram.export import export_onnx
from engram.files import check_folder
from engram.holdout import Holdout
from engram.memory import Budget, ExemplarMemory
from engram.methods import METHODS, method_class
from engram.results.outcomes import Change, ClassAccuracy, Evaluation, mean_forgetting
from engram.runs import preset_settings
from engram.task_learner import TaskLearner, unheard
from engram.versions import MadeWith, ModelFolder, VersionFacts

__all__ = ["Label", "Learner", "check_given", "check_top", "load", "opened"]

ARGUMENTS = (
    *("method", "preset", "budget", "codec", "image_size", "holdout", "seed", "device"),
    "precision",
)
"""What a learner is made with."""
LASTING = ("method", "preset", "codec", "image_size", "seed", "precision")
"""What stays as it was when the first classes were learnt, wherever the model goes; budget and
holdout need not. A learner that has learnt stays on its device too."""
LEAST_SIZE = 8
"""Side in pixels that pictures may be brought to."""


class Label(TypedDict):
    """A class that a picture may show, with a score in [0, 1]."""

    label: str
    score: float


class Learner:
    """Learns classes of images a few at a time, in a bounded memory, and recognises all of them.

    Nothing happens before the first `learn`. After it, method, preset, codec, image_size, seed,
    precision and device have to stay what they are; budget and holdout may change between one
    `learn` and the next. `load` puts a model on another device.

    Args:
        method: a method's name, or its settings, such as `RanPACConfig(projected=500)`.
        preset: the method's settings for the purpose (budget and codec are not taken from it);
            without effect where settings are given.
        budget: of the memory for images: `20MB`, `2000` images, `20/class`, `all`, or `0`.
        codec: how these are stored; see `engram.data.codecs`.
        image_size: side in pixels that pictures are brought to.
        holdout: share of the images, and of the budget, that is set aside to find out what was
            forgotten. Classes of fewer than five images give none.
        seed: of everything random.
        device: `auto`, `cpu`, `cuda`, ...
        precision: of training and of pretrained networks. In float32 an exported model gives the
            same scores; `auto` is faster where the hardware has bfloat16.

    Attributes:
        classes_: names of the classes learnt, in the order in which they came.
        changes_: accuracy on each class before and after the last `learn`.
        skipped_: pictures that the last `learn` could not read, a line each.
        repeated_: pictures that the last `learn` left out because they were learnt before, or were
            given twice.
        seconds_: that the last `learn` took.
        on_progress: called while `learn` goes on, with what it does and the share of it that is
            done; for those who show progress.
    """

    def __init__(
        self,
        method: str | Any = "ranpac",
        *,
        preset: str = "photos",
        budget: str = "20MB",
        codec: str = "jpeg:75",
        image_size: int = 224,
        holdout: float = 0.1,
        seed: int = 0,
        device: str = "auto",
        precision: Precision = "fp32",
    ) -> None:
        self.method = method
        self.preset = preset
        self.budget = budget
        self.codec = codec
        self.image_size = image_size
        self.holdout = holdout
        self.seed = seed
        self.device = device
        self.precision: Precision = precision
        self.on_progress: Callable[[str, float], None] = unheard
        self.classes_: tuple[str, ...] = ()
        self.changes_: tuple[Change, ...] = ()
        self.skipped_: tuple[str, ...] = ()
        self.repeated_ = 0
        self.seconds_ = 0.0
        self._begun_with: dict[str, Any] = {}
        self._version: tuple[Path, int] | None = None
        # Both are there when something has been learnt, or loaded.
        self._core: TaskLearner
        self._holdout: Holdout

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """The arguments that this learner was made with, as scikit-learn asks for them."""
        return {name: getattr(self, name) for name in ARGUMENTS}

    @property
    def settings(self) -> Any:
        """The method's configuration."""
        if isinstance(self.method, str):
            return preset_settings(self.method, self.preset)
        return self.method

    @property
    def method_name(self) -> str:
        """The method's name.

        Raises:
            UserError: `method` is neither a name nor a method's settings.
        """
        if isinstance(self.method, str):
            method_class(self.method)
            return self.method
        for name, kind in METHODS.items():
            if type(self.method) is kind.Config:
                return name
        raise UserError(f"method must be a name or the settings of a method, not {self.method!r}.")

    def check(self) -> None:
        """Refuse settings with which nothing could be learnt.

        Raises:
            UserError: something is unknown or does not fit, or pretrained weights are not there.
        """
        self._made(self.settings)

    def learn(
        self,
        source: Labelled,
        *,
        update: bool = False,
        test: Labelled | None = None,
        strict: bool = False,
    ) -> Learner:
        """Learn the classes of a folder, or of pictures that are given.

        Args:
            source: a folder with a folder of pictures for each class, pictures by the names of
                their classes, or pictures and their labels.
            update: learn known classes further from new images of theirs; those that were learnt
                before are left out.
            test: pictures to measure on what is forgotten, instead of those set aside.
            strict: refuse what cannot be read, instead of leaving it out.

        Returns:
            This learner.

        Raises:
            UserError: nothing new to learn from, known classes without `update`, or a budget that
                cannot hold the classes. Nothing has changed then.
        """
        started = time.perf_counter()
        self._check_as_begun()
        # Learning happens on copies, so that nothing is lost if it fails or is interrupted.
        core, holdout = self._copied() if self.classes_ else self._made(self.settings)
        core.on_progress = self.on_progress
        self.on_progress("reading", 0.0)
        given = read_labelled(source, self.image_size, strict=strict)
        names = self._names_with(given.names, update=update)
        new = range(len(self.classes_), len(names))
        probe = None if test is None else self._read_test(test, names, strict=strict)
        lesson = holdout.lesson(_relabelled(given, names), len(names))
        lesson.check(names, new)
        self._check_room(core.memory, len(names), lesson.learnt)
        probed = lesson.probe if probe is None else _relabelled(probe, names)
        before = _measured(core, probed[probed.labels < new.start])
        core.learn(Task(core.tasks, lesson.learnt, new, range(len(names))))
        self.on_progress("measuring", 0.0)
        after = _measured(core, probed)
        self.changes_ = tuple(
            _change(name, before.get(label), after.get(label), new=label in new)
            for label, name in enumerate(names)
        )
        self._core, self._holdout = core, holdout
        self._begun_with = self._lasting()
        self.classes_, self.repeated_ = names, lesson.repeated
        self.skipped_ = given.skipped + (() if probe is None else probe.skipped)
        self.seconds_ = time.perf_counter() - started
        return self

    def _copied(self) -> tuple[TaskLearner, Holdout]:
        """Copies of what learnt and of what was set aside, under the budget as it is now."""
        core, holdout = copy.deepcopy((self._core, self._holdout))
        core.memory.budget, aside = _parted(self.budget, self.holdout)
        core.method.check(core.memory.budget)
        holdout.share = self.holdout
        holdout.resize(aside)
        return core, holdout

    def _names_with(self, given: Sequence[str], *, update: bool) -> tuple[str, ...]:
        """The names of all classes, new ones last.

        Raises:
            UserError: there are known ones among those given, without `update`.
        """
        known = [name for name in given if name in self.classes_]
        if known and not update:
            raise UserError(
                f"Known already: {', '.join(known)}. To learn from their new images too, say "
                "update (on the command line --update), or leave them out."
            )
        return (*self.classes_, *(name for name in given if name not in self.classes_))

    def _check_room(self, memory: ExemplarMemory, classes: int, images: ImageSet) -> None:
        """Refuse classes that the budget cannot hold, before anything is learnt."""
        try:
            memory.check(classes, images, 1 - self.holdout)
        except UserError as error:
            if not self.holdout:
                raise
            raise UserError(
                f"The budget is {self.budget}, of which {100 * self.holdout:.0f} % are for images "
                f"that are set aside. {error}"
            ) from error

    def _made(self, settings: Any) -> tuple[TaskLearner, Holdout]:
        """What learns with a method's settings, and what is set aside, both empty."""
        self._check_types()
        if self.image_size < LEAST_SIZE:
            raise UserError(f"image_size must be {LEAST_SIZE} or more, not {self.image_size}.")
        budget, aside = _parted(self.budget, self.holdout)
        image_size = (int(self.image_size),) * 2
        core = TaskLearner(
            self.method_name,
            settings,
            image_size=image_size,
            budget=budget,
            codec=self.codec,
            seed=int(self.seed),
            device=str(self.device),
            precision=self.precision,
        )
        return core, Holdout(self.holdout, aside, self.codec, image_size)

    def _check_types(self) -> None:
        """Refuse arguments that could not be saved with what is learnt.

        Raises:
            UserError: one is of another type.
        """
        wanted: dict[str, tuple[type, str]] = {
            **dict.fromkeys(("seed", "image_size"), (Integral, "a whole number")),
            "holdout": (Real, "a number"),
            **dict.fromkeys(("preset", "codec"), (str, "a text")),
        }
        for name, (kind, told) in wanted.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, kind):
                raise UserError(f"{name} must be {told}, not {value!r}.")

    def _read_test(
        self, test: Labelled, names: Sequence[str], *, strict: bool = False
    ) -> NamedImages:
        """Labelled pictures to measure on.

        Raises:
            UserError: they are of a class that is not known, or, if `strict`, one cannot be read.
        """
        given = read_labelled(test, self.image_size, strict=strict)
        if strange := [name for name in given.names if name not in names]:
            raise unknown("class", strange[0], names)
        return given

    def evaluate(self, test: Labelled) -> Evaluation:
        """Classify labelled pictures, and count how many are recognised.

        Raises:
            UserError: nothing was learnt yet, or a class is not known.
        """
        self._check_learnt()
        given = self._read_test(test, self.classes_)
        found = _measured(self._core, _relabelled(given, self.classes_))
        by_name = {self.classes_[label]: accuracy for label, accuracy in found.items()}
        return Evaluation(by_name, given.skipped)

    def score(self, pictures: Sequence[Picture], labels: Sequence[Any]) -> float:
        """The share of pictures that are recognised, in [0, 1], as scikit-learn has it."""
        return self.evaluate((pictures, labels)).accuracy / 100

    def predict_proba(self, pictures: Sequence[Picture]) -> np.ndarray:
        """(N, classes) scores in the order of `classes_`: none below 0, and their sum is 1.

        They rank classes, and do not say how likely each is to be right.

        Raises:
            UserError: nothing was learnt yet, or a picture cannot be read.
        """
        self._check_learnt()
        pixels = pixels_of(pictures, self.image_size)
        scores = self._core.scores(ImageSet(pixels, torch.zeros(len(pixels), dtype=torch.int64)))
        return self._core.method.probabilities(scores).numpy()

    @overload
    # A text is a sequence of texts too; as a path to a picture it is one.
    def predict(  # type: ignore[overload-overlap]
        self, pictures: Picture, top: int | None = None
    ) -> list[Label]: ...
    @overload
    def predict(self, pictures: Sequence[Picture], top: int | None = None) -> list[list[Label]]: ...
    def predict(
        self, pictures: Picture | Sequence[Picture], top: int | None = None
    ) -> list[Label] | list[list[Label]]:
        """What a picture shows: `[{"label": "cat", "score": 0.97}, ...]`, the likeliest first.

        Args:
            pictures: one, or several, and then a list for each.
            top: how many labels; all where None.

        Raises:
            UserError: `top` is below 1, nothing was learnt yet, or a picture cannot be read.
        """
        check_top(top)
        several = cast("Sequence[Picture]", [pictures] if is_one(pictures) else pictures)
        labels = [
            [Label(label=self.classes_[n], score=float(row[n])) for n in np.argsort(-row)[:top]]
            for row in self.predict_proba(several)
        ]
        return labels[0] if is_one(pictures) else labels

    def _check_learnt(self) -> None:
        if not self.classes_:
            raise UserError("Nothing has been learnt yet. Learn a folder of images first.")
        self._check_as_begun()

    def _check_as_begun(self) -> None:
        """Refuse settings that do not go with what was learnt under others."""
        for name, begun in self._begun_with.items():
            if (now := getattr(self, name)) != begun:
                raise UserError(
                    f"{name} was {begun} when the first classes were learnt, and is {now} now. Set "
                    "it back, or begin another model."
                )

    def _lasting(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in (*LASTING, "device")}

    @property
    def memory(self) -> ExemplarMemory:
        """The exemplars, best first, by position in `classes_`."""
        self._check_learnt()
        return self._core.memory

    @property
    def nbytes(self) -> int:
        """Bytes of all images that are kept, those set aside too; never over the budget."""
        return self.memory.nbytes + self._holdout.memory.nbytes

    @property
    def forgetting(self) -> float | None:
        """Points of accuracy that classes known before the last `learn` lost by it, on average;
        None where that was not measured of any."""
        return mean_forgetting(self.changes_)

    def export(self, path: str | Path) -> None:
        """Write everything learnt as one ONNX file; see `engram.export`.

        Raises:
            UserError: nothing was learnt yet, or a package is missing.
        """
        self._check_learnt()
        export_onnx(self._core.method, self.classes_, Path(path))

    def save(self, folder: str | Path, *, keep: int | None = None) -> int:
        """Make what was learnt the next version of the model in a folder; see `engram.versions`.

        Args:
            keep: the most versions that stay.

        Returns:
            The version's number.

        Raises:
            BusyError: another process is changing the model.
            UserError: nothing was learnt yet, or a file is where the folder is to be.
        """
        check_folder(Path(folder))
        model = ModelFolder(Path(folder))
        self._check_learnt()
        with model.changing():
            return self.add_to(model, keep=keep)

    def add_to(self, model: ModelFolder, *, keep: int | None = None, source: str = "") -> int:
        """`save` for those who are changing the model already.

        Args:
            source: where the images came from, for the history.
        """
        place = model.folder.resolve()
        parent = self._version[1] if self._version and self._version[0] == place else None
        number = model.add(self._write, self._facts(parent, source), keep=keep)
        self._version = place, number
        return number

    def _write(self, folder: Path) -> None:
        self._core.save(folder / "learner")
        self._holdout.save(folder)

    def _facts(self, parent: int | None, source: str) -> VersionFacts:
        """What a version tells of itself; `learner` is what `load` needs."""
        return VersionFacts(
            parent=parent,
            source=source,
            seconds=round(self.seconds_, 1),
            exemplars=len(self.memory),
            bytes=self.nbytes,
            changes=self.changes_,
            skipped=self.skipped_,
            learner=MadeWith(
                method=self.method_name,
                preset=self.preset,
                budget=str(self.budget),
                codec=self.codec,
                image_size=int(self.image_size),
                holdout=float(self.holdout),
                seed=int(self.seed),
                device=str(self.device),
                precision=self.precision,
                settings=as_mapping(self.settings),
                classes=self.classes_,
            ),
        )

    def _restore(self, folder: Path, facts: VersionFacts, *, strict: bool) -> None:
        """Take over what `_write` and `_facts` gave."""
        classes = facts.learner.classes
        self._core.restore(folder / "learner", strict=strict, class_names=classes)
        self._core.method.config = self.settings
        self._holdout.restore(folder, strict=strict, class_names=classes)
        self.classes_ = classes
        self._begun_with = self._lasting()
        self.changes_, self.skipped_, self.seconds_ = facts.changes, facts.skipped, facts.seconds


def load(
    folder: str | Path, version: int | None = None, *, device: str = "auto", strict: bool = False
) -> Learner:
    """The model in a folder, as it is now or was at a version.

    Args:
        strict: refuse a model with a damaged exemplar, instead of leaving that one out.

    Warns:
        DamagedExemplar: one is not what was written.

    Raises:
        UserError: there is none, or it is damaged.
    """
    model = ModelFolder(Path(folder))
    number = model.chosen(version)
    facts = model.facts(number)
    made_with = facts.learner
    method = method_class(made_with.method)
    settings = from_mapping(method.Config, made_with.settings, str(model.path(number)))
    given = {name: getattr(made_with, name) for name in ARGUMENTS}
    learner = Learner(**{**given, "method": settings, "device": device})
    # Weights that are about to be restored are not looked for.
    learner._core, learner._holdout = learner._made(method.without_weights(learner.settings))
    with model.reading(number):
        learner._restore(model.path(number), facts, strict=strict)
    learner._version = model.folder.resolve(), number
    return learner


def opened(
    model: ModelFolder, given: Mapping[str, Any], *, device: str = "auto", strict: bool = False
) -> Learner:
    """The learner of a model, to learn further; a new one where there is no model yet.

    Args:
        given: arguments of `Learner`, a method by its name. Of a model that there is, budget and
            holdout may differ from what they were.
        strict: see `load`.

    Raises:
        UserError: as `check_given` and `load` do.
    """
    if model.current is None:
        return Learner(**given, device=device)
    check_given(model, given)
    learner = load(model.folder, device=device, strict=strict)
    for name in given.keys() - set(LASTING):
        setattr(learner, name, given[name])
    return learner


def check_given(model: ModelFolder, given: Mapping[str, Any]) -> None:
    """Refuse arguments with which a model cannot learn further; see `opened`.

    Raises:
        UserError: one differs from what the model was made with and cannot change, or is none; or
            there is no model.
    """
    made_with = model.facts(model.chosen()).learner
    for name in LASTING:
        begun = getattr(made_with, name)
        if (value := given.get(name, begun)) != begun:
            raise UserError(
                f"{model.folder} was made with {name.replace('_', '-')} {begun}, not {value}. "
                "Leave the option out, or choose another folder."
            )
    asked = {name: given.get(name, getattr(made_with, name)) for name in ("budget", "holdout")}
    _parted(**asked)


def check_top(top: int | None) -> None:
    """Refuse to name fewer than one label for a picture.

    Raises:
        UserError: that is what is asked for.
    """
    if top is not None and top < 1:
        raise UserError(f"At least one label must be named, not {top}: top must be 1 or more.")


def _parted(budget: str, holdout: float) -> tuple[Budget, Budget]:
    """The budgets of what is learnt from again, and of what is set aside.

    Raises:
        UserError: one of the two is out of range.
    """
    if not 0 <= holdout < 1:
        raise UserError(f"holdout must be in [0, 1), not {holdout}.")
    return Budget.parse(str(budget)).parted(holdout)


def _measured(learner: TaskLearner, images: ImageSet) -> dict[int, ClassAccuracy]:
    """Accuracy on the classes that there are images of, by label."""
    if not len(images):
        return {}
    right = learner.scores(images).argmax(dim=1) == images.labels
    of_class = {label: right[images.labels == label] for label in images.labels.unique().tolist()}
    return {label: ClassAccuracy(len(found), int(found.sum())) for label, found in of_class.items()}


def _relabelled(given: NamedImages, names: Sequence[str]) -> ImageSet:
    """Images with labels that are positions in `names`."""
    positions = torch.tensor([names.index(name) for name in given.names])
    return ImageSet(given.images.pixels, positions[given.images.labels])


def _change(
    name: str, before: ClassAccuracy | None, after: ClassAccuracy | None, *, new: bool
) -> Change:
    return Change(
        name,
        None if before is None else before.accuracy,
        None if after is None else after.accuracy,
        0 if after is None else after.images,
        new,
    )
