"""The commands behind `engram`: each reads its options, calls the library, and prints."""

from __future__ import annotations

import inspect
import itertools
import json
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Generic, TypeVar

import tyro

from engram.bench import Execution, check, run
from engram.config import Precision, difference, load_preset
from engram.console import (
    OptionalInteger,
    OptionalPath,
    OptionalText,
    RunProgress,
    print_comparison,
    print_facts,
    print_methods,
)
from engram.data.orders import order_names
from engram.data.stream import EvaluatedOn
from engram.doctor import diagnosis
from engram.errors import UserError
from engram.files import check_folder, write_atomically
from engram.methods import METHODS, method_class
from engram.results.record import OccupiedError, commit
from engram.results.report import write_report
from engram.runs import InputMean, RunConfig, configured, folder_name, preset_settings, read_grid

__all__ = ["bench", "demo", "doctor", "methods", "report"]

S = TypeVar("S")

BENCH_HELP = f"""\
engram bench METHOD STREAM [options]    one method on one stream, once for each seed
engram bench --grid FILE [--out runs]   all runs that a YAML file lists

METHOD is one of {", ".join(sorted(METHODS))}; engram bench METHOD --help lists its
options. STREAM is <data set>/b<base classes>-inc<classes a task>, as in cifar100/b0-inc10, or a
list of task sizes, as in digits/4,3,3.
"""

ORDER_HELP = (
    f"Class order: {', '.join(order_names())}, or a file of labels. Default: seed<the run's seed>."
)


@dataclass(frozen=True, kw_only=True)
class DemoOptions:
    """Learn handwritten digits two at a time: iCaRL beside finetune (floor) and joint (ceiling)."""

    out: Path = Path("runs/demo")
    """Folder for the three runs and their report."""


def demo(words: Sequence[str]) -> None:
    """Digits, two at a time, by three methods."""
    options = tyro.cli(DemoOptions, args=words, prog="engram demo")
    methods = ("finetune", "icarl", "joint")
    configs = [configured(method, "digits/b0-inc2", "demo") for method in methods]
    _run_all(configs, ExecutionOptions(out=options.out))


@dataclass(frozen=True, kw_only=True)
class ExecutionOptions:
    """Where runs go, and how they are carried out."""

    out: Path = Path("runs")
    """Folder for run folders. A run that is finished is skipped, an interrupted one goes on."""
    strict_memory: bool = False
    """Decode exemplars batch by batch, not once a task: less memory, more time, same result."""
    strict: bool = False
    """Stop at a damaged exemplar instead of going on without it."""
    keep_models: bool = False
    """Keep the learner after every task in the run's folder, and not after the last one alone."""
    publish: OptionalPath = None
    """Folder for copies of the summaries, <method>/<run>.json; a run that has one is skipped."""


@dataclass(frozen=True, kw_only=True)
class BenchOptions(ExecutionOptions, Generic[S]):
    """One method on one stream of classes, once for each seed."""

    stream: tyro.conf.Positional[str]
    """<data set>/b<base classes>-inc<classes a task>, as in cifar100/b0-inc10, or a list of task
    sizes, as in digits/4,3,3. A data set may be a folder with train/<class>/ and test/<class>/."""
    preset: str = "paper"
    """Settings from experiments/<method>/<preset>.yaml; the options below change single ones."""
    seed: tuple[int, ...] = (0,)
    """One or several; each is a run."""
    order: Annotated[OptionalText, tyro.conf.arg(help=ORDER_HELP)] = None
    evaluate_on: EvaluatedOn = "test"
    """Choose settings on validation (cut out of training); test is for published figures."""
    budget: str
    """What the memory may hold: images (2000), images a class (20/class), bytes (6MB), or all."""
    codec: str
    """How exemplars are stored: raw, png, webp-lossless, jpeg:75, klt:32, resize:24+jpeg:75, ..."""
    infer_through_codec: bool = False
    """Classify images as the codec would give them back."""
    input_mean: InputMean = "dataset"
    """Whose mean image is subtracted from every input. That of the whole data set, future classes
    included, is what iCaRL's authors take. Pretrained networks have constants of their own."""
    image_size: OptionalInteger = None
    """Side in pixels that a folder's photographs are brought to. Default: 64, of ImageNet 224."""
    images_per_class: OptionalInteger = None
    """Training images of a class that are used, the first ones. Default: the preset's, or all."""
    device: str = "auto"
    precision: Precision = "auto"
    """Precision of training. auto takes bf16 where the hardware has instructions for it."""
    settings: S
    """Settings of the method."""


