"""A run does what its configuration says, field by field."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from conftest import InterruptionError, StopAfter, StopAtTask, learner_of, same, saved_state, tiny
from engram.bench import Execution, Progress, check, restored, run
from engram.data.encoded import EncodedImages
from engram.data.images import Images
from engram.data.stream import create_stream
from engram.errors import UserError
from engram.files import load_tensors
from engram.memory import ExemplarMemory
from engram.results import metrics
from engram.results.record import RunRecord

SIZES = (3, 2)


def tasks_of(folder: Path) -> list[dict[str, Any]]:
    return RunRecord(folder).tasks(len(SIZES))


@pytest.mark.parametrize("evaluate_on", ["validation", "test"])
def test_a_run_is_evaluated_on_what_it_says(
    evaluate_on: Any, tmp_path: Path, silent: Progress
) -> None:
    config = tiny("ranpac", evaluate_on=evaluate_on)
    folder, _ = run(config, tmp_path, silent)
    stream = create_stream(config.stream, order=config.order, evaluate_on=evaluate_on)
    for task, results in zip(stream, tasks_of(folder), strict=True):
        images = stream.evaluation(task.seen).labels.bincount().tolist()
        assert [sum(row) for row in results["confusion"]] == images


def test_what_is_validated_on_is_not_trained_on(tmp_path: Path, silent: Progress) -> None:
    images = {}
    for evaluate_on in ("validation", "test"):
        config = tiny("ranpac", evaluate_on=evaluate_on)
        settings = replace(config.settings, adapt=True)
        schedule = replace(settings.schedule, epochs=1, updates=None, drop_last=False)
        config = replace(config, settings=replace(settings, schedule=schedule))
        folder, _ = run(config, tmp_path, silent)
        images[evaluate_on] = tasks_of(folder)[0]["images"]
        stream = create_stream(config.stream, order=config.order, evaluate_on=evaluate_on)
        assert images[evaluate_on] == len(stream.task(0).train)
    assert images["validation"] < images["test"]


@pytest.mark.parametrize(
    ("other", "alike"),
    [({}, True), ({"seed": 1}, False), ({"order": "seed3"}, False), ({"precision": "bf16"}, False)],
)
def test_what_is_learnt_depends_on_the_configuration(
    other: dict[str, Any], alike: bool, tmp_path: Path, silent: Progress
) -> None:
    config = tiny("finetune", order="given")
    one, _ = run(config, tmp_path / "one", silent)
    another, _ = run(replace(config, **other), tmp_path / "other", silent)
    assert same(saved_state(one), saved_state(another)) is alike


@pytest.mark.parametrize("through", [False, True])
def test_images_are_classified_as_they_are_or_as_the_codec_gives_them_back(
    through: bool, tmp_path: Path, silent: Progress
) -> None:
    config = replace(tiny("icarl"), codec="jpeg:10", infer_through_codec=through)
    folder, _ = run(config, tmp_path, silent)
    learner = learner_of(config, codec=config.codec)
    learner.restore(folder / "model" / "task-01")
    images = create_stream(config.stream, order=config.order).evaluation(range(5))
    confusions = [
        metrics.confusion(learner.predict(seen)["nme"], images.labels, 5).tolist()
        for seen in (images, learner.memory.recode(images))
    ]
    assert tasks_of(folder)[-1]["confusion"] == confusions[through]
    assert confusions[0] != confusions[1]


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    """A folder of two red and two blue ones to learn, and as many to evaluate on."""
    folder = tmp_path / "photos"
    for place in ("train/red", "train/blue", "test/red", "test/blue"):
        (folder / place).mkdir(parents=True)
        for number in range(2):
            path = folder / place / f"{number}.png"
            Image.new("RGB", (40, 30), path.parent.name).save(path)
    return folder


def test_photographs_are_brought_to_the_size_that_is_asked_for(
    photographs: Path, tmp_path: Path, silent: Progress
) -> None:
    config = tiny("finetune", f"{photographs}/1,1", image_size=12)
    folder, _ = run(config, tmp_path / "runs", silent)
    assert json.loads((folder / "model/task-01/learner.json").read_text())["image_size"] == [12, 12]


def test_a_run_is_one_on_the_photographs_that_were_there(
    photographs: Path, tmp_path: Path, silent: Progress
) -> None:
    config = tiny("finetune", f"{photographs}/1,1")
    with pytest.raises(InterruptionError):
        run(config, tmp_path / "runs", StopAfter(1))
    photograph = photographs / "train/red/0.png"
    was = photograph.read_bytes()
    Image.new("RGB", (80, 60), "red").save(photograph)
    with pytest.raises(UserError, match="files came, went or changed since it began"):
        run(config, tmp_path / "runs", silent)
    photograph.write_bytes(was)
    run(config, tmp_path / "runs", silent)
    check(config, tmp_path / "runs")
    photograph.unlink()
    with pytest.raises(UserError, match="is a run on other photographs than are there now"):
        check(config, tmp_path / "runs")


@pytest.mark.parametrize("images_per_class", [5, 9])
def test_no_more_images_of_a_class_are_used_than_is_asked_for(
    images_per_class: int, tmp_path: Path, silent: Progress
) -> None:
    """All are in one batch, so that an update sees each once."""
    config = tiny("finetune", updates=4, images_per_class=images_per_class)
    folder, _ = run(config, tmp_path, silent)
    expected = [4 * size * images_per_class for size in SIZES]
    assert [results["images"] for results in tasks_of(folder)] == expected


@pytest.mark.parametrize(("budget", "exemplars"), [("20", 20), ("3/class", 15), ("1921B", 10)])
def test_the_memory_holds_what_the_budget_says(
    budget: str, exemplars: int, tmp_path: Path, silent: Progress
) -> None:
    """An image takes 192 bytes."""
    _, summary = run(tiny("icarl", budget=budget), tmp_path, silent)
    assert summary["exemplars"] == exemplars


def test_exemplars_are_stored_by_the_codec_that_is_named(tmp_path: Path, silent: Progress) -> None:
    config = replace(tiny("icarl", budget="20"), codec="float16")
    folder, _ = run(config, tmp_path, silent)
    tensors, table = load_tensors(folder / "model/task-01/memory.safetensors")
    assert table["codec"] == "float16"
    assert tensors["lengths.0"].tolist() == [2 * 192] * 4


@pytest.mark.parametrize("batchwise", [False, True])
def test_exemplars_stay_encoded_where_memory_is_short(
    batchwise: bool, tmp_path: Path, silent: Progress, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained_on: list[Images] = []
    images = ExemplarMemory.images

    def noted(memory: ExemplarMemory) -> Images:
        trained_on.append(images(memory))
        return trained_on[-1]

    monkeypatch.setattr(ExemplarMemory, "images", noted)
    run(tiny("icarl"), tmp_path, silent, Execution(batchwise=batchwise))
    assert {isinstance(found, EncodedImages) for found in trained_on} == {batchwise}


@pytest.mark.parametrize(("seconds", "saved"), [(0.0, True), (3600.0, False)])
def test_snapshots_are_as_far_apart_as_is_asked_for(
    seconds: float, saved: bool, tmp_path: Path
) -> None:
    """The second of three epochs does not end."""
    with pytest.raises(InterruptionError):
        run(tiny("finetune"), tmp_path, StopAfter(2), Execution(snapshot_every=seconds))
    assert any(tmp_path.glob("*/snapshots/*.safetensors")) is saved


@pytest.mark.parametrize("keep_models", [False, True])
def test_learners_of_a_run_are_restored(keep_models: bool, tmp_path: Path) -> None:
    config = tiny("icarl", order="mine:4,2,0,1,3")
    with pytest.raises(InterruptionError):
        run(config, tmp_path, StopAtTask(), Execution(keep_models=keep_models))
    folder, summary = run(config, tmp_path, execution=Execution(keep_models=keep_models))
    assert "mine" in folder.name
    for task in (0, 1) if keep_models else (1,):
        learner, stream = restored(folder, task, device="cpu")
        assert stream.order == (4, 2, 0, 1, 3)
        seen = sum(SIZES[: task + 1])
        images = stream.evaluation(range(seen))
        right = (learner.predict(images)["nme"] == images.labels).double().mean()
        assert 100 * float(right) == pytest.approx(summary["accuracy_per_task"][task], abs=1e-3)
    assert restored(folder, device="cpu")[0].tasks == 2
    with pytest.raises(UserError, match=r"no learner after task 2; present: .*1. .*--keep-models"):
        restored(folder, 2)
    with pytest.raises(UserError, match="no learner after any task"):
        restored(tmp_path)


def test_what_an_older_version_did_not_record_is_left_open(tmp_path: Path) -> None:
    config = tiny("finetune", "digits/2,2,1")
    folder, summary = run(config, tmp_path)
    (folder / "summary.json").unlink()
    task = folder / "tasks" / "01.json"
    results = json.loads(task.read_text())
    del results["mistaken"]
    task.write_text(json.dumps(results))
    _, again = run(config, tmp_path)
    first, second, third = summary["old_as_new"]
    assert first is None
    assert second is not None
    assert again["old_as_new"] == [None, None, third]


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("environment.json", "{"),
        ("environment.json", "{}"),
        ("tasks/00.json", "{"),
        ("summary.json", "{"),
        ("summary.json", '{"a": 1}'),
    ],
)
def test_a_damaged_file_of_a_run_is_named(
    file: str, text: str, tmp_path: Path, silent: Progress
) -> None:
    config = tiny("finetune", updates=2)
    if file == "summary.json":
        folder, _ = run(config, tmp_path, silent)
    else:
        with pytest.raises(InterruptionError):
            run(config, tmp_path, StopAtTask())
        (folder,) = tmp_path.iterdir()
    (folder / file).write_text(text)
    with pytest.raises(UserError, match=rf"{file} is damaged.* [Rr]emove"):
        run(config, tmp_path, silent)


def test_what_systems_put_beside_saved_learners_stops_nothing(
    tmp_path: Path, silent: Progress
) -> None:
    config = tiny("finetune", updates=2)
    with pytest.raises(InterruptionError):
        run(config, tmp_path, StopAtTask())
    (folder,) = tmp_path.iterdir()
    (folder / "model" / ".DS_Store").touch()
    run(config, tmp_path, silent)
