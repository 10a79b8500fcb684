"""Configurations: what YAML may say, and that every preset is valid."""

from __future__ import annotations

import importlib.util
import math
import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import yaml

from engram.bench import check
from engram.config import (
    Schedule,
    as_mapping,
    check_names,
    difference,
    from_mapping,
    load_preset,
    presets_of,
    read_yaml,
    to_yaml,
)
from engram.data.augment import Augmentation
from engram.data.codecs import create_codec
from engram.errors import UserError
from engram.memory import Budget
from engram.methods import METHODS
from engram.methods.icarl import ICaRLConfig
from engram.methods.lae import LAEConfig
from engram.methods.ranpac import RanPACConfig
from engram.runs import configured, folder_name, preset_settings, read_grid, recorded

ROOT = Path(__file__).parents[1]
EXPERIMENTS = ROOT / "experiments"
PRESETS = [(method, preset) for method in METHODS for preset in presets_of(method)]


@dataclass(frozen=True, kw_only=True)
class Example:
    name: str
    rate: float = 0.5
    sizes: tuple[int, ...] = ()
    mode: Literal["fast", "slow"] = "fast"
    limit: int | None = None
    schedule: Schedule = field(default_factory=Schedule)


@pytest.mark.parametrize(("method", "preset"), PRESETS)
def test_every_preset_is_valid_and_says_what_it_reaches(method: str, preset: str) -> None:
    given = load_preset(method, preset)
    assert given.reaches
    Budget.parse(given.budget)
    settings = preset_settings(method, preset)
    kind = type(settings)
    assert from_mapping(kind, yaml.safe_load(yaml.safe_dump(as_mapping(settings))), "") == settings


@pytest.mark.parametrize("method", METHODS)
def test_no_two_settings_of_a_method_have_one_name(method: str) -> None:
    check_names(configured(method, "digits/b0-inc2", "demo"))


def test_two_settings_of_one_name_are_not_taken_for_each_other() -> None:
    @dataclass(frozen=True)
    class Twice:
        schedule: Schedule
        first_schedule: Schedule

    with pytest.raises(ValueError, match="two settings called epochs"):
        check_names(Twice(Schedule(), Schedule()))


@pytest.mark.parametrize("method", METHODS)
def test_every_method_has_the_usual_presets(method: str) -> None:
    assert {"paper", "laptop", "quick", "demo"} <= presets_of(method).keys()


def test_a_preset_that_does_not_exist_names_the_nearest_or_what_to_write() -> None:
    with pytest.raises(UserError, match=r'Unknown preset of icarl "labtop".* "laptop"'):
        load_preset("icarl", "labtop")
    with pytest.raises(UserError, match=r"wa has no presets yet: write experiments/wa/paper\.yaml"):
        load_preset("wa", "paper")


def test_every_method_but_the_bounds_has_a_page_that_the_readme_names() -> None:
    methods = METHODS.keys() - {"finetune", "joint"}
    assert methods <= {path.stem for path in (ROOT / "docs" / "methods").glob("*.md")}
    linked = re.findall(r"\(docs/methods/([\w-]+)\.md", (ROOT / "README.md").read_text())
    assert methods <= set(linked)


def test_the_paper_preset_is_the_recipe() -> None:
    settings = preset_settings("icarl", "paper")
    assert settings == METHODS["icarl"].Config()
    assert settings.schedule == Schedule(
        epochs=70,
        batch_size=128,
        learning_rate=2.0,
        momentum=0.9,
        weight_decay=2e-5,
        milestones=(49, 63),
        factor=0.2,
    )
    assert load_preset("icarl", "paper").budget == "2000"


def test_values_are_converted() -> None:
    mapping = {"name": 7, "rate": 2, "sizes": [1, 2], "mode": "slow", "limit": None}
    expected = Example(name="7", rate=2.0, sizes=(1, 2), mode="slow")
    assert from_mapping(Example, mapping, "here") == expected