@dataclass(frozen=True, kw_only=True)
class GridOptions(ExecutionOptions):
    """All runs that files list; what is finished is skipped, and so is what another process does:
    start the same command several times to do several runs at once."""

    grid: tuple[Path, ...]
    """YAML with `runs`, a list of mappings: method, stream, preset and whatever differs from it.
    A list as value stands for one run with each of its items."""


def bench(words: Sequence[str]) -> None:
    """One run a seed, or a grid of runs."""
    if any(word.split("=")[0] == "--grid" for word in words):
        grid_options = tyro.cli(GridOptions, args=words, prog="engram bench")
        if not grid_options.grid:
            raise UserError("--grid names no file. Give one or more: engram bench --grid FILE.")
        _run_all(_all_of(grid_options.grid), grid_options)
        return
    if words and words[0] in ("-h", "--help"):
        print(BENCH_HELP, end="")
        return
    if not words or words[0].startswith("-"):
        raise UserError(
            f"engram bench wants a method first: {', '.join(sorted(METHODS))}; or --grid FILE."
        )
    method = words[0]
    options = _bench_options(method, words[1:])
    given = {
        name: getattr(options, name)
        for name in inspect.signature(configured).parameters.keys() - {"method", "seed"}
    }
    configs = [configured(method, seed=seed, **given) for seed in options.seed]
    _run_all(configs, options)


def _all_of(grids: Sequence[Path]) -> list[RunConfig]:
    """The runs of all grids, each once."""
    runs = [config for grid in grids for config in read_grid(grid)]
    return list({folder_name(config): config for config in runs}.values())


def _bench_options(method: str, words: Sequence[str]) -> BenchOptions[Any]:
    """Parse the options of a method, whose defaults are those of the preset that `words` name."""
    kind: Any = method_class(method).Config
    preset = _value_of("--preset", words) or "paper"
    given = load_preset(method, preset)
    defaults = BenchOptions(
        stream=tyro.MISSING,
        preset=preset,
        budget=given.budget,
        codec=given.codec,
        precision=given.precision,
        settings=preset_settings(method, preset),
    )
    return tyro.cli(
        BenchOptions[kind],
        default=defaults,
        args=words,
        prog=f"engram bench {method}",
        config=(tyro.conf.OmitArgPrefixes,),
    )


def _value_of(option: str, words: Sequence[str]) -> str | None:
    """The value of an option that has to be known before the others can be parsed; the last one
    where it is given several times."""
    found = None
    for word, following in itertools.pairwise([*words, ""]):
        if word == option:
            found = following
        elif word.startswith(f"{option}="):
            found = word.partition("=")[2]
    return found


def _run_all(configs: Sequence[RunConfig], options: ExecutionOptions) -> None:
    """Check all runs, do them under one progress bar, print their table, and write reports.

    Raises:
        UserError: none can be done, or, at the end, some could not.
    """
    if not configs:
        raise UserError("There is no run to do: name at least one --seed.")
    check_folder(options.out)
    if options.publish is not None:
        check_folder(options.publish)
        configs = _unpublished(configs, options.publish)
        if not configs:
            print(f"Nothing to do: {options.publish} has all of these runs.")
            return
        _warn_of_changed_files()
    for config in configs:
        check(config, options.out)
    done, failed = _each_done(configs, options)
    print_comparison(list(done.values()))
    report_path = write_report(options.out) if len(configs) > 1 else next(iter(done))
    print(f"Report: {report_path.resolve().as_uri()}")
    if failed:
        raise UserError(
            f"{len(failed)} of {len(configs)} runs failed and are not in the report: "
            f"{', '.join(failed)}. What went wrong stands above."
        )


