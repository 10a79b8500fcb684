"""The learner for people: names in, names out, and what it says of forgetting."""

from __future__ import annotations

import copy
import pickle
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import engram
from conftest import COLOURS, coloured, small_learner, tiny
from engram.config import Schedule
from engram.data.pictures import pixels_of
from engram.data.stream import Task
from engram.errors import UserError
from engram.files import save_tensors
from engram.learner import Learner
from engram.methods import METHODS
from engram.methods.bounds import JointConfig
from engram.methods.pretrained import PretrainedMethod
from engram.models.heads import RidgeHead
from engram.models.pretrained import BackboneConfig
from engram.models.vit import create_vit
from engram.results.outcomes import Change, ClassAccuracy, mean_forgetting
from engram.task_learner import TaskLearner


def taught(*names: str, count: int = 12, **options: object) -> Learner:
    return small_learner(**options).learn({name: coloured(name, count) for name in names})


def test_it_learns_names_and_tells_them() -> None:
    learner = taught("red", "grün").learn({"blue": coloured("blue", 12)})
    assert learner.classes_ == ("red", "grün", "blue")
    for name in learner.classes_:
        (first, *others) = learner.predict(coloured(name, 1, seed=9)[0])
        assert first["label"] == name
        assert first["score"] > max(other["score"] for other in others)
        assert first["score"] + sum(other["score"] for other in others) == pytest.approx(1)
    several = learner.predict(coloured("red", 3, seed=9), top=2)
    assert [len(found) for found in several] == [2, 2, 2]


def test_a_learner_that_is_pickled_or_copied_is_one_of_its_own() -> None:
    learner, heard = taught("red", "grün"), []
    for other in (pickle.loads(pickle.dumps(learner)), copy.deepcopy(learner)):
        asked = coloured("grün", 3, seed=1)
        assert np.array_equal(other.predict_proba(asked), learner.predict_proba(asked))
        learner.on_progress = lambda stage, share: heard.append(stage)
        other.learn({"blue": coloured("blue", 12)})
        assert (heard, learner.classes_) == ([], ("red", "grün"))


def test_a_stack_of_pictures_is_several() -> None:
    learner = taught("red", "grün")
    stack = torch.tensor(np.stack(coloured("red", 3, seed=9)))
    assert learner.predict(stack.numpy()) == learner.predict(list(stack.numpy()))
    assert learner.predict(stack) == learner.predict(stack.numpy())
    assert learner.predict(stack[0]) == learner.predict(stack)[0]


def test_a_learner_stays_on_its_device() -> None:
    learner = taught("red", "grün")
    learner.device = "cuda"
    with pytest.raises(UserError, match="device was cpu when the first classes were learnt"):
        learner.predict(coloured("red", 1))


def test_a_file_is_no_place_for_a_model(tmp_path: Path) -> None:
    (tmp_path / "notes").write_text("...")
    with pytest.raises(engram.UserError, match="notes is a file, and not a folder"):
        taught("red", "grün").save(tmp_path / "notes")


@pytest.mark.parametrize("top", [0, -1])
def test_no_fewer_than_one_label_is_named(top: int) -> None:
    with pytest.raises(UserError, match=f"At least one label must be named, not {top}: top"):
        taught("red").predict(coloured("red", 2), top)


def test_the_words_of_scikit_learn() -> None:
    learner = taught("red", "blue")
    pictures = coloured("red", 2, seed=5) + coloured("blue", 2, seed=5)
    probabilities = learner.predict_proba(pictures)
    assert probabilities.shape == (4, 2)
    assert probabilities.argmax(1).tolist() == [0, 0, 1, 1]
    assert learner.score(pictures, ["red", "red", "blue", "blue"]) == 1.0
    assert learner.score(pictures, ["blue", "red", "blue", "blue"]) == 0.75
    params = learner.get_params()
    assert Learner(**params).get_params() == params


