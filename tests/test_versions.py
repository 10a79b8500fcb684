"""The model folder: every version whole, whatever happens while one is written."""

from __future__ import annotations

import io
import json
import multiprocessing
import os
import random
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock
from PIL import Image

import engram
from conftest import COLOURS, coloured, small_learner
from engram import files, model_commands
from engram.errors import UserError
from engram.learner import Learner
from engram.memory import DamagedExemplar
from engram.versions import BusyError, ModelFolder

PROBES = [coloured(name, 1, seed=9)[0] for name in COLOURS]


def grown(folder: Path, names: tuple[str, ...] = ("red", "grün", "blue")) -> ModelFolder:
    """A model that has learnt its classes one by one."""
    learner = small_learner()
    for name in names:
        learner.learn({name: coloured(name, 12)})
        learner.save(folder)
    return ModelFolder(folder)


def loaded(model: ModelFolder, version: int | None = None) -> Learner:
    return engram.load(model.folder, version, device="cpu")


def test_a_model_is_what_was_saved(tmp_path: Path) -> None:
    learner = small_learner().learn({name: coloured(name, 12) for name in ("red", "blue")})
    assert learner.save(tmp_path / "model") == 1
    again = engram.load(tmp_path / "model", device="cpu")
    assert again.classes_ == learner.classes_
    assert np.array_equal(again.predict_proba(PROBES), learner.predict_proba(PROBES))
    assert again.nbytes == learner.nbytes
    for one in (learner, again):
        one.learn({"grün": coloured("grün", 12)})
    assert np.array_equal(again.predict_proba(PROBES), learner.predict_proba(PROBES))
    assert again.changes_ == learner.changes_


def test_every_learning_is_a_version_and_one_can_go_back(tmp_path: Path) -> None:
    model = grown(tmp_path)
    assert model.numbers() == [1, 2, 3]
    assert model.current == 3
    model.rollback(1)
    assert loaded(model).classes_ == ("red",)
    loaded(model).learn({"Blue": coloured("Blue", 6)}).save(tmp_path)
    assert model.current == 4
    assert loaded(model).classes_ == ("red", "Blue")
    assert [facts and facts.parent for facts in model.history().values()] == [None, 1, 2, 1]
    assert engram.load(tmp_path, 3).classes_ == ("red", "grün", "blue")
    assert "| Blue |" in (model.path(4) / "README.md").read_text()


def test_old_versions_are_removed_but_never_the_current_one(tmp_path: Path) -> None:
    model = grown(tmp_path)
    learner = loaded(model)
    learner.save(tmp_path, keep=2)
    assert model.numbers() == [3, 4]
    model.rollback(3)
    loaded(model).save(tmp_path, keep=1)
    assert model.numbers() == [5]
    with pytest.raises(UserError, match="At least one version must be kept, not 0"):
        learner.save(tmp_path, keep=0)


def test_the_version_that_was_learnt_from_stays_before_newer_ones(tmp_path: Path) -> None:
    model = grown(tmp_path)
    model.rollback(1)
    loaded(model).learn({"Blue": coloured("Blue", 6)}).save(tmp_path, keep=2)
    assert model.numbers() == [1, 4]


def test_a_version_tells_which_one_it_was_learnt_from(tmp_path: Path) -> None:
    model = grown(tmp_path)
    learner = loaded(model, 1).learn({"Blue": coloured("Blue", 6)})
    learner.save(tmp_path, keep=2)
    assert model.numbers() == [1, 4], "and that one stays, though another was current"
    assert model.facts(4).parent == 1
    learner.save(tmp_path)
    assert model.facts(5).parent == 4
    learner.save(tmp_path / "elsewhere")
    assert ModelFolder(tmp_path / "elsewhere").facts(1).parent is None


