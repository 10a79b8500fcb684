"""Small data that every test may use, and a run that can be stopped."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sklearn.datasets
import torch
from hypothesis import settings
from torch import Tensor

from engram.bench import Progress
from engram.cli import main
from engram.data.benchmarks import load_dataset
from engram.data.images import ImageSet
from engram.engine.fit import EpochReport
from engram.files import load_tensors
from engram.learner import Learner
from engram.memory import Budget
from engram.methods.ranpac import RanPACConfig
from engram.models.adapters import ModuleConfig
from engram.models.pretrained import BackboneConfig, import_timm
from engram.runs import RunConfig, configured
from engram.task_learner import TaskLearner

# Small networks are slower on two threads than on one.
torch.set_num_threads(1)

# How long an example takes says nothing on a busy machine.
settings.register_profile("engram", deadline=None)
settings.load_profile("engram")


Command = Callable[..., tuple[int, str]]

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "der, pruned": ("der", {"keep": 0.5, "mask_gradient": "none"}),
    "der, bounded": ("der", {"max_parameters": "120k"}),
    "der, bounded to one extractor": ("der", {"max_parameters": "2400", "least_channels": 3}),
    "lae, several merges": (
        "lae",
        {"merge": ("ties", "ema", "mean"), "experts": ("offline", "ridge")},
    ),
    "icarl, by the network": ("icarl", {"classifier": "network", "distillation": "none"}),
    "icarl, on a transformer": ("icarl", {"backbone": "vit_micro_patch4_16"}),
    "der, on transformers": ("der", {"backbone": "vit_micro_patch4_16"}),
    "ranpac, adapted": ("ranpac", {"adapt": True, "projected": 100}),
    "der, by a weight": (
        "der",
        {"sparsity_weight": 0.1, "mask_gradient": "paper", "round_channels": 4},
    ),
    "lae, with a prefix": ("lae", {"modules": ModuleConfig(module="prefix", blocks="all")}),
    "lae, with convolutions": (
        "lae",
        {"modules": ModuleConfig(module="conv-adapter", place="both", blocks="all")},
    ),
    "lae, with lora": ("lae", {"modules": ModuleConfig(module="lora", blocks="all")}),
}
"""Methods with settings under which they do something else: they promise the same."""

IN_BFLOAT16: dict[str, tuple[str, dict[str, Any]]] = {
    "icarl, in bfloat16": ("icarl", {"precision": "bf16"}),
    "lae, in bfloat16": (
        "lae",
        {"modules": ModuleConfig(module="lora", blocks="all"), "precision": "bf16"},
    ),
}
"""The precision may change which bits come out, not that they are the same ones, nor that something
is learnt. (Without bfloat16 in the processor it is slow, so that no more is asked of these.)"""

SHORTENED: dict[str, Callable[[int], dict[str, Any]]] = {
    # Its second stage is as short as the first; a last batch would be much of so few images.
    "der": lambda updates: {"head_epochs": max(2, updates // 4), "schedule": {"drop_last": False}},
}
"""What a method wants beside a number of updates so that all of its stages are as short."""

TAUGHT_LITTLE = ("icarl, on a transformer", "der, on transformers")
"""Methods that promise no accuracy in a test: they stand on a transformer with random weights, and
a few updates, or none, teach it too little."""


class InterruptionError(Exception):
    """Stands for a kill in the middle of a run."""


class StopAfter(Progress):
    """Ends the run after a number of epochs and tasks, counted together."""

    def __init__(self, events: int) -> None:
        self.left = events

    def epoch(self, report: EpochReport, share: float) -> None:
        self._count()

    def task(self, index: int, results: Mapping[str, Any], share: float) -> None:
        self._count()

    def _count(self) -> None:
        self.left -= 1
        if self.left == 0:
            raise InterruptionError


class StopAtTask(Progress):
    """Ends the run when the first task has been learnt."""

    def task(self, index: int, results: Mapping[str, Any], share: float) -> None:
        raise InterruptionError


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest test first: begun last, it would leave all cores but one idle."""
    items.sort(key=lambda item: item.path.name != "test_device.py")


