"""What a run is: its configuration, the name of its folder, and files that list many of them."""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_type_hints

from engram.config import (
    Precision,
    as_mapping,
    check_names,
    converted,
    from_mapping,
    leaves,
    load_preset,
    read_yaml,
    setting,
)
from engram.data.orders import order_label, resolved_order
from engram.data.stream import EvaluatedOn
from engram.engine.device import resolve_device, resolve_precision
from engram.errors import UserError, unknown
from engram.methods import checked_settings, method_class

__all__ = [
    "InputMean",
    "RunConfig",
    "configured",
    "folder_name",
    "preset_settings",
    "read_grid",
    "recorded",
]

LONGEST_NAME = 180
MOST_SEEDS = 2**32
"""As many as NumPy's generator of class orders takes."""

InputMean = Literal["dataset", "first-task"]


@dataclass(frozen=True, kw_only=True, slots=True)
class RunConfig:
    """Everything that a run's result depends on, but for the machine.

    Attributes:
        order: of the classes; see `engram.data.orders.class_order`.
        infer_through_codec: classify images as the codec would give them back.
        input_mean: "dataset" subtracts the mean image of all training images, as the paper does,
            future classes included; "first-task" that of the first task's.
        image_size: side in pixels that a folder's photographs are brought to.
        images_per_class: training images of a class that are used; all where None.
        settings: the method's own configuration.
    """

    method: str
    stream: str
    preset: str
    seed: int = 0
    order: str
    evaluate_on: EvaluatedOn = "test"
    budget: str
    codec: str
    infer_through_codec: bool = False
    input_mean: InputMean = "dataset"
    image_size: int | None = None
    images_per_class: int | None = None
    device: str
    precision: Precision
    settings: Any

    def __post_init__(self) -> None:
        if not 0 <= self.seed < MOST_SEEDS:
            raise UserError(f"seed must be from 0 to {MOST_SEEDS - 1}, not {self.seed}.")
        if self.images_per_class is not None and self.images_per_class < 1:
            raise UserError(f"images_per_class must be 1 or more, not {self.images_per_class}.")


def configured(
    method: str,
    stream: str,
    preset: str,
    *,
    seed: int = 0,
    order: str | None = None,
    evaluate_on: EvaluatedOn = "test",
    budget: str | None = None,
    codec: str | None = None,
    infer_through_codec: bool = False,
    input_mean: InputMean = "dataset",
    image_size: int | None = None,
    images_per_class: int | None = None,
    device: str = "auto",
    precision: Precision | None = None,
    settings: Any = None,
) -> RunConfig:
    """The configuration of a run, with everything resolved that was left open.

    Args:
        order: a name, or a file (see `engram.data.orders.resolved_order`); the one that `seed`
            gives where None.
        budget: the preset's where None; `codec`, `images_per_class` and `precision` likewise.
        settings: the method's own configuration; the preset's where None.

    Raises:
        UserError: an unknown method, preset or device, or a value that a setting cannot have.
    """
    method_class(method)
    given = load_preset(method, preset)
    place = resolve_device(device)
    if settings is None:
        settings = preset_settings(method, preset)
    if images_per_class is None:
        images_per_class = given.images_per_class
    chosen = {
        "method": method,
        "stream": stream,
        "preset": preset,
        "seed": seed,
        "order": f"seed{seed}" if order is None else resolved_order(order),
        "evaluate_on": evaluate_on,
        "budget": given.budget if budget is None else budget,
        "codec": given.codec if codec is None else codec,
        "infer_through_codec": infer_through_codec,
        "input_mean": input_mean,
        "image_size": image_size,
        "images_per_class": images_per_class,
        "device": str(place),
        "precision": resolve_precision(precision or given.precision, place),
        "settings": checked_settings(method, settings),
    }
    config = from_mapping(RunConfig, chosen, "the run")
    check_names(config)
    return config


def recorded(written: Mapping[str, Any], where: str) -> RunConfig:
    """The configuration of a run as `config.yaml` in its folder has it.

    Args:
        where: names the source in messages.

    Raises:
        UserError: something is missing, or is not what this version knows.
    """
    kind = method_class(str(written.get("method"))).Config
    settings = converted(kind, written.get("settings"), f"{where}: settings")
    return from_mapping(RunConfig, {**written, "settings": settings}, where)