def test_what_others_have_in_the_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "versions").mkdir()
    notes = tmp_path / "versions" / "notes.partial"
    notes.write_text("mine")
    with pytest.raises(UserError, match="Nothing has been learnt yet"):
        small_learner().save(tmp_path)
    assert [path.name for path in tmp_path.rglob("*")] == ["versions", "notes.partial"]
    small_learner().learn({"red": coloured("red", 3)}).save(tmp_path)
    assert notes.read_text() == "mine"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("no model", "There is no model in"),
        ("no number", "current holds no number"),
        ("missing version", "names version 1, which is not there. Present: none"),
        ("facts", "version.json cannot be read"),
        ("no facts", "version.json cannot be read"),
        ("a fact", "version.json: changes missing. No other version is there"),
        ("an argument", "version.json: .*image_size missing. No other version is there"),
        ("format", "has format 99; this engram reads 4"),
        ("weights", "weights.safetensors cannot be read .* learn the pictures anew"),
        ("learner", "learner is not a saved learner .* learn the pictures anew"),
        ("learner's facts", "learner is not a saved learner .* learn the pictures anew"),
    ],
)
def test_a_damaged_model_is_one_line(tmp_path: Path, damage: str, message: str) -> None:
    model = grown(tmp_path, ("red",))
    version = model.path(1)
    match damage:
        case "no model":
            shutil.rmtree(tmp_path)
        case "no number":
            (tmp_path / "current").write_text("one")
        case "missing version":
            shutil.rmtree(version)
        case "facts":
            (version / "version.json").write_text("{")
        case "no facts":
            (version / "version.json").write_text("4")
        case "a fact":
            facts = json.loads((version / "version.json").read_text())
            del facts["changes"]
            (version / "version.json").write_text(json.dumps(facts))
        case "an argument":
            facts = json.loads((version / "version.json").read_text())
            del facts["learner"]["image_size"]
            (version / "version.json").write_text(json.dumps(facts))
        case "format":
            facts = json.loads((version / "version.json").read_text())
            (version / "version.json").write_text(json.dumps({**facts, "format": 99}))
        case "weights":
            content = (version / "learner" / "weights.safetensors").read_bytes()
            (version / "learner" / "weights.safetensors").write_bytes(content[:-9])
        case "learner":
            (version / "learner" / "learner.json").write_bytes(b"{\xff")
        case "learner's facts":
            (version / "learner" / "learner.json").write_text("{}")
    with pytest.raises(UserError, match=message) as refused:
        loaded(model)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "file", ["version.json", "learner/weights.safetensors", "seen.safetensors"]
)
@pytest.mark.parametrize("cut", [True, False])
def test_a_damaged_version_is_told_with_the_way_back(
    tmp_path: Path, file: str, *, cut: bool
) -> None:
    model = grown(tmp_path)
    damaged = model.path(3) / file
    content = bytearray(damaged.read_bytes())
    if cut:
        del content[-9:]
    else:
        content[-9] ^= 255
    damaged.write_bytes(content)
    with pytest.raises(UserError, match=rf"{damaged.name} .*: engram rollback {tmp_path} 2$"):
        loaded(model)
    model.rollback(2)
    assert loaded(model).classes_ == ("red", "grün")
    first = model.path(1) / file
    first.write_bytes(b"")
    with pytest.raises(UserError, match=rf"engram rollback {tmp_path} 2$"):
        loaded(model, 1)


@pytest.mark.parametrize("file", ["learner/memory.safetensors", "holdout.safetensors"])
def test_a_damaged_exemplar_is_left_out_or_refused(tmp_path: Path, file: str) -> None:
    model = grown(tmp_path, ("red", "blue"))
    path = model.path(2) / file
    tensors, table = files.load_tensors(path)
    tensors["payloads.1"][9] ^= 1
    files.save_tensors(path, tensors, table)
    with pytest.warns(DamagedExemplar, match="Exemplar 1 of class blue"):
        assert loaded(model).classes_ == ("red", "blue")
    with pytest.raises(UserError, match=rf"class blue in .*: engram rollback {tmp_path} 1$"):
        engram.load(tmp_path, strict=True)


def test_only_one_may_change_a_model(tmp_path: Path) -> None:
    learner = small_learner().learn({"red": coloured("red", 6)})
    with (
        FileLock(tmp_path / ".lock"),
        pytest.raises(BusyError, match="Another process is changing"),
    ):
        learner.save(tmp_path)