def test_the_seed_of_a_learner_decides() -> None:
    pictures = coloured("red", 2, seed=5)
    first, again, other = (
        taught("red", "blue", seed=seed).predict_proba(pictures) for seed in (0, 0, 1)
    )
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_accuracies_are_told_by_class() -> None:
    learner = taught("red", "blue")
    wrong, right = coloured("blue", 5, seed=3), coloured("blue", 3, seed=4)
    found = learner.evaluate({"red": wrong, "blue": right})
    assert found.classes == {"red": ClassAccuracy(5, 0), "blue": ClassAccuracy(3, 3)}
    assert found.accuracy == 37.5


def test_nothing_happens_before_something_is_learnt() -> None:
    learner = Learner("no such method")
    assert learner.classes_ == ()
    with pytest.raises(UserError, match="Nothing has been learnt yet"):
        learner.predict("cat.jpg")
    with pytest.raises(UserError, match='Unknown method "no such method"'):
        learner.learn({"red": coloured("red", 5)})


def test_names_at_the_top_of_the_package() -> None:
    assert engram.Learner is Learner
    with pytest.raises(AttributeError, match="no attribute nonsense"):
        _ = engram.nonsense


def test_known_classes_are_refused_and_updated_when_asked() -> None:
    learner = taught("red", "blue")
    more = {"red": coloured("red", 6, seed=1), "grün": coloured("grün", 6)}
    with pytest.raises(UserError, match="Known already: red"):
        learner.learn(more)
    assert learner.classes_ == ("red", "blue")
    learner.learn(more, update=True)
    assert learner.classes_ == ("red", "blue", "grün")
    learner.learn({"red": coloured("red", 6, seed=2)}, update=True)
    assert learner.evaluate({"red": coloured("red", 4, seed=3)}).accuracy == 100


def test_some_images_are_set_aside_and_never_learnt_from() -> None:
    learner = taught("red", "blue", count=20, holdout=0.25)
    assert learner.memory.counts == {0: 15, 1: 15}
    assert [change.images for change in learner.changes_] == [5, 5]
    assert [change.before for change in learner.changes_] == [None, None]
    learner.learn({"grün": coloured("grün", 4)})
    assert [change.images for change in learner.changes_] == [5, 5, 0]
    assert learner.changes_[2].after is None
    assert all(change.before is not None for change in learner.changes_[:2])


def learnt_tasks(monkeypatch: pytest.MonkeyPatch) -> list[Task]:
    """Every task that is learnt from now on."""
    tasks: list[Task] = []
    learn = TaskLearner.learn

    def spied(self: TaskLearner, task: Task) -> Any:
        tasks.append(task)
        return learn(self, task)

    monkeypatch.setattr(TaskLearner, "learn", spied)
    return tasks


def shown(task: Task) -> set[bytes]:
    """The images that a task shows its method."""
    return {image.numpy().tobytes() for image in task.train.pixels}


def test_an_image_that_is_set_aside_is_never_learnt_from(monkeypatch: pytest.MonkeyPatch) -> None:
    tasks = learnt_tasks(monkeypatch)
    first, more = coloured("red", 20), coloured("red", 20, seed=1)
    learner = small_learner(holdout=0.25).learn({"red": first, "blue": coloured("blue", 9)})
    learner.learn({"red": first + more, "grün": coloured("grün", 9)}, update=True)
    everything = {pixels_of([one], 16).numpy().tobytes() for one in first}
    never = everything - shown(tasks[0])
    assert len(never) == 5
    assert not never & shown(tasks[1])
    assert not shown(tasks[1]) & everything
    assert learner.repeated_ == 15
    assert learner.changes_[0].images == 5


def test_what_is_given_again_is_left_out_and_counted() -> None:
    first, more = coloured("red", 12), coloured("red", 3, seed=1)
    learner = small_learner(holdout=0).learn({"red": first, "blue": coloured("blue", 12)})
    assert learner.repeated_ == 0
    learner.learn({"red": first + more}, update=True)
    assert learner.repeated_ == 12
    assert learner.memory.counts == {0: 15, 1: 12}
    again = {"red": first + more, "blue": coloured("blue", 12)}
    with pytest.raises(UserError, match="nothing new: 27 of the pictures were learnt before"):
        learner.learn(again, update=True)
    # Whoever corrects a label means it.
    learner.learn({"grün": first}, update=True)
    assert learner.memory.counts[2] == 12


