"""What a run is made of: frozen dataclasses, read from YAML and written to it.

A preset is a file `experiments/<method>/<preset>.yaml`; a run's resolved configuration stands in
its folder as `config.yaml`.
"""

from __future__ import annotations

import dataclasses
import math
import re
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from numbers import Integral, Real
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml

from engram.errors import UserError, unknown

__all__ = [
    "Precision",
    "Preset",
    "Schedule",
    "as_mapping",
    "check_fraction",
    "check_names",
    "check_not_negative",
    "check_positive",
    "check_share",
    "converted",
    "difference",
    "experiments_folder",
    "from_mapping",
    "leaves",
    "load_preset",
    "presets_of",
    "read_yaml",
    "setting",
    "to_yaml",
]

D = TypeVar("D")

Precision = Literal["auto", "bf16", "fp32"]

MERGE = "tag:yaml.org,2002:merge"
"""What YAML calls the key that takes over another mapping."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Schedule:
    """How long a stage trains, with which optimiser, and at which learning rates."""

    epochs: int | None = 70
    """Passes over the data. Either this or `updates` is given, and the other is None."""
    updates: int | None = None
    """A fixed number of optimiser steps, whatever the size of the data."""
    batch_size: int = 128
    drop_last: bool = True
    """Leave out an epoch's last batch where it is smaller than the others."""
    optimizer: Literal["sgd", "adam"] = "sgd"
    learning_rate: float = 2.0
    """The highest learning rate."""
    momentum: float = 0.9
    """Momentum of SGD; Adam has its usual constants."""
    nesterov: bool = False
    weight_decay: float = 2e-5
    """Weight decay of what is called a weight, in layers and norms. Biases, scales of modules and
    the tokens of a prefix have none."""
    decay: Literal["steps", "cosine", "constant"] = "steps"
    """How the learning rate falls. That of `cosine` is zero in the last update, so give it two."""
    milestones: tuple[float, ...] = (49, 63)
    """Epochs after which `steps` multiplies the learning rate by `factor`; those below 1 are shares
    of all epochs."""
    factor: float = 0.2
    warmup: float = 0.0
    """Share of the updates in which the learning rate rises linearly from zero; with `cosine` this
    is the one-cycle policy."""
    warmup_by: Literal["update", "epoch"] = "update"
    """Whether it rises with every update, or in equal steps, one an epoch."""

    def __post_init__(self) -> None:
        check_positive(self, "epochs", "updates", "batch_size", "learning_rate", "factor")
        if (self.epochs is None) == (self.updates is None):
            raise UserError(
                f"Give epochs or updates, not both or neither: epochs is {self.epochs}, updates is "
                f"{self.updates}. On the command line, --epochs None or --updates None drops one."
            )
        if self.decay == "steps" and max((0, *self.milestones)) > (self.epochs or math.inf):
            raise UserError(
                f"Milestones {', '.join(f'{m:g}' for m in self.milestones)} lie beyond the "
                f"{self.epochs} epochs. Give --milestones too; below 1 they are shares of them."
            )
        if self.epochs is None and self.decay == "steps":
            raise UserError("The milestones of decay steps count epochs, so it goes with epochs.")
        check_fraction(self, "momentum", "warmup", below_one=True)
        check_not_negative(self, "weight_decay")
        if self.nesterov and not (self.optimizer == "sgd" and self.momentum):
            raise UserError("nesterov is about the momentum of sgd: give both, or leave it out.")

    def split(self, share: float) -> tuple[Schedule | None, Schedule]:
        """Two schedules that together are as long: `share` of its epochs or updates, and the rest.

        Both are rounded; the rest is never empty, and a beginning that would be is None. Each goes
        through the learning rates by itself, so that only a constant one stays what it was.
        """
        first = min(round(share * self.length), self.length - 1)
        if first < 1:
            return None, self
        return self._lasting(first), self._lasting(self.length - first)

    @property
    def length(self) -> int:
        """Epochs, or updates where it counts those."""
        return self.epochs or self.updates or 0

    def _lasting(self, amount: int) -> Schedule:
        """The same schedule with other epochs, or updates where it counts those."""
        if self.epochs is None:
            return dataclasses.replace(self, updates=amount)
        return dataclasses.replace(self, epochs=amount)


