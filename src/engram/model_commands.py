"""The commands for model folders: learn, predict, evaluate, history, rollback, export, serve."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields
from itertools import combinations
from pathlib import Path
from typing import Any

import tyro
from rich.table import Table

from engram.console import (
    LOOK,
    OptionalFloat,
    OptionalInteger,
    OptionalPath,
    OptionalText,
    plain_console,
    shown_progress,
)
from engram.data.pictures import readable
from engram.errors import UserError, install_command
from engram.files import check_place, write_atomically
from engram.learner import Learner, check_given, check_top, load, opened
from engram.methods import METHODS, method_class
from engram.methods.pretrained import PretrainedMethod
from engram.results.formats import ABSENT, format_bytes, format_percent, several
from engram.results.model_page import changes_page, evaluation_page
from engram.results.verdict import evaluation_verdict, forgetting_verdict
from engram.versions import ModelFolder, check_keep

__all__ = ["evaluate", "export", "history", "learn", "predict", "rollback", "serve"]


@dataclass(frozen=True, kw_only=True)
class NewModelOptions:
    """What a model is made with; fixed from then on, but for the budget and the holdout."""

    method: OptionalText = None
    """What learns: ranpac (the default), lae, icarl, der, ... See engram methods."""
    preset: OptionalText = None
    """Settings of the method. Default: photos."""
    budget: OptionalText = None
    """Room for stored images: 20MB (the default), 2000 images, 20/class, 0, or all, as joint needs.
    May change later."""
    codec: OptionalText = None
    """How stored images are compressed. Default: jpeg:75."""
    image_size: OptionalInteger = None
    """Side in pixels to which pictures are scaled. Default: 224."""
    holdout: OptionalFloat = None
    """Share of the images, and of the budget, set aside to measure forgetting. Default: 0.1. May
    change later."""
    seed: OptionalInteger = None
    """Seed of all random numbers. Default: 0."""


@dataclass(frozen=True, kw_only=True)
class LearnOptions(NewModelOptions):
    """Learn the classes of a folder of images, into a model folder."""

    folder: tyro.conf.Positional[Path]
    """A folder with one folder for each class: photos/cat/1.jpg, or deeper below."""
    into: Path
    """The model folder; it is made where there is none."""
    update: bool = False
    """Learn known classes further from new images of theirs."""
    test: OptionalPath = None
    """Images to measure forgetting on, in the same layout, instead of those set aside."""
    weights: OptionalPath = None
    """A file with the weights of the pretrained backbone that a new model stands on."""
    keep_versions: OptionalInteger = None
    """The most versions that stay on disk. Default: all."""
    refuse_if_forgetting_above: OptionalFloat = None
    """Points of accuracy; if known classes lose more on average, the model stays as it was. Rough
    where few images are set aside: with one of each of ten classes, one image makes ten points."""
    strict: bool = False
    """Stop at an image that cannot be read, or a damaged exemplar, instead of leaving it out."""
    device: str = "auto"


def learn(words: Sequence[str]) -> None:
    """Learn a folder; the model's next version."""
    options = tyro.cli(LearnOptions, args=words, prog="engram learn")
    model = ModelFolder(options.into)
    given = _given(options)
    check_keep(options.keep_versions)
    _check_limit(options.refuse_if_forgetting_above)
    _check_apart(options.into, options.folder)
    with model.changing():
        learner = _learner(model, given, options)
        with shown_progress() as learner.on_progress:
            learner.learn(
                options.folder, update=options.update, test=options.test, strict=options.strict
            )
        _print_learnt(learner)
        if options.refuse_if_forgetting_above is not None:
            _check_forgetting(learner, options.refuse_if_forgetting_above, options.into)
        source = readable(str(options.folder))
        number = learner.add_to(model, keep=options.keep_versions, source=source)
        page = changes_page(f"Version {number}", learner.changes_, _sentences(learner))
        print(f"Version {number} of {options.into}. {_written(page, model.folder)}")