def test_what_is_given_twice_is_learnt_once(monkeypatch: pytest.MonkeyPatch) -> None:
    tasks = learnt_tasks(monkeypatch)
    red, blue = coloured("red", 6), coloured("blue", 6)
    learner = small_learner(holdout=0).learn({"red": red * 3, "blue": blue + red[:1]})
    assert [len(task.train) for task in tasks] == [13]
    assert learner.repeated_ == 12


def test_what_is_set_aside_is_nothing_to_learn_from(monkeypatch: pytest.MonkeyPatch) -> None:
    tasks = learnt_tasks(monkeypatch)
    pictures = coloured("red", 20)
    learner = small_learner(holdout=0.25).learn({"red": pictures, "blue": coloured("blue", 9)})
    learnt = shown(tasks[0])
    aside = [one for one in pictures if pixels_of([one], 16).numpy().tobytes() not in learnt]
    assert len(aside) == 5
    with pytest.raises(UserError, match="nothing new: 0 of the pictures were learnt before or"):
        learner.learn({"red": aside[:1]}, update=True)
    with pytest.raises(UserError, match="All pictures of grün are set aside, as another class"):
        learner.learn({"grün": aside}, update=True)
    assert learner.classes_ == ("red", "blue")


def test_a_class_that_was_too_small_has_images_set_aside_when_it_grows() -> None:
    learner = small_learner(holdout=0.25)
    learner.learn({"red": coloured("red", 3), "blue": coloured("blue", 12)})
    assert [change.images for change in learner.changes_] == [0, 3]
    learner.learn({"red": coloured("red", 12, seed=1)}, update=True)
    assert [change.images for change in learner.changes_] == [3, 3]
    assert learner.memory.counts[0] == 12


def test_where_no_more_fits_is_set_aside_learning_goes_on() -> None:
    noise = list(np.random.default_rng(0).integers(0, 256, (12, 16, 16, 3), dtype=np.uint8))
    flat = [np.full((16, 16, 3), value, np.uint8) for value in range(90, 102)]
    learner = small_learner(budget="20kB", codec="png").learn({"noise": noise, "red": flat})
    assert [change.images for change in learner.changes_] == [1, 1]
    learner.learn({"blue": [255 - one for one in flat]})
    assert [change.images for change in learner.changes_] == [1, 1, 0]
    assert learner.classes_ == ("noise", "red", "blue")


def test_the_budget_may_change_between_two_lessons() -> None:
    learner = taught("red", budget="1kB", codec="raw")
    with pytest.raises(UserError, match="cannot hold one exemplar"):
        learner.learn({"blue": coloured("blue", 9)})
    learner.budget = "20kB"
    learner.learn({"blue": coloured("blue", 9)})
    assert learner.memory.counts == {0: 1, 1: 8}
    learner.budget = "3kB"
    learner.learn({"grün": coloured("grün", 3)})
    assert learner.memory.counts == {0: 1, 1: 1, 2: 1}
    learner.budget = "0"
    learner.learn({"Blue": coloured("Blue", 3)})
    assert learner.nbytes == 0
    learner.budget = "much"
    with pytest.raises(UserError, match='"much" is not a budget'):
        learner.learn({"Blue": coloured("Blue", 3, seed=1)}, update=True)


OTHERS = {"codec": "png", "image_size": 24, "seed": 1, "precision": "bf16"}