def preset_settings(method: str, preset: str) -> Any:
    """The method's configuration as the preset gives it.

    Raises:
        UserError: an unknown method or preset, or a file that does not fit the method.
    """
    kind = method_class(method).Config
    return from_mapping(kind, load_preset(method, preset).settings, f"{method}/{preset}.yaml")


def folder_name(config: RunConfig) -> str:
    """A name that tells the run from others: what differs from its preset is spelt out."""
    preset = load_preset(config.method, config.preset)
    parts = [config.method, config.stream.strip("./").replace("/", "-"), config.preset]
    if config.order != f"seed{config.seed}":
        parts.append(order_label(config.order))
    parts.append(f"s{config.seed}")
    if config.evaluate_on != "test":
        parts.append(config.evaluate_on)
    if config.budget != preset.budget:
        parts.append(config.budget.replace("/", "-per-"))
    if config.codec != preset.codec:
        parts.append(config.codec.replace(":", ""))
    if config.infer_through_codec:
        parts.append("infer-through-codec")
    if config.input_mean != "dataset":
        parts.append(config.input_mean)
    if config.image_size is not None:
        parts.append(f"{config.image_size}px")
    if config.images_per_class != preset.images_per_class:
        parts.append(f"{config.images_per_class}-images-a-class")
    if config.precision != resolve_precision(preset.precision, resolve_device(config.device)):
        parts.append(config.precision)
    chosen = leaves(as_mapping(config.settings))
    usual = leaves(as_mapping(preset_settings(config.method, config.preset)))
    changed = {name: value for name, value in chosen.items() if value != usual[name]}
    parts += [setting(name, value) for name, value in changed.items()]
    name = re.sub(r"[/\\]", "-", "-".join(parts))
    if len(name) > LONGEST_NAME:
        digest = hashlib.sha256(name.encode()).hexdigest()[:12]
        return f"{name[:LONGEST_NAME]}-{digest}"
    return name


def read_grid(path: Path) -> list[RunConfig]:
    """The runs that a grid file lists.

    The file holds `runs`, a list of mappings. Keys are those of `configured` and the method's own
    settings; a value that is a list stands for one run with each of its items.

    Raises:
        UserError: the file is missing or wrong, with the place.
    """
    content = read_yaml(path)
    entries = content.get("runs")
    if set(content) != {"runs"} or not isinstance(entries, list) or not entries:
        raise UserError(f"{path} must hold one key, runs, with a list of runs.")
    for number, entry in enumerate(entries, start=1):
        if not isinstance(entry, dict):
            raise UserError(f"{path}: run {number} must be a mapping, not {entry!r}.")
        if empty := [key for key, value in entry.items() if value == []]:
            raise UserError(f"{path}: run {number}: {empty[0]} is a list of nothing.")
    return [
        _grid_run(dict(zip(entry, values, strict=True)), f"{path}: run {number}")
        for number, entry in enumerate(entries, start=1)
        for values in itertools.product(
            *(value if isinstance(value, list) else [value] for value in entry.values())
        )
    ]


def _grid_run(entry: dict[str, Any], where: str) -> RunConfig:
    """One run of a grid, from a mapping without lists."""
    for key in ("method", "stream", "preset"):
        if key not in entry:
            raise UserError(f"{where}: {key} missing.")
    method, preset = str(entry["method"]), str(entry["preset"])
    settings = as_mapping(preset_settings(method, preset))
    hints = get_type_hints(configured)
    hints = {key: hint for key, hint in hints.items() if key not in ("settings", "return")}
    general: dict[str, Any] = {}
    for key, value in entry.items():
        if not isinstance(key, str):
            raise UserError(f"{where}: {key!r} is no name of a setting.")
        if key in hints:
            general[key] = converted(hints[key], value, f"{where}: {key}")
        elif not _replace(settings, key, value):
            raise unknown(f"key in {where}:", key, [*hints, *leaves(settings)])
    kind = method_class(method).Config
    return configured(**general, settings=from_mapping(kind, settings, where))


def _replace(mapping: dict[str, Any], name: str, value: Any) -> bool:
    """Put a value in place of the leaf of that name; whether there is one."""
    if name in mapping and not isinstance(mapping[name], Mapping):
        mapping[name] = value
        return True
    return any(_replace(item, name, value) for item in mapping.values() if isinstance(item, dict))