def _written(page: str, folder: Path) -> str:
    """Where the page about what was forgotten is; why it is not, where it cannot be written."""
    path = folder / "forgetting.html"
    try:
        write_atomically(path, page.encode())
    except OSError as error:
        return f"{path} could not be written: {error.strerror}."
    return _address(path)


def _check_limit(limit: float | None) -> None:
    """Refuse a limit of forgetting that nothing is above, or below.

    Raises:
        UserError: it is no number.
    """
    if limit is not None and math.isnan(limit):
        raise UserError(
            f"--refuse-if-forgetting-above must be a number of points, not {limit}: 5 for five."
        )


def _check_apart(model: Path, folder: Path) -> None:
    """Refuse a model folder that would be taken for a class.

    Raises:
        UserError: it lies in the folder of images.
    """
    if model.resolve().is_relative_to(folder.resolve()):
        raise UserError(
            f"{model} lies in {folder}, where each folder is a class. Choose a place outside: "
            f"--into {folder.resolve().parent / 'model'}"
        )


def _check_forgetting(learner: Learner, limit: float, model: Path) -> None:
    """Refuse what was learnt if too much was forgotten for it.

    Raises:
        UserError: it was, or that cannot be told.
    """
    lost = learner.forgetting
    if lost is None and not all(change.new for change in learner.changes_):
        raise UserError(
            "What was forgotten cannot be measured: of no known class are there images set aside. "
            f"Give some with --test FOLDER. {model} stays as it was."
        )
    if lost is not None and lost > limit:
        raise UserError(
            f"Known classes lost {lost:.1f} points on average, more than "
            f"{limit:g}. {model} stays as it was."
        )


def _given(options: NewModelOptions) -> dict[str, Any]:
    """The options of a new model that were not left out."""
    values = {field.name: getattr(options, field.name) for field in fields(NewModelOptions)}
    return {name: value for name, value in values.items() if value is not None}


def _learner(model: ModelFolder, given: dict[str, Any], options: LearnOptions) -> Learner:
    """The model's learner, or a new one.

    Raises:
        UserError: an option differs from what the model was made with, and cannot change.
    """
    learner = opened(model, given, device=options.device, strict=options.strict)
    if options.weights is not None:
        if learner.classes_:
            raise UserError(f"{model.folder} has its weights already: leave --weights out.")
        learner.method = _with_weights(learner, options.weights)
    return learner


def _with_weights(learner: Learner, weights: Path) -> Any:
    """The settings of a method, on a backbone with the weights of a file.

    Raises:
        UserError: the method has no pretrained backbone.
    """
    kind = method_class(learner.method_name)
    if not issubclass(kind, PretrainedMethod):
        able = [name for name, other in METHODS.items() if issubclass(other, PretrainedMethod)]
        raise UserError(
            f"--weights goes with {' and '.join(able)}. What {learner.method_name} starts from is "
            "looked for in weights/ in the folder that ENGRAM_DATA names."
        )
    return kind.with_weights(learner.settings, str(weights))


def _sentences(learner: Learner) -> list[str]:
    known = several(len(learner.classes_), "class is", "classes are")
    learnt = f"{known} known. Learning took {learner.seconds_:.0f} s."
    kept = (
        f"{several(len(learner.memory), 'exemplar is', 'exemplars are')} kept; with the images set "
        "aside, in "
        f"{learner.nbytes:,} bytes of a budget of {learner.budget}."
    )
    new = {change.name for change in learner.changes_ if change.new}
    alike = [
        f"{one} and {other} are two classes now. If they should be one, go back (engram rollback) "
        "or begin anew, with one name for both."
        for one, other in combinations(learner.classes_, 2)
        if one.casefold() == other.casefold() and other in new
    ]
    lines = [learnt, kept, *alike]
    if learner.repeated_:
        repeated = several(learner.repeated_, "image", "images")
        lines.append(f"{repeated} learnt before, or given twice: left out.")
    if learner.skipped_:
        lines += [
            f"{several(len(learner.skipped_), 'picture', 'pictures')} left out, as unreadable:",
            *learner.skipped_,
        ]
    return lines