def _each_done(
    configs: Sequence[RunConfig], options: ExecutionOptions
) -> tuple[dict[Path, dict[str, Any]], list[str]]:
    """The summaries of runs that are done now, by their reports, and the names of those that have
    failed. One that cannot be done does not keep the others from it.

    Raises:
        UserError: why the last one cannot be done, where none could.
    """
    execution = Execution(
        batchwise=options.strict_memory, strict=options.strict, keep_models=options.keep_models
    )
    done: dict[Path, dict[str, Any]] = {}
    failed: list[str] = []
    with RunProgress(len(configs)) as progress:
        for config in configs:
            try:
                folder, summary = run(config, options.out, progress, execution)
                page = write_report(folder)
                if options.publish is not None:
                    _publish(folder, _copy_of(config, options.publish))
                done[page] = summary
                progress.end()
            except UserError as error:
                if config is configs[-1] and not done:
                    raise
                if not isinstance(error, OccupiedError):
                    failed.append(folder_name(config))
                progress.skip(str(error))
    return done, failed


def _warn_of_changed_files() -> None:
    """Say before a run, and not when it is published, that its code will not be found again."""
    if (here := commit()) and here.endswith("-dirty"):
        warnings.warn(
            f"Files of engram have changed since their last commit, so summaries will name {here}, "
            "by which nobody finds this code again. Commit before a run that is to be published.",
            stacklevel=2,
        )


def _unpublished(configs: Sequence[RunConfig], publish: Path) -> list[RunConfig]:
    return [config for config in configs if not _published(config, _copy_of(config, publish))]


def _copy_of(config: RunConfig, publish: Path) -> Path:
    return publish / config.method / f"{folder_name(config)}.json"


def _published(config: RunConfig, copy: Path) -> bool:
    """Whether a run of this configuration has been published as `copy`.

    Raises:
        UserError: the file there is of another configuration, or no summary.
    """
    if not copy.exists():
        return False
    try:
        there = dict(json.loads(copy.read_text())["config"])
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{copy} is not the summary of a run. Remove it to publish anew."
        ) from error
    elsewhere = {"device": config.device, "precision": config.precision}
    if other := difference({**there, **elsewhere}, config):
        raise UserError(
            f"{copy} was published with other settings than {copy.stem} has now: {other.name} is "
            f"{other.there} there and {other.here} here. Remove it to publish anew."
        )
    return True


def _publish(folder: Path, copy: Path) -> None:
    copy.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(copy, (folder / "summary.json").read_bytes())


@dataclass(frozen=True, kw_only=True)
class ReportOptions:
    """One HTML report on a run, or on several, compared."""

    folder: tyro.conf.Positional[Path]
    """A run's folder, or one that holds several."""
    against: OptionalText = None
    """A setting's label in the report, without a class order, or how the label begins: shows what
    the others gain over it, over pairs of runs, with confidence intervals."""


def report(words: Sequence[str]) -> None:
    """One report on a run, or on several."""
    options = tyro.cli(ReportOptions, args=words, prog="engram report")
    path = write_report(options.folder, options.against)
    print(f"Report: {path.resolve().as_uri()}")


def methods(words: Sequence[str]) -> None:
    """What there is to choose from."""
    tyro.cli(print_methods, args=words, prog="engram methods")


def doctor(words: Sequence[str]) -> None:
    """What a result here depends on, and what is missing."""
    print_facts(tyro.cli(diagnosis, args=words, prog="engram doctor"))