def test_a_model_is_free_again_where_tidying_up_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FileLock, "__del__", lambda lock: None)  # which frees what was forgotten
    left = []

    def fail(folder: Path) -> None:
        raise OSError("disk error")

    def leave(model: ModelFolder) -> None:
        with FileLock(model.folder / ".lock").acquire(timeout=0):
            left.append(model.folder)

    monkeypatch.setattr(shutil, "rmtree", fail)
    monkeypatch.setattr(ModelFolder, "_leave_nothing_behind", leave)
    (tmp_path / "versions" / "0001.partial").mkdir(parents=True)
    with pytest.raises(OSError, match="disk error"), ModelFolder(tmp_path).changing():
        pass
    assert left == [tmp_path]


def test_a_version_that_fails_at_any_write_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = grown(tmp_path, ("red",))
    learner = loaded(model).learn({"blue": coloured("blue", 12)})
    replace, rename = Path.replace, Path.rename
    writes = 0
    while model.current == 1:
        left = writes

        def failing(path: Path, target: Path, act: Callable[[Path, Path], Path]) -> Path:
            nonlocal left
            if left == 0:
                raise OSError("the disk is full")
            left -= 1
            return act(path, target)

        monkeypatch.setattr(Path, "replace", lambda a, b: failing(a, b, replace))
        monkeypatch.setattr(Path, "rename", lambda a, b: failing(a, b, rename))
        try:
            learner.save(tmp_path)
        except OSError:
            assert loaded(model).classes_ == ("red",)
        writes += 1
    assert writes > 4
    assert loaded(model).classes_ == ("red", "blue")


def _learn_more(photos: Path, folder: Path) -> None:
    words = [str(photos), "--into", str(folder), "--update", "--keep-versions", "2"]
    model_commands.learn([*words, "--device", "cpu"])


def more_pictures(photos: Path, seed: int) -> None:
    (photos / "blue").mkdir(parents=True, exist_ok=True)
    for number, pixels in enumerate(coloured("blue", 12, seed)):
        Image.fromarray(pixels).save(photos / "blue" / f"{seed}-{number}.png")


def killed_at_random(folder: Path, times: int) -> None:
    """Kill a process that learns, at moments spread over what it takes; the model stays whole."""
    photos, folder = folder / "photos", folder / "model"
    model = grown(folder, ("red", "grün"))
    more_pictures(photos, 0)
    fork = multiprocessing.get_context("fork")
    started = time.perf_counter()
    whole = fork.Process(target=_learn_more, args=(photos, folder))
    whole.start()
    whole.join()
    assert whole.exitcode == 0
    took = time.perf_counter() - started
    moments = random.Random(0)
    for seed in range(1, times + 1):
        more_pictures(photos, seed)
        before = model.current
        process = fork.Process(target=_learn_more, args=(photos, folder))
        process.start()
        time.sleep(moments.random() * took)
        process.kill()
        process.join()
        after = model.current
        assert after is not None
        assert before is not None
        assert after - before in (0, 1)
        again = loaded(model)
        assert again.classes_ == ("red", "grün", "blue")
        assert again.predict(PROBES[0], top=1)[0]["label"] == "red"
        assert all(
            np.isfinite(engram.load(folder, n).predict_proba(PROBES)).all()
            for n in model.numbers()[-2:]
        )


def test_learning_that_is_killed_leaves_the_model_whole(tmp_path: Path) -> None:
    killed_at_random(tmp_path, 10)


@pytest.mark.slow
def test_learning_that_is_killed_many_times_leaves_the_model_whole(tmp_path: Path) -> None:
    killed_at_random(tmp_path, 50)


