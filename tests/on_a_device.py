"""Everything but the numbers that a GPU would show: what is where."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import elsewhere
from conftest import (
    InterruptionError,
    StopAfter,
    coloured,
    learner_of,
    same,
    saved_state,
    small_learner,
    tiny,
)
from engram.bench import Execution, Progress, restored, run
from engram.data import batches
from engram.data.augment import Augmentation
from engram.data.stream import create_stream
from engram.learner import load
from engram.methods import METHODS

PLACED_OTHERWISE = (
    "der, pruned",
    "der, by a weight",
    "der, on transformers",
    "lae, several merges",
    "lae, with a prefix",
    "lae, with convolutions",
    "lae, with lora",
    "ranpac, adapted",
)
"""The variants that have tensors of their own to put somewhere."""


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> str:
    name = elsewhere.register()
    # It has nothing to wait for, and what a device of Python is made of has no place to say so.
    monkeypatch.setattr(torch.accelerator, "synchronize", lambda device: None)
    return name


def test_the_device_refuses_what_a_gpu_refuses(device: str) -> None:
    there, here = torch.ones(3, device=device), torch.ones(3)
    assert (there + 1).device.type == device
    with pytest.raises(RuntimeError, match="beside one of"):
        there + here
    with pytest.raises(RuntimeError, match="beside one of"):
        torch.stack([there.sum(), here.sum()])
    with pytest.raises(RuntimeError, match="beside one of"):
        here[there.long()]
    with pytest.raises(RuntimeError, match="generator"):
        torch.rand(3, device=device, generator=torch.Generator())
    with pytest.raises(RuntimeError, match="numpy"):
        there.numpy()


@pytest.mark.filterwarnings("ignore:.*only the classifier learns")
@pytest.mark.parametrize("method", [*sorted(METHODS), *PLACED_OTHERWISE])
def test_a_run_on_another_device_is_the_run_on_the_processor(
    method: str, tmp_path: Path, silent: Progress, device: str
) -> None:
    config = tiny(method, "digits/2,1", precision="fp32")
    here, expected = run(config, tmp_path / "here", silent)
    there = replace(config, device=device)
    with pytest.raises(InterruptionError):
        run(there, tmp_path / "there", StopAfter(2), Execution(snapshot_every=0))
    folder, found = run(there, tmp_path / "there", silent, Execution(batchwise=True))
    if any(name.endswith("cls_token") for name in saved_state(here)):
        # Attention is fused on the processor, and rounds in another way.
        assert found["last_accuracy"] == pytest.approx(expected["last_accuracy"], abs=2)
    else:
        assert same(saved_state(folder), saved_state(here))
    learner, _ = restored(folder, device=device)
    assert all(tensor.device.type == device for tensor in learner.method.state_dict().values())


@pytest.mark.parametrize(
    "method", [*sorted(METHODS), "der, pruned", "lae, several merges", "ranpac, adapted"]
)
def test_no_step_of_training_waits_for_the_device(method: str, device: str) -> None:
    def waits(batch_size: int) -> list[str]:
        config = tiny(method, precision="fp32")
        settings = config.settings
        if hasattr(settings, "codec_augmentation"):
            settings = replace(settings, codec_augmentation=0.5)
        if hasattr(settings, "schedule"):
            schedule = replace(settings.schedule, epochs=2, updates=None, batch_size=batch_size)
            settings = replace(settings, schedule=schedule)
        learner = learner_of(replace(config, settings=settings, device=device))
        first, second = create_stream("digits/2,1", order="given")
        learner.learn(first)
        elsewhere.WAITS.clear()
        learner.learn(second)
        return list(elsewhere.WAITS)

    assert waits(batch_size=16) == waits(batch_size=128)


@pytest.mark.parametrize("method", ["icarl", "der, pruned", "ranpac, adapted"])
def test_images_that_a_device_has_no_room_for_stay_in_main_memory(
    method: str, tmp_path: Path, silent: Progress, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(tiny(method, "digits/2,1", precision="fp32", codec="jpeg:90"), device=device)
    if hasattr(config.settings, "codec_augmentation"):
        config = replace(config, settings=replace(config.settings, codec_augmentation=0.5))
    there, _ = run(config, tmp_path / "there", silent)
    monkeypatch.setattr(batches, "free_bytes", lambda device: 10_000)
    here, _ = run(config, tmp_path / "here", silent)
    assert same(saved_state(here), saved_state(there))
    learner, stream = restored(here, device=device)
    resting = learner.method.augmented(stream.task(0).train, Augmentation())
    assert resting.images.labels.device.type == "cpu"
    assert {part.device.type for part in next(resting.batches(8, torch.Generator()))} == {device}


def test_what_the_cache_of_cuda_keeps_counts_as_free(monkeypatch: pytest.MonkeyPatch) -> None:
    assert batches.free_bytes(torch.device("cpu")) == math.inf
    found = {"memory_reserved": 700, "memory_allocated": 200, "mem_get_info": (1000, 8000)}
    for name, answer in found.items():
        monkeypatch.setattr(torch.cuda, name, lambda device, answer=answer: answer)
    assert batches.free_bytes(torch.device("cuda")) == 1500


def test_codecs_work_for_another_device(tmp_path: Path, silent: Progress, device: str) -> None:
    config = replace(
        tiny("icarl", "digits/2,1", budget="50kB", codec="klt:16"),
        infer_through_codec=True,
    )
    config = replace(config, settings=replace(config.settings, codec_augmentation=0.5))
    _, expected = run(config, tmp_path / "here", silent)
    _, found = run(replace(config, device=device), tmp_path / "there", silent)
    assert found["accuracy_matrix"] == expected["accuracy_matrix"]


def best(predictions: Any) -> list[str]:
    return [labels[0]["label"] for labels in predictions]


def test_photographs_are_learnt_on_another_device(tmp_path: Path, device: str) -> None:
    pictures = {name: coloured(name, 12) for name in ("red", "blue")}
    learner = small_learner(device=device).learn(pictures)
    learner.learn({"grün": coloured("grün", 12)})
    learner.save(tmp_path / "model")
    asked = coloured("grün", 3, seed=1)
    on_processor = load(tmp_path / "model", device="cpu")
    assert learner.predict(asked) == load(tmp_path / "model", device=device).predict(asked)
    assert best(learner.predict(asked)) == best(on_processor.predict(asked)) == ["grün"] * 3
