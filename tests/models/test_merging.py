"""Merging against what can be worked out by hand, and against peft's functions."""

from __future__ import annotations

import importlib.util
import math
import types
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from engram.errors import UserError
from engram.methods.lae import LAEConfig
from engram.models.merging import (
    MERGES,
    MergeSettings,
    create_merge,
    dropped,
    max_abs,
    ties,
    trimmed,
)
from engram.seeding import generator

SETTINGS = MergeSettings(retention=0.9, density=0.5, strength=1.0, seed=0)

Module = dict[str, Tensor]


def merged(
    text: str, reference: Module, offline: Module, online: Module, task: int = 1, **settings: float
) -> Module:
    merge = create_merge(text, replace(SETTINGS, **settings))
    return merge.merged(reference, offline, online, task)


def module(seed: int, spread: float = 1.0) -> dict[str, Tensor]:
    source = generator(seed)
    shapes = {"down.weight": (5, 32), "down.bias": (5,), "scale": (), "up.weight": (32, 5)}
    return {name: spread * torch.randn(shape, generator=source) for name, shape in shapes.items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return all(torch.allclose(one[name], tensor, atol=1e-6) for name, tensor in other.items())


@pytest.fixture(scope="module")
def merge_utils() -> types.ModuleType:
    """peft's functions, which need nothing but torch; the package itself wants transformers."""
    package = importlib.util.find_spec("peft")
    assert package is not None, "peft is not installed: make test installs it"
    assert package.origin is not None
    path = Path(package.origin).parent / "utils" / "merge_utils.py"
    spec = importlib.util.spec_from_file_location("merge_utils", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_ties_by_hand() -> None:
    vectors = torch.tensor([[4.0, -3.0, 0.1, 2.0], [2.0, 5.0, 0.2, -0.1]])
    # Half is kept: [4, -3, 0, 0] and [2, 5, 0, 0]; signs +, +, and the majority's.
    assert ties(vectors, 0.5).tolist() == [3.0, 5.0, 0.0, 0.0]
    everything = ties(vectors, 1.0)
    assert torch.allclose(everything, torch.tensor([3.0, 5.0, 0.15, 2.0]))


def test_a_tie_takes_the_majority_sign() -> None:
    vectors = torch.tensor([[1.0, -2.0, -3.0], [-1.0, -2.0, -3.0]])
    assert ties(vectors, 1.0).tolist() == [-1.0, -2.0, -3.0]


@pytest.mark.filterwarnings("ignore:The density 1.0 is greater")
@pytest.mark.parametrize("density", [0.1, 0.2, 0.5, 0.8, 1.0])
def test_flat_vectors_merge_as_in_peft(merge_utils: types.ModuleType, density: float) -> None:
    vectors = torch.randn(2, 1000, generator=generator(0))
    both = torch.ones(2)
    theirs = merge_utils.ties(list(vectors), both, density)
    assert torch.allclose(ties(vectors, density), theirs, atol=1e-6)
    theirs = merge_utils.magnitude_prune(list(vectors), both, density) / 2
    assert torch.allclose(trimmed(vectors, density).mean(0), theirs, atol=1e-6)


def test_entries_are_dropped_as_in_peft_but_for_the_dice(merge_utils: types.ModuleType) -> None:
    vectors = torch.ones(2, 20_000)
    ours = dropped(vectors, 0.3, generator(0))
    theirs = merge_utils.prune(vectors[0], 0.3, "random", rescale=True)
    assert ours.unique().tolist() == pytest.approx(theirs.unique().tolist())
    assert float((ours > 0).float().mean()) == pytest.approx(0.3, abs=0.02)


def test_ties_is_as_strong_as_is_asked_for() -> None:
    reference, offline, online = module(0, 0.01), module(1), module(2)
    once = merged("ties", reference, offline, online)
    (weak,) = LAEConfig(merge=("ties",), strength=0.25).merges(seed=0).values()
    found = weak.merged(reference, offline, online, 1)
    for name in ("down.weight", "up.weight"):
        change = once[name] - reference[name]
        assert torch.allclose(found[name], reference[name] + 0.25 * change, atol=1e-6)
    assert torch.equal(found["down.bias"], once["down.bias"])


@pytest.mark.parametrize("text", [*MERGES, "ties:0.2", "ties:1", "magnitude:0.2"])
def test_scales_and_biases_never_vanish(text: str) -> None:
    offline, online = module(1), module(2)
    found = merged(text, module(0, 0.01), offline, online)
    assert found.keys() == offline.keys()
    for name in ("scale", "down.bias"):
        low = torch.minimum(offline[name], online[name])
        high = torch.maximum(offline[name], online[name])
        assert ((found[name] >= low - 1e-6) & (found[name] <= high + 1e-6)).all()
        assert found[name].shape == offline[name].shape


@pytest.mark.parametrize(
    "text", ["ema", "ema-per-task", "mean", "ties:1", "magnitude:1", "max-abs"]
)
def test_identical_modules_merge_to_themselves(text: str) -> None:
    assert same(merged(text, module(0), module(1), module(1), 3), module(1))


@pytest.mark.parametrize("text", [*MERGES, "ties:0.2", "ties:1", "magnitude:0.2"])
def test_modules_that_never_moved_stay_the_reference(text: str) -> None:
    assert same(merged(text, module(0), module(0), module(0)), module(0))


def test_the_reference_is_what_differences_are_taken_from() -> None:
    """LoRA starts at random: trimming raw weights would cut its start, not what was learnt."""
    reference = module(0, spread=10.0)
    offline = {name: tensor + 0.1 * module(1)[name] for name, tensor in reference.items()}
    online = {name: tensor + 0.1 * module(2)[name] for name, tensor in reference.items()}
    found = merged("ties", reference, offline, online)
    moved = torch.cat([(found[n] - reference[n]).flatten() for n in ("down.weight", "up.weight")])
    assert moved.abs().max() < 1
    assert 0.5 < float((moved.abs() > 1e-4).float().mean()) < 0.85


def test_the_trim_has_one_threshold_over_all_matrices() -> None:
    reference = {name: torch.zeros_like(tensor) for name, tensor in module(0).items()}
    moved = module(1)
    moved["up.weight"] *= 1e-3
    found = merged("ties:0.4", reference, moved, moved)
    assert not found["up.weight"].any()
    assert int((found["down.weight"] != 0).sum()) == 2 * 160 * 4 // 10


def test_a_running_mean_is_the_mean() -> None:
    modules = [module(seed) for seed in range(5)]
    offline = modules[0]
    for task, online in enumerate(modules[1:], start=1):
        offline = merged("mean", module(9), offline, online, task)
    mean = {name: torch.stack([m[name] for m in modules]).mean(0) for name in offline}
    assert same(offline, mean)


@given(steps=st.integers(1, 20_000), retention=st.floats(0.05, 0.999))
def test_retention_does_not_depend_on_the_number_of_steps(steps: int, retention: float) -> None:
    ema = create_merge("ema", replace(SETTINGS, retention=retention))
    assert ema.retained(1 / steps) ** steps == pytest.approx(retention, rel=1e-9)


def test_the_published_decay() -> None:
    """1,040 steps a task at 0.9999 retain 0.901 of the offline module; the default is 0.9."""
    assert LAEConfig().retention == pytest.approx(0.9999**1040, abs=2e-3)
    ema = create_merge("ema", replace(SETTINGS, retention=0.9999**1040))
    assert ema.retained(1 / 1040) == pytest.approx(0.9999)


def test_max_abs_takes_the_larger() -> None:
    vectors = torch.tensor([[1.0, -5.0, 0.0], [-2.0, 4.0, 0.0]])
    assert max_abs(vectors).tolist() == [-2.0, -5.0, 0.0]


def test_the_dice_depend_on_seed_and_task() -> None:
    modules = module(0), module(1), module(2)
    first = merged("dare", *modules, seed=1)
    assert same(first, merged("dare", *modules, seed=1))
    assert not same(first, merged("dare", *modules, 2, seed=1))
    assert not same(first, merged("dare", *modules, seed=2))


@pytest.mark.parametrize("share", [0.0, -0.5, 1.5, math.nan])
@pytest.mark.parametrize("name", ["retention", "density"])
def test_shares_are_shares(name: str, share: float) -> None:
    with pytest.raises(UserError, match="above 0 and at most 1"):
        replace(SETTINGS, **{name: share})