def test_a_run_that_is_configured_in_python_is_checked_like_one_from_a_file() -> None:
    usual = preset_settings("icarl", "demo")
    schedule = replace(usual.schedule, learning_rate=np.float32(0.5), batch_size=np.int64(16))
    config = configured(
        "icarl",
        "digits/b0-inc2",
        "demo",
        seed=np.int64(1),
        budget=100,  # type: ignore[arg-type]
        settings=replace(usual, schedule=schedule),
    )
    assert recorded(yaml.safe_load(to_yaml(as_mapping(config))), "here") == config
    assert (config.seed, config.order, config.budget) == (1, "seed1", "100")
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"evaluate_on": "val"}, 'evaluate_on: "val"'),
        ({"input_mean": "data-set"}, 'input_mean: "data-set"'),
        ({"settings": replace(usual, classifier="NME")}, 'classifier: "NME"'),
        ({"settings": {"outputs": 10}}, "icarl is set by ICaRLConfig, not by dict"),
        ({"seed": "one"}, "seed must be of type int"),
        ({"images_per_class": 0}, "images_per_class must be 1 or more, not 0"),
    ]
    for given, message in wrong:
        with pytest.raises(UserError, match=message):
            configured("icarl", "digits/b0-inc2", "demo", **given)


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        ({"name": "a", "rat": 1}, 'Unknown key in here: "rat". Perhaps you meant "rate"'),
        ({}, "here: name missing"),
        ({"name": [3]}, "here: name must be of type str, not [3]"),
        ({"name": "a", "schedule": {"epochs": 0}}, "epochs must be above 0, not 0"),
        ({"name": "a", "schedule": {"warmup": 1}}, "warmup must be in [0, 1), not 1.0"),
        ({"name": "a", "schedule": {"nesterov": True, "momentum": 0}}, "the momentum of sgd"),
        ({"name": "a", "rate": "fast"}, "rate must be"),
        ({"name": "a", "rate": True}, "rate must be"),
        ({"name": "a", "sizes": [1, "b"]}, "sizes must be"),
        ({"name": "a", "sizes": 4}, "sizes must be"),
        ({"name": "a", "mode": "fsat"}, '"fast"'),
        ({"name": "a", "limit": "x"}, "limit must be"),
        ({"name": "a", "schedule": {"epoch": 3}}, 'Perhaps you meant "epochs"'),
    ],
)
def test_wrong_values_are_named(mapping: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as error:
        from_mapping(Example, mapping, "here")
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("kind", "name", "message"),
    [
        (Schedule, "learning_rate", "must be above 0, not nan"),
        (Schedule, "factor", "must be above 0, not nan"),
        (Schedule, "weight_decay", "must not be negative, but is nan"),
        (Schedule, "momentum", "must be in [0, 1), not nan"),
        (ICaRLConfig, "temperature", "must be above 0, not nan"),
        (ICaRLConfig, "codec_augmentation", "must be in [0, 1], not nan"),
        (RanPACConfig, "temperature", "must be above 0, not nan"),
        (LAEConfig, "ridge_temperature", "must be above 0, not nan"),
        (LAEConfig, "strength", "must be above 0, not nan"),
        (LAEConfig, "density", "must be above 0 and at most 1, not nan"),
        (Augmentation, "least_area", "must be above 0 and at most 1, not nan"),
    ],
)
def test_what_is_no_number_is_in_no_range(kind: Any, name: str, message: str) -> None:
    with pytest.raises(UserError, match=re.escape(f"{name} {message}")):
        kind(**{name: math.nan})


def test_presets_travel_with_the_package() -> None:
    """The wheel takes the folder of presets into the package."""
    import tomllib

    build = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]
    assert build["targets"]["wheel"]["force-include"] == {"experiments": "engram/experiments"}


def test_published_runs_are_valid() -> None:
    runs = read_grid(EXPERIMENTS / "grids" / "published.yaml")
    assert {run.method for run in runs} == METHODS.keys()
    assert {run.evaluate_on for run in runs} == {"test"}


@pytest.mark.parametrize("grid", ["memory_study", "equal_bytes", "pruning", "lae_study"])
def test_studies_are_valid(grid: str) -> None:
    for path in (EXPERIMENTS / grid).glob("*.yaml"):
        runs = read_grid(path)
        expected = "validation" if path.stem in ("choice", "pilot", "modules") else "test"
        assert {run.evaluate_on for run in runs} == {expected}
        assert len({folder_name(run) for run in runs}) == len(runs), "a run is listed twice"
        for run in runs:
            if importlib.util.find_spec("pillow_jxl") or not run.codec.startswith("jxl"):
                create_codec(run.codec, (32, 32))


def test_what_a_preset_leaves_out_is_the_method_s_own_default() -> None:
    found = from_mapping(LAEConfig, {"schedule": {"epochs": 2}, "modules": {"size": 7}}, "here")
    assert found.schedule == replace(LAEConfig().schedule, epochs=2)
    assert found.modules == replace(LAEConfig().modules, size=7)
    assert found.schedule.optimizer == "adam"


def test_a_setting_added_since_had_the_default_of_the_method() -> None:
    """LAE's schedule has defaults of its own; the length of a schedule is 70 epochs elsewhere."""
    config = LAEConfig()
    written = as_mapping(config)
    for name in ("decay", "epochs", "updates", "milestones"):
        del written["schedule"][name]
    assert from_mapping(LAEConfig, written, "here") == config
    assert difference(written, config) is None
    found = difference(written, replace(config, schedule=replace(config.schedule, epochs=3)))
    assert found is not None
    assert (found.name, found.there, found.here) == ("epochs", config.schedule.epochs, 3)


def test_a_schedule_is_split_by_epochs_or_by_updates() -> None:
    first, rest = Schedule(epochs=5, decay="constant").split(0.6)
    assert first is not None
    assert (first.epochs, rest.epochs) == (3, 2)
    first, rest = Schedule(epochs=None, updates=100, decay="cosine").split(0.25)
    assert first is not None
    assert (first.updates, rest.updates, rest.epochs) == (25, 75, None)
    assert Schedule(epochs=1, decay="constant").split(0.9)[0] is None
    assert Schedule(epochs=5, decay="constant").split(0.0)[0] is None


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"budget": ""}, '"" is not a budget'),
        ({"codec": ""}, 'Unknown codec ""'),
        ({"order": ""}, 'Unknown class order ""'),
        ({"seed": -1}, "seed must be from 0 to 4294967295, not -1"),
    ],
)
def test_what_is_empty_or_out_of_range_is_not_the_default(
    option: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        check(configured("icarl", "digits/b0-inc5", "demo", **option), tmp_path)


def test_a_key_that_is_there_twice_is_a_mistake(tmp_path: Path) -> None:
    path = tmp_path / "grid.yaml"
    path.write_text("runs:\n  - {method: icarl, seed: 0, seed: 1}\n")
    with pytest.raises(UserError, match='"seed" is there twice'):
        read_yaml(path)