def _print_learnt(learner: Learner) -> None:
    table = Table("class", **LOOK)
    for column in ("before", "after", "measured on"):
        table.add_column(column, justify="right")
    for change in learner.changes_:
        table.add_row(
            change.name,
            format_percent(change.before, 1),
            format_percent(change.after, 1),
            str(change.images),
        )
    console = plain_console()
    for line in _sentences(learner):
        console.print(line)
    console.print(table)
    console.print(forgetting_verdict(learner.changes_))


def _address(path: Path) -> str:
    return path.resolve().as_uri()


@dataclass(frozen=True, kw_only=True)
class PredictOptions:
    """Classify pictures."""

    model: tyro.conf.Positional[Path]
    """The model folder."""
    pictures: tyro.conf.Positional[tuple[Path, ...]]
    """One or several."""
    top: int = 3
    """How many classes are named for each."""
    json: bool = False
    """Print JSON, a line for each picture."""
    device: str = "auto"


def predict(words: Sequence[str]) -> None:
    """Classify pictures."""
    options = tyro.cli(PredictOptions, args=words, prog="engram predict")
    if not options.pictures:
        raise UserError(
            "engram predict wants pictures after the model: engram predict model cat.jpg"
        )
    check_top(options.top)
    learner = load(options.model, device=options.device)
    unread = 0
    is_unicode = (sys.stdout.encoding or "").lower() == "utf-8"
    for path in options.pictures:
        try:
            found = learner.predict(path, options.top)
        except UserError as error:
            if len(options.pictures) == 1:
                raise
            print(error, file=sys.stderr)
            unread += 1
            continue
        name = readable(str(path))
        if options.json:
            print(json.dumps({"picture": name, "labels": found}, ensure_ascii=not is_unicode))
        else:
            named = ", ".join(f"{one['label']} {100 * one['score']:.1f} %" for one in found)
            print(f"{name}: {named}")
    if unread:
        raise UserError(f"{unread} of {len(options.pictures)} pictures could not be read.")


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions:
    """A model's accuracy on labelled pictures."""

    model: tyro.conf.Positional[Path]
    """The model folder."""
    folder: tyro.conf.Positional[Path]
    """A folder with one folder for each class."""
    report: OptionalPath = None
    """An HTML page to write."""
    device: str = "auto"


def evaluate(words: Sequence[str]) -> None:
    """Count what is recognised."""
    options = tyro.cli(EvaluateOptions, args=words, prog="engram evaluate")
    if options.report is not None:
        check_place(options.report)
    found = load(options.model, device=options.device).evaluate(options.folder)
    table = Table("class", **LOOK)
    for column in ("accuracy", "measured on"):
        table.add_column(column, justify="right")
    for name, of_class in found.classes.items():
        table.add_row(name, f"{of_class.accuracy:.1f} %", str(of_class.images))
    plain_console().print(table)
    for line in found.skipped:
        print(line)
    print(evaluation_verdict(found))
    if options.report is not None:
        page = evaluation_page(f"{options.model} on {options.folder}", found)
        write_atomically(options.report, page.encode(errors="replace"))
        print(f"Report: {_address(options.report)}")


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """A model as one ONNX file, which runs without engram."""

    model: tyro.conf.Positional[Path]
    """The model folder."""
    to: Path
    """The file to write."""


def export(words: Sequence[str]) -> None:
    """Write ONNX."""
    options = tyro.cli(ExportOptions, args=words, prog="engram export")
    check_place(options.to)
    load(options.model, device="cpu").export(options.to)
    print(
        f"{options.to}: pixels (N, H, W, 3) uint8 to scores and probabilities; the names of the "
        "classes are in its metadata."
    )


@dataclass(frozen=True, kw_only=True)
class HistoryOptions:
    """List the versions of a model: the one before each, what it learnt from, its classes, the
    images it keeps, its size on disk, and the points of accuracy that known classes lost."""

    model: tyro.conf.Positional[Path]
    """The model folder."""