@pytest.fixture(scope="session", autouse=True)
def digits_are_read_once() -> Iterator[None]:
    """To read them takes longer than many a test."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sklearn.datasets, "load_digits", cache(sklearn.datasets.load_digits))
        yield


@pytest.fixture
def engram(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> Command:
    """Calls the command in an empty folder; its exit code, and all that it printed."""
    monkeypatch.chdir(tmp_path)

    def call(*words: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["engram", *words])
        code = 0
        try:
            main()
        except SystemExit as end:
            code = int(end.code or 0)
        captured = capfd.readouterr()
        return code, captured.out + captured.err

    return call


@pytest.fixture
def silent() -> Progress:
    return Progress()


def tiny(method: str, stream: str = "digits/3,2", updates: int = 8, **options: Any) -> RunConfig:
    """A run of a fraction of a second: a small network, a few updates, float32 if nothing else
    is said."""
    name, varied = (VARIANTS | IN_BFLOAT16).get(method, (method, {}))
    knobs = {**SHORTENED.get(name, lambda updates: {})(updates), **varied}
    options = {"precision": knobs.pop("precision", "fp32"), **options}
    config = configured(name, stream, "demo", device="cpu", **options)
    if hasattr(config.settings, "schedule"):  # it trains
        short = {"epochs": None, "updates": updates, "batch_size": 128}
        short |= knobs.get("schedule", {})
        knobs["schedule"] = replace(config.settings.schedule, **short)
    return replace(config, settings=replace(config.settings, **knobs))


def learner_of(config: RunConfig, budget: str | None = None, **options: Any) -> TaskLearner:
    """What learns in a run of digits."""
    return TaskLearner(
        config.method,
        config.settings,
        image_size=(8, 8),
        seed=config.seed,
        device=config.device,
        precision=config.precision,
        budget=Budget.parse(budget or config.budget),
        **options,
    )


def saved_state(run: Path) -> dict[str, Tensor]:
    """All that a run's folder holds of the network and of the memory."""
    (version,) = (run / "model").iterdir()
    weights, memory = (
        load_tensors(version / f"{name}.safetensors")[0] for name in ("weights", "memory")
    )
    return weights | memory


def same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    """Whether two states have the same names, and the same bits under each."""
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


@pytest.fixture
def random_images() -> Callable[..., ImageSet]:
    """Noise with labels: counts of each class, in order of label."""

    def make(*counts: int, size: int = 4, seed: int = 0) -> ImageSet:
        generator = torch.Generator().manual_seed(seed)
        shape = (sum(counts), size, size, 3)
        pixels = torch.randint(256, shape, generator=generator, dtype=torch.uint8)
        return ImageSet(pixels, torch.arange(len(counts)).repeat_interleave(torch.tensor(counts)))

    return make


COLOURS = {"red": (220, 30, 30), "grün": (30, 200, 40), "blue": (20, 40, 230), "Blue": (90, 90, 90)}


def coloured(name: str, count: int, seed: int = 0) -> list[np.ndarray]:
    """Pictures (20, 24, 3) of one colour with noise."""
    source = np.random.default_rng([seed, *name.encode()])
    noise = source.integers(-20, 20, (count, 20, 24, 3))
    return list((np.array(COLOURS[name]) + noise).clip(0, 255).astype(np.uint8))


def small_learner(**options: Any) -> Learner:
    """A learner on a small network with random weights, which tells colours apart."""
    backbone = BackboneConfig(backbone="vit_micro_patch4_16", weights="random", input_size=16)
    settings = RanPACConfig(pretrained=backbone, projected=100, adapt=False)
    return Learner(settings, **{"image_size": 16, "budget": "200kB", "device": "cpu", **options})


@pytest.fixture(scope="session")
def cifar100_folder() -> Path:
    """The data folder, where it has CIFAR-100."""
    folder = Path(os.environ.get("ENGRAM_DATA", "does-not-exist"))
    if not (folder / "cifar-100-python").is_dir():
        pytest.skip("ENGRAM_DATA names no folder with CIFAR-100")
    return folder


@pytest.fixture(scope="session")
def cifar100(cifar100_folder: Path) -> Any:
    return load_dataset("cifar100")


@pytest.fixture(scope="session")
def timm() -> Any:
    """timm, also beside a torchvision that does not fit torch."""
    return import_timm()