@pytest.mark.parametrize("name", ["method", "preset", "codec", "image_size", "seed", "precision"])
def test_nothing_else_may_change_between_two_lessons(tmp_path: Path, name: str) -> None:
    learner = taught("red", "blue")
    learner.save(tmp_path)
    for one in (learner, engram.load(tmp_path)):
        begun = getattr(one, name)
        setattr(one, name, OTHERS.get(name, "joint"))
        for use in (
            lambda one=one: one.learn({"grün": coloured("grün", 12)}),
            lambda one=one: one.predict(coloured("red", 1)),
            lambda one=one: one.save(tmp_path),
        ):
            with pytest.raises(UserError, match=f"{name} was .* Set it back, or begin another"):
                use()
        setattr(one, name, begun)
        assert one.learn({"grün": coloured("grün", 12)}).classes_ == ("red", "blue", "grün")


def test_what_is_set_aside_is_within_a_budget_that_was_lowered() -> None:
    learner = taught("red", "blue", count=100, budget="200kB", codec="raw")
    assert learner.nbytes > 20_000
    learner.budget = "20kB"
    learner.learn({"grün": coloured("grün", 3)})
    assert learner.nbytes <= 20_000
    assert [change.images for change in learner.changes_] == [1, 1, 0]


@pytest.mark.parametrize("size", [0, -1, 7])
def test_a_size_that_is_none_is_refused(size: int) -> None:
    with pytest.raises(UserError, match=f"image_size must be 8 or more, not {size}"):
        taught("red", image_size=size)


def test_learning_that_fails_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    learner = taught("red", "blue")
    before = learner.predict_proba(coloured("red", 2)), learner.memory.counts, learner.changes_

    def interrupted(self: RidgeHead) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(RidgeHead, "solve", interrupted)
        with pytest.raises(KeyboardInterrupt):
            learner.learn({"grün": coloured("grün", 9)})
    assert np.array_equal(learner.predict_proba(coloured("red", 2)), before[0])
    assert (learner.memory.counts, learner.changes_) == before[1:]
    learner.learn({"grün": coloured("grün", 9)})
    assert learner.classes_ == ("red", "blue", "grün")
    assert learner.predict_proba(coloured("red", 2)).shape == (2, 3)


@pytest.mark.parametrize(("holdout", "kept", "aside"), [(0.0, 5, 0), (0.95, 1, 4), (0.5, 3, 2)])
def test_there_is_always_something_to_learn_from(holdout: float, kept: int, aside: int) -> None:
    learner = taught("red", count=5, holdout=holdout, budget="all")
    assert learner.memory.counts == {0: kept}
    assert learner.changes_[0].images == aside


def test_no_more_is_set_aside_than_there_is_room_for() -> None:
    learner = taught("red", "blue", count=100, budget="40", holdout=0.1)
    assert [change.images for change in learner.changes_] == [2, 2]
    with pytest.raises(UserError, match="budget is 1, of which 10 % are for images that are set"):
        taught("red", "blue", budget="1")