def test_nothing_is_left_where_a_first_version_failed(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    with pytest.raises(UserError, match="Nothing has been learnt yet"):
        small_learner().save(folder)
    with pytest.raises(UserError, match="At least one version"):
        small_learner().learn({"red": coloured("red", 3)}).save(folder, keep=0)
    assert not folder.exists()


def test_what_a_removal_left_behind_is_swept_away(tmp_path: Path) -> None:
    model = grown(tmp_path, ("red", "blue"))
    half = model.path(1).with_suffix(".partial")
    model.path(1).rename(half)
    (half / "version.json").unlink()
    assert model.numbers() == [2]
    assert list(model.history()) == [2]
    loaded(model).save(tmp_path)
    assert not half.exists()


def test_no_file_is_half_written(tmp_path: Path) -> None:
    model = grown(tmp_path)
    assert not list(tmp_path.rglob("*.partial"))
    tensors, _ = files.load_tensors(model.path(3) / "learner" / "weights.safetensors")
    assert "head.weight" in tensors


def test_a_version_is_packed_as_a_model_of_its_own(tmp_path: Path) -> None:
    model = grown(tmp_path / "model")
    (tmp_path / "model" / "notes").write_text("mine")
    # As some archives restore files; those of ZIP begin in 1980.
    os.utime(model.path(2) / "version.json", (0, 0))
    with (tmp_path / "packed.zip").open("wb") as file:
        model.pack(2, file)
    shutil.unpack_archive(tmp_path / "packed.zip", tmp_path / "elsewhere")
    packed = ModelFolder(tmp_path / "elsewhere" / "model")
    assert {path.name for path in packed.folder.iterdir()} == {"current", "versions"}
    assert packed.numbers() == [packed.current] == [2]
    assert np.array_equal(
        loaded(packed).predict_proba(PROBES), loaded(model, 2).predict_proba(PROBES)
    )
    with pytest.raises(UserError, match=r"has no version 7\. Present: 1, 2, 3"):
        model.pack(7, io.BytesIO())


def test_what_a_version_takes_on_disk(tmp_path: Path) -> None:
    model = grown(tmp_path, ("red", "blue"))
    paths = [path for path in model.path(2).rglob("*") if path.is_file()]
    assert model.disk_bytes(2) == sum(len(path.read_bytes()) for path in paths)
    shutil.rmtree(model.path(1))
    assert model.disk_bytes(1) == 0


def test_several_versions_of_which_none_is_current_are_not_taken_for_none(tmp_path: Path) -> None:
    model = grown(tmp_path)
    (tmp_path / "current").unlink()
    with pytest.raises(UserError, match=r"no .*current\. .* 1, 2, 3\. Choose one: engram rollback"):
        loaded(model)
    with pytest.raises(UserError, match="Choose one"):
        model_commands.learn(["elsewhere", "--into", str(tmp_path), "--keep-versions", "1"])
    assert model.numbers() == [1, 2, 3]
    model.rollback(3)
    assert loaded(model).classes_ == ("red", "grün", "blue")


def test_the_only_version_is_the_current_one(tmp_path: Path) -> None:
    """Whoever wrote it may have been stopped just before it was pointed to."""
    model = grown(tmp_path, ("red",))
    (tmp_path / "current").unlink()
    assert model.current == 1
    assert loaded(model).classes_ == ("red",)


def test_nobody_goes_back_to_what_cannot_be_read(tmp_path: Path) -> None:
    model = grown(tmp_path)
    (model.path(1) / "version.json").write_text("{")
    with pytest.raises(UserError, match="cannot be read"):
        model.rollback(1)
    assert model.current == 3


def test_what_was_not_learnt_from_a_version_does_not_say_so(tmp_path: Path) -> None:
    model = grown(tmp_path)
    small_learner().learn({"blue": coloured("blue", 12)}).save(tmp_path)
    assert model.facts(4).parent is None


def test_a_version_with_other_classes_than_it_learnt_is_refused(tmp_path: Path) -> None:
    model = grown(tmp_path)
    path = model.path(3) / "version.json"
    facts = json.loads(path.read_text())
    del facts["learner"]["classes"][-1]
    path.write_text(json.dumps(facts))
    with pytest.raises(UserError, match=r"has learnt 3 classes, and 2 are named.* rollback"):
        loaded(model)