@dataclass(frozen=True, kw_only=True, slots=True)
class Preset:
    """A method's settings for a purpose, as the file in `experiments/` gives them.

    Attributes:
        reaches: what a run with it must show, on which stream. Its numbers are those of `results/`,
            but for what follows "The paper".
        budget: of the exemplar memory.
        images_per_class: training images of a class that are used; all where None.
        precision: of training; a preset that is for comparisons names one, so that they do not
            depend on the processor.
        settings: fields of the method's configuration that differ from its defaults.
    """

    reaches: Mapping[str, str]
    budget: str
    codec: str = "raw"
    images_per_class: int | None = None
    precision: Precision = "auto"
    settings: Mapping[str, Any]


def check_positive(config: Any, *names: str) -> None:
    """Refuse settings that are not above 0, NaN among them; None is a setting that is not given.

    Raises:
        UserError: one is not, with its name.
    """
    for name in names:
        value = getattr(config, name)
        if value is not None and not value > 0:
            raise UserError(f"{name} must be above 0, not {value}.")


def check_not_negative(config: Any, *names: str) -> None:
    """Refuse settings below 0, and NaN; None is a setting that is not given.

    Raises:
        UserError: one is, with its name.
    """
    for name in names:
        value = getattr(config, name)
        if value is not None and not value >= 0:
            raise UserError(f"{name} must not be negative, but is {value}.")


def check_share(config: Any, *names: str) -> None:
    """Refuse settings that are no share of anything: outside (0, 1], or NaN.

    Raises:
        UserError: one is none, with its name.
    """
    for name in names:
        if not 0 < getattr(config, name) <= 1:
            raise UserError(f"{name} must be above 0 and at most 1, not {getattr(config, name)}.")


def check_fraction(config: Any, *names: str, below_one: bool = False) -> None:
    """Refuse settings outside [0, 1], or [0, 1) if `below_one`; NaN too.

    Raises:
        UserError: one is, with its name.
    """
    for name in names:
        value = getattr(config, name)
        if not (0 <= value < 1 if below_one else 0 <= value <= 1):
            end = ")" if below_one else "]"
            raise UserError(f"{name} must be in [0, 1{end}, not {value}.")


def as_mapping(config: Any) -> dict[str, Any]:
    """A dataclass as plain dictionaries, lists and scalars, in the order of its fields."""

    mapping: dict[str, Any] = _plain(dataclasses.asdict(config))
    return mapping