def test_an_image_too_large_to_set_aside_does_not_end_learning(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("engram.memory.PROBED", 2)
    flat = [np.full((16, 16, 3), value, np.uint8) for value in range(60, 100)]
    noise = list(np.random.default_rng(0).integers(0, 256, (19, 16, 16, 3), dtype=np.uint8))
    learner = small_learner(budget="3kB", codec="png", holdout=0.2)
    learner.learn({"red": [flat[0], *noise, flat[1]], "blue": flat[2:]})
    assert [change.images for change in learner.changes_] == [0, 0]
    assert len(learner.memory) > 0


def test_a_budget_that_cannot_be_parted_is_for_what_is_learnt() -> None:
    assert taught("red", "blue", budget="1/class").memory.counts == {0: 1, 1: 1}


def test_a_codec_that_learns_needs_no_image_set_aside() -> None:
    learner = taught("red", "blue", count=3, codec="klt:8")
    assert learner.changes_[0].images == 0


@pytest.mark.parametrize("budget", ["0", "0B", "0MB", "0/class"])
def test_without_a_memory_nothing_is_set_aside(
    budget: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks = learnt_tasks(monkeypatch)
    learner = taught("red", "blue", budget=budget, codec="jpeg:75", count=20)
    assert len(shown(tasks[0])) == 40
    assert learner.nbytes == 0
    assert [change.images for change in learner.changes_] == [0, 0]


@pytest.mark.parametrize("budget", ["9kB", "20", "6/class"])
def test_everything_that_is_kept_is_within_the_budget(budget: str) -> None:
    learner = taught("red", "grün", budget=budget, codec="raw", count=30)
    learner.learn({"blue": coloured("blue", 30)})
    limit = {"9kB": 9000, "20": 20 * 768, "6/class": 18 * 768}[budget]
    assert 0 < learner.nbytes <= limit


@pytest.mark.parametrize(("unit", "named"), [("", "images"), ("B", "bytes as raw")])
def test_the_smallest_budget_that_is_named_is_that(unit: str, named: str) -> None:
    colours = {name: coloured(name, 9) for name in ("red", "grün", "blue")}
    with pytest.raises(UserError, match="of which 50 % are for images that are set") as refused:
        small_learner(budget=f"1{unit}", codec="raw", holdout=0.5).learn(colours)
    found = re.search(rf"that can:.*? (\d+) {named}", str(refused.value))
    assert found is not None
    least = int(found[1])
    small_learner(budget=f"{least}{unit}", codec="raw", holdout=0.5).learn(colours)
    with pytest.raises(UserError):
        small_learner(budget=f"{least - 1}{unit}", codec="raw", holdout=0.5).learn(colours)


def test_a_budget_that_is_too_small_changes_nothing() -> None:
    learner = taught("red", budget="1kB", codec="raw")
    with pytest.raises(UserError, match="cannot hold one exemplar"):
        learner.learn({"blue": coloured("blue", 9)})
    assert learner.classes_ == ("red",)
    assert learner.predict(coloured("red", 1)[0])[0]["label"] == "red"


def test_forgetting_is_measured_on_a_test_folder_where_one_is_given() -> None:
    test = {name: coloured(name, 7, seed=4) for name in ("red", "blue")}
    learner = small_learner().learn({n: coloured(n, 9) for n in ("red", "blue")}, test=test)
    assert [change.images for change in learner.changes_] == [7, 7]
    with pytest.raises(UserError, match='Unknown class "Blue"'):
        learner.evaluate({"Blue": coloured("Blue", 2)})


def test_mean_forgetting_is_of_known_classes() -> None:
    changes = [Change("a", 90, 80, 5), Change("b", 50, 60, 5), Change("c", None, 10, 5)]
    assert mean_forgetting(changes) == 0
    assert mean_forgetting(changes[:1]) == 10


def test_what_was_not_measured_is_not_taken_for_nothing_forgotten() -> None:
    unmeasured = [Change("a", None, None, 0), Change("b", None, 10, 5), Change("c", 10, None, 0)]
    assert mean_forgetting([]) is None
    assert mean_forgetting(unmeasured) is None
    assert [change.forgotten for change in unmeasured] == [None] * 3
    assert small_learner().learn({"red": coloured("red", 9)}).forgetting is None


def test_strictly_pictures_to_measure_on_must_be_readable_too(tmp_path: Path) -> None:
    for name in ("red", "blue"):
        (tmp_path / name).mkdir()
        Image.fromarray(coloured(name, 1)[0]).save(tmp_path / name / "a.png")
    (tmp_path / "red" / "b.png").write_text("broken")
    pictures = {name: coloured(name, 12) for name in ("red", "blue")}
    assert "b.png" in small_learner().learn(pictures, test=tmp_path).skipped_[0]
    with pytest.raises(UserError, match=r"b\.png cannot be read"):
        small_learner().learn(pictures, test=tmp_path, strict=True)


def test_files_and_folders(tmp_path: Path) -> None:
    for name in COLOURS:
        (tmp_path / name).mkdir()
        for number, pixels in enumerate(coloured(name, 8)):
            Image.fromarray(pixels).save(tmp_path / name / f"{number}.png")
    (tmp_path / "red" / "broken.png").write_text("")
    learner = small_learner().learn(tmp_path)
    assert set(learner.classes_) == set(COLOURS)
    assert len(learner.skipped_) == 1
    assert learner.predict(str(tmp_path / "red" / "0.png"), top=1)[0]["label"] == "red"
    assert learner.predict(tmp_path / "grün" / "0.png", top=1)[0]["label"] == "grün"
    assert learner.predict(Image.open(tmp_path / "blue" / "0.png"), top=1)[0]["label"] == "blue"
    assert learner.evaluate(tmp_path).skipped == learner.skipped_


def test_settings_decide_on_the_method() -> None:
    assert Learner(JointConfig()).method_name == "joint"
    assert Learner("lae").method_name == "lae"
    with pytest.raises(UserError, match="method must be a name or the settings"):
        _ = Learner(3).method_name


def test_a_class_of_one_image() -> None:
    learner = small_learner().learn({"red": coloured("red", 1), "blue": coloured("blue", 30)})
    assert learner.predict(np.stack(coloured("red", 1))[0], top=1)[0]["label"] == "red"


@pytest.mark.parametrize("method", [*METHODS])
def test_a_pretrained_network_is_not_needed_where_a_model_is_loaded(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of it was trained further and saved; to learn everything anew, joint wants it again."""
    name = "vit_micro_patch4_16.drawn"
    weights = tmp_path / "data" / "weights" / f"{name}.safetensors"
    weights.parent.mkdir(parents=True)
    network = create_vit(name, 16)
    network.draw(torch.Generator().manual_seed(0))
    save_tensors(weights, network.state_dict(), {})
    monkeypatch.setenv("ENGRAM_DATA", str(tmp_path / "data"))
    backbone: dict[str, Any] = {"backbone": name}
    if issubclass(METHODS[method], PretrainedMethod):
        backbone = {"pretrained": BackboneConfig(backbone=name, input_size=16)}
    schedule = Schedule(epochs=1, batch_size=8, optimizer="adam", decay="constant")
    settings = replace(tiny(method).settings, **backbone)
    if hasattr(settings, "schedule"):
        settings = replace(settings, schedule=schedule)
    budget = "all" if method == "joint" else "200kB"
    pictures = {colour: coloured(colour, 6) for colour in ("red", "blue")}
    learner = Learner(settings, image_size=16, budget=budget, device="cpu").learn(pictures)
    learner.save(tmp_path / "model")
    weights.unlink()
    loaded = engram.load(tmp_path / "model", device="cpu")
    probe = coloured("red", 2, seed=3)
    assert np.array_equal(loaded.predict_proba(probe), learner.predict_proba(probe))
    more = {"grün": coloured("grün", 6)}
    if method == "joint":
        with pytest.raises(UserError, match="There are no weights"):
            loaded.learn(more)
    else:
        assert loaded.learn(more).classes_ == ("red", "blue", "grün")


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ({"precision": "fp16"}, 'Unknown precision "fp16"'),
        ({"seed": "x"}, "seed must be a whole number, not 'x'"),
        ({"image_size": 16.0}, r"image_size must be a whole number, not 16\.0"),
        ({"holdout": False}, "holdout must be a number, not False"),
        ({"codec": 75}, "codec must be a text, not 75"),
    ],
)
def test_what_could_not_be_saved_is_not_learnt(argument: dict[str, Any], message: str) -> None:
    learner = small_learner(**argument)
    with pytest.raises(UserError, match=message):
        learner.learn({"red": coloured("red", 4)})


def test_numbers_of_numpy_and_devices_of_torch_are_saved_as_plain_ones(tmp_path: Path) -> None:
    learner = small_learner(
        seed=np.int64(3), image_size=np.int64(16), budget=40, device=torch.device("cpu")
    )
    learner.learn({name: coloured(name, 4) for name in ("red", "blue")}).save(tmp_path)
    again = engram.load(tmp_path, device="cpu")
    assert (again.seed, again.image_size, again.budget) == (3, 16, "40")
    assert np.array_equal(again.predict_proba(PICTURES), learner.predict_proba(PICTURES))


PICTURES = [coloured(name, 1, seed=9)[0] for name in COLOURS]