def history(words: Sequence[str]) -> None:
    """List the versions."""
    model = ModelFolder(tyro.cli(HistoryOptions, args=words, prog="engram history").model)
    current = model.current
    if current is None:
        raise model.absence()
    table = Table("", "version", **LOOK)
    # Short names, and a date above its time, fit a terminal of 80 letters.
    table.add_column("made", min_width=len("2000-01-01"))
    for name in ("after", "learnt from", "classes", "kept", "bytes", "on disk", "lost"):
        table.add_column(name, overflow="fold")
    for number, facts in model.history().items():
        if facts is None:
            table.add_row("", str(number), "damaged")
            continue
        table.add_row(
            "\N{RIGHTWARDS ARROW}" if number == current else "",
            str(number),
            facts.created.replace("T", " ")[:16],
            str(facts.parent or ""),
            facts.source,
            str(len(facts.learner.classes)),
            f"{facts.exemplars:,}",
            format_bytes(facts.bytes),
            format_bytes(model.disk_bytes(number)),
            ABSENT if facts.forgetting is None else f"{facts.forgetting:.1f}",
        )
    plain_console().print(table)


@dataclass(frozen=True, kw_only=True)
class RollbackOptions:
    """Go back to an earlier version of a model, or forward again."""

    model: tyro.conf.Positional[Path]
    """The model folder."""
    version: tyro.conf.Positional[int]
    """Its number; see engram history."""


def rollback(words: Sequence[str]) -> None:
    """Make another version the current one."""
    options = tyro.cli(RollbackOptions, args=words, prog="engram rollback")
    model = ModelFolder(options.model)
    model.chosen(options.version)
    with model.changing():
        model.rollback(options.version)
    print(f"Version {options.version} of {options.model} is the current one.")


@dataclass(frozen=True, kw_only=True)
class ServeOptions(NewModelOptions):
    """A page on which a model is taught and asked, and REST for programs."""

    model: tyro.conf.Positional[Path]
    """The model folder; it is made where there is none."""
    host: str = "127.0.0.1"
    """Where to listen. 0.0.0.0 lets other machines in, which then need the token."""
    port: int = 8000
    """0 takes one that is free."""
    token: OptionalText = None
    """What requests must carry; better given in ENGRAM_TOKEN, which other accounts cannot see.
    Default: none for this computer alone, else one is made and kept in the model folder."""
    allow_host: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """The name of a reverse proxy on this computer, such as engram.example.org.
    Everybody needs the token then."""
    allow_origin: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """A page elsewhere that may use the model, such as https://example.org."""
    keep_versions: int | None = 20
    """The most versions that stay on disk when another one is learnt. None keeps all."""
    device: str = "auto"


def serve(words: Sequence[str]) -> None:
    """Serve the page until it is interrupted."""
    options = tyro.cli(ServeOptions, args=words, prog="engram serve")
    try:
        from engram.serve.run import serve_model
    except ModuleNotFoundError as error:
        raise UserError(
            f"engram serve needs {error.name}. Install it: {install_command('engram[serve]')}."
        ) from error
    check_keep(options.keep_versions)
    model, given = ModelFolder(options.model), _given(options)
    if model.current is None:
        Learner(**given, device=options.device).check()
    else:
        check_given(model, given)
    _tell_of_removal(model, options.keep_versions)
    serve_model(
        options.model,
        given,
        host=options.host,
        port=options.port,
        token=options.token,
        names=options.allow_host,
        origins=options.allow_origin,
        keep=options.keep_versions,
        device=options.device,
    )


def _tell_of_removal(model: ModelFolder, keep: int | None) -> None:
    """Say beforehand that versions that are there will go."""
    there = len(model.numbers())
    if keep is not None and there >= keep:
        print(
            f"{model.folder} has {there} versions; when another one is learnt, {keep} stay. To "
            "keep all: --keep-versions None"
        )