def _plain(value: Any) -> Any:
    """Tuples as lists, within mappings too: what YAML and JSON give back."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [_plain(item) for item in value]
    return value


def from_mapping(kind: type[D], mapping: Mapping[str, Any], where: str) -> D:
    """A dataclass from plain values; what the mapping leaves out has its default.

    A dataclass within it begins with what the outer one has there by default.

    Args:
        where: names the source in messages.

    Raises:
        UserError: a key that is no field, with the nearest one; a value of another type; a field
            without default that is missing.
    """
    hints = typing.get_type_hints(kind)
    fields = {field.name: field for field in dataclasses.fields(typing.cast(Any, kind))}
    values: dict[str, Any] = {}
    for key, value in mapping.items():
        if key not in fields:
            raise unknown(f"key in {where}:", str(key), fields)
        if isinstance(value, Mapping) and dataclasses.is_dataclass(hints[key]):
            value = {**_default_of(fields[key]), **value}
        values[key] = converted(hints[key], value, f"{where}: {key}")
    missing = [
        name
        for name, field in fields.items()
        if name not in values
        and field.default is dataclasses.MISSING
        and field.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise UserError(f"{where}: {', '.join(missing)} missing.")
    return kind(**values)


def _default_of(field: dataclasses.Field[Any]) -> dict[str, Any]:
    """What a field that holds a dataclass has by default; nothing where it has no default."""
    if field.default_factory is dataclasses.MISSING:
        return {}
    return as_mapping(field.default_factory())


def converted(hint: Any, value: Any, where: str) -> Any:
    """A plain value as the annotated type wants it; a number may stand where text is meant.

    Raises:
        UserError: it does not fit, with the place.
    """
    if hint is Any:
        return value
    origin, options = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint) and isinstance(value, Mapping):
        return from_mapping(typing.cast(Any, hint), value, where)
    if origin is Literal and value in options:
        return value
    if origin is tuple and isinstance(value, (list, tuple)):
        return tuple(converted(options[0], item, where) for item in value)
    if origin in (types.UnionType, typing.Union):
        if value is None:
            return None
        return converted(options[0], value, where)
    if origin is not None and isinstance(origin, type) and isinstance(value, origin):
        return value
    # Numbers of NumPy's are such too, which YAML does not know.
    if hint is int and isinstance(value, Integral) and not isinstance(value, bool):
        return int(value)
    if hint is float and isinstance(value, Real) and not isinstance(value, bool):
        return float(value)
    if hint is float and isinstance(value, str) and re.fullmatch(r"\d+e-?\d+", value):
        return float(value)  # YAML takes 2e-5 for text and 2.0e-5 for a number
    if hint in (str, bool) and type(value) is hint:
        return value
    if hint is str and type(value) is int:
        return str(value)
    if origin is Literal and isinstance(value, str):
        raise unknown(f"value in {where}:", value, map(str, options))
    wanted = getattr(hint, "__name__", str(hint))
    raise UserError(f"{where} must be of type {wanted}, not {value!r}.")


def leaves(mapping: Mapping[str, Any]) -> dict[str, Any]:
    """The values of nested mappings by their own names, which are unique in a configuration."""
    return dict(_leaves(mapping))


def check_names(config: Any) -> None:
    """See to it that no two settings have one name, by which options and folders of runs know them.

    Raises:
        ValueError: two do, which is a mistake of whoever wrote the dataclass.
    """
    names = [name for name, _ in _leaves(as_mapping(config))]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"A configuration has two settings called {twice[0]}.")


def _leaves(mapping: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for key, value in mapping.items():
        if isinstance(value, Mapping):
            yield from _leaves(value)
        else:
            yield key, value


def setting(name: str, value: Any) -> str:
    """How a setting with its value is written: `name=value`, without spaces."""
    text = ",".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
    return f"{name}={text}".replace(" ", "")


@dataclass(frozen=True, slots=True)
class Difference:
    """A setting that two configurations set differently."""

    name: str
    there: Any
    here: Any


def difference(there: Mapping[str, Any], config: Any) -> Difference | None:
    """The first setting that a configuration read from a file and a dataclass set differently.

    A setting that the file does not hold was added after it was written, and had its default.
    """
    written, here = {**leaves(_defaults(config)), **leaves(there)}, leaves(as_mapping(config))
    for name in {**here, **written}:
        if written.get(name) != here.get(name):
            return Difference(name, written.get(name), here.get(name))
    return None


def _defaults(config: Any) -> dict[str, Any]:
    """What a dataclass, and those in it, would hold in the fields that have defaults.

    One within it begins with what the outer one has there by default, as for `from_mapping`.
    """
    found: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            found[field.name] = _default_of(field) or _defaults(value)
        elif field.default is not dataclasses.MISSING:
            found[field.name] = _plain(field.default)
    return found


def to_yaml(mapping: Mapping[str, Any]) -> str:
    """Plain values as YAML text, in their own order."""
    text: str = yaml.safe_dump(dict(mapping), sort_keys=False, allow_unicode=True)
    return text


def experiments_folder() -> Path:
    """The presets: inside an installed package, beside `src` in a checkout."""
    installed = Path(__file__).parent / "experiments"
    return installed if installed.is_dir() else Path(__file__).parents[2] / "experiments"


def presets_of(method: str) -> dict[str, Path]:
    """The preset files of a method, by name."""
    return {path.stem: path for path in sorted((experiments_folder() / method).glob("*.yaml"))}


def load_preset(method: str, name: str) -> Preset:
    """The preset of that name.

    Raises:
        UserError: there is none, with the nearest one.
    """
    known = presets_of(method)
    if not known:
        raise UserError(f"{method} has no presets yet: write experiments/{method}/{name}.yaml.")
    if name not in known:
        raise unknown(f"preset of {method}", name, known)
    return from_mapping(Preset, read_yaml(known[name]), f"{method}/{known[name].name}")


class _EachOnce(yaml.SafeLoader):
    """YAML in which a key that is there twice is a mistake, and not the last one."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if key.tag != MERGE]
        if twice := [key for key in keys if keys.count(key) > 1]:
            raise yaml.constructor.ConstructorError(
                None, None, f'"{twice[0]}" is there twice', node.start_mark
            )
        return super().construct_mapping(node, deep)


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file that holds one mapping.

    Raises:
        UserError: the file is missing or holds something else.
    """
    try:
        content = yaml.load(path.read_bytes(), _EachOnce)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}).") from error
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} must hold a mapping of keys to values.")
    return content
