"""Reading data sets: official files, folders of photographs, and everything wrong with them."""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import shutil
import tarfile
import unicodedata
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import pytest
import torch
from filelock import FileLock
from PIL import Image

from engram.data import benchmarks
from engram.data.benchmarks import load_dataset
from engram.data.stream import create_stream
from engram.errors import UserError
from engram.memory import Budget
from engram.runs import preset_settings
from engram.task_learner import TaskLearner

PATIENCE = 30
"""Seconds that another thread is waited for."""


def photograph(path: Path, colour: tuple[int, int, int], size: tuple[int, int] = (40, 30)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    for split in ("train", "test"):
        photograph(folder / split / "red things" / "a.png", (255, 0, 0))
        photograph(folder / split / "Ünïcode" / "deep" / "er" / "b.jpg", (0, 255, 0), (30, 90))
    photograph(folder / "train" / "red things" / "grey.png", (9, 9, 9))
    Image.new("L", (10, 10), 77).save(folder / "train" / "red things" / "c.png")
    (folder / "train" / "red things" / "notes.txt").write_text("no image")
    return folder


def test_a_folder_of_photographs(photos: Path) -> None:
    dataset = load_dataset(str(photos), image_size=16)
    assert dataset.class_names == ("red things", "Ünïcode")
    assert dataset.train.image_size == (16, 16)
    assert dataset.train.labels.tolist() == [0, 0, 0, 1]
    assert dataset.train.pixels[0, 0, 0].tolist() == [255, 0, 0]
    assert dataset.train.pixels[1, 5, 5].tolist() == [77, 77, 77]


def test_photographs_are_turned_upright(photos: Path) -> None:
    image = Image.new("RGB", (20, 10), (0, 0, 0))
    image.paste((255, 255, 255), (0, 0, 10, 10))
    exif = Image.Exif()
    exif[0x0112] = 6  # taken with the camera turned: the left half belongs on top
    image.save(photos / "train" / "red things" / "0.png", exif=exif)
    pixels = load_dataset(str(photos), image_size=10).train.pixels[0]
    assert pixels[0].float().mean() > 200
    assert pixels[-1].float().mean() < 50


def test_what_a_mac_leaves_beside_photographs_is_none(photos: Path) -> None:
    before = load_dataset(str(photos))
    (photos / "train" / "red things" / "._a.jpg").write_bytes(b"no picture")
    assert len(load_dataset(str(photos)).train) == len(before.train)


def test_photographs_are_decoded_once_for_several_runs(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = load_dataset(str(photos), image_size=9)
    monkeypatch.setattr("engram.data.folders.pixels_of", None)
    assert torch.equal(load_dataset(str(photos), image_size=9).train.pixels, before.train.pixels)
    monkeypatch.undo()
    changed = photos / "train" / "red things" / "a.png"
    photograph(changed, (0, 0, 255))
    os.utime(changed, (1, 1))
    assert load_dataset(str(photos), image_size=9).train.pixels[0, 0, 0].tolist() == [0, 0, 255]


def test_names_of_classes_are_text_however_a_file_system_spells_them(photos: Path) -> None:
    decomposed = unicodedata.normalize("NFD", "Ünïcode")
    (photos / "test" / "Ünïcode").rename(photos / "test" / decomposed)
    for split in ("train", "test"):
        photograph(photos / split / os.fsdecode(b"ch\xe9t") / "a.png", (0, 0, 0))
    dataset = load_dataset(str(photos), image_size=16)
    assert dataset.class_names == ("ch\\udce9t", "red things", "Ünïcode")
    assert dataset.test.labels.tolist() == [0, 1, 2]


def test_what_is_wrong_with_a_folder_is_named(photos: Path, tmp_path: Path) -> None:
    broken = photos / "train" / "red things" / "broken.jpg"
    broken.write_bytes(b"not a jpeg")
    with pytest.raises(UserError, match=r"broken\.jpg cannot be read as an image"):
        load_dataset(str(photos))
    broken.unlink()
    photograph(photos / "test" / "blue" / "d.png", (0, 0, 255))
    with pytest.raises(UserError, match="has not: blue"):
        load_dataset(str(photos))
    shutil.rmtree(photos / "test")
    with pytest.raises(UserError, match="There is no folder"):
        load_dataset(str(photos))
    with pytest.raises(UserError, match="no/such/place"):
        load_dataset("no/such/place")
    (tmp_path / "empty" / "train").mkdir(parents=True)
    with pytest.raises(UserError, match="has no folders"):
        load_dataset(str(tmp_path / "empty"))


def imagenet_tree(folder: Path, classes: int, photographs: dict[str, int]) -> None:
    """Small photographs in ImageNet's layout, of colours by which classes can be told."""
    for number in range(classes):
        for split, count in photographs.items():
            for photo in range(count):
                name = f"n{number:08d}/n{number:08d}_{photo}.JPEG"
                colour = (2 * (number % 100), photo, 10 * (number // 100))
                photograph(folder / split / name, colour, (30, 20))


@pytest.fixture
def imagenet100(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tree of ImageNet-100's shape, with three small photographs a class."""
    imagenet_tree(tmp_path / "imagenet100", 100, {"train": 2, "val": 1})
    monkeypatch.setenv("ENGRAM_DATA", str(tmp_path))
    return tmp_path / "imagenet100"


def test_imagenet_is_prepared_once(imagenet100: Path) -> None:
    dataset = load_dataset("imagenet100", image_size=16)
    assert dataset.name == "imagenet100"
    assert len(dataset.class_names) == 100
    assert dataset.train.pixels.shape == (200, 16, 16, 3)
    assert dataset.test.labels.tolist() == list(range(100))
    assert (dataset.train.pixels[:, 8, 8, 0].int() - 2 * dataset.train.labels).abs().max() <= 3
    for path in imagenet100.rglob("*.JPEG"):
        path.write_bytes(b"not read again")
    again = load_dataset("imagenet100", image_size=16)
    assert np.array_equal(again.train.pixels, dataset.train.pixels)
    (imagenet100 / "train" / "n00000000" / "n00000000_0.JPEG").unlink()
    with pytest.raises(UserError, match=r"held other images. Remove .*prepared-16px"):
        load_dataset("imagenet100", image_size=16)


def test_who_waits_for_another_s_preparation_says_so(
    imagenet100: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock, held, told = FileLock(imagenet100 / "prepared-16px.lock"), Event(), Event()
    warn = warnings.warn

    def hold() -> None:
        with lock:
            held.set()
            told.wait(PATIENCE)

    def heard(*words: Any, **options: Any) -> None:
        warn(*words, **options)
        told.set()

    monkeypatch.setattr(warnings, "warn", heard)
    with ThreadPoolExecutor() as pool:
        pool.submit(hold)
        assert held.wait(PATIENCE)
        with pytest.warns(UserWarning, match="Another process makes .*prepared-16px: waiting for"):
            assert len(load_dataset("imagenet100", image_size=16).test) == 100


def test_a_folder_whose_name_looks_like_markup_is_prepared(
    imagenet100: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As text, this path has a tag that closes nothing.
    moved = tmp_path / "a[" / "x]" / "imagenet100"
    moved.parent.mkdir(parents=True)
    imagenet100.rename(moved)
    monkeypatch.setenv("ENGRAM_DATA", str(moved.parent))
    assert len(load_dataset("imagenet100", image_size=16).test) == 100


def test_a_preparation_that_fails_leaves_nothing_to_be_taken_for_one(imagenet100: Path) -> None:
    broken = imagenet100 / "val" / "n00000099" / "n00000099_0.JPEG"
    good = broken.read_bytes()
    broken.write_bytes(b"not a jpeg")
    with pytest.raises(UserError, match=r"n00000099_0.JPEG cannot be read"):
        load_dataset("imagenet100", image_size=16)
    assert not (imagenet100 / "prepared-16px").exists()
    broken.write_bytes(good)
    assert len(load_dataset("imagenet100", image_size=16).test) == 100


@pytest.mark.filterwarnings("ignore:Another process makes")
def test_two_processes_may_prepare_imagenet_at_once(imagenet100: Path) -> None:
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(lambda size: load_dataset("imagenet100", size), (16, 16))
    assert torch.equal(first.train.pixels, second.train.pixels)
    assert not list(imagenet100.glob("*.partial"))


def test_a_preparation_that_was_cut_short_is_told(imagenet100: Path) -> None:
    load_dataset("imagenet100", image_size=16)
    os.truncate(imagenet100 / "prepared-16px" / "val.uint8", 1000)
    with pytest.raises(UserError, match=r"val.uint8 is not whole. Remove .*prepared-16px"):
        load_dataset("imagenet100", image_size=16)


def test_imagenet_has_its_number_of_classes(imagenet100: Path) -> None:
    shutil.rmtree(imagenet100 / "train" / "n00000042")
    shutil.rmtree(imagenet100 / "val" / "n00000042")
    with pytest.raises(UserError, match="has 99 class folders; imagenet100 has 100"):
        load_dataset("imagenet100", image_size=16)


@pytest.mark.parametrize("preset", ["imagenet100", "imagenet1000"])
def test_imagenet_presets_learn_a_tree_of_its_shape(imagenet100: Path, preset: str) -> None:
    stream = create_stream("imagenet100/b0-inc50", order="seed1993", image_size=32)
    settings = preset_settings("der", preset)
    assert settings.backbone == "resnet18-imagenet"
    short = replace(settings.schedule, epochs=1, milestones=(), warmup=0.0)
    settings = replace(settings, schedule=short, draws=1, head_epochs=1, keep=0.05)
    budget = Budget.parse("100")
    learner = TaskLearner("der", settings, image_size=(32, 32), budget=budget, codec="jpeg:75")
    for task in stream:
        learner.learn(task)
    assert learner.scores(stream.evaluation(range(100))).shape == (100, 100)


def test_all_of_imagenet_is_a_stream(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    imagenet_tree(tmp_path / "imagenet1000", 1000, {"train": 1, "val": 1})
    monkeypatch.setenv("ENGRAM_DATA", str(tmp_path))
    stream = create_stream("imagenet1000/b0-inc100", order="seed1993", image_size=8)
    assert [len(task.new) for task in stream] == [100] * 10
    first = stream.task(0)
    assert first.train.pixels.shape == (100, 8, 8, 3)
    originals = torch.tensor(stream.order[:100])[first.train.labels]
    reds, blues = first.train.pixels[:, 4, 4, 0].int(), first.train.pixels[:, 4, 4, 2].int()
    assert (reds - 2 * (originals % 100)).abs().max() <= 3
    assert (blues - 10 * (originals // 100)).abs().max() <= 3
    assert stream.evaluation(range(1000)).pixels.shape == (1000, 8, 8, 3)


def test_named_data_sets_have_their_own_size() -> None:
    with pytest.raises(UserError, match="its own image size"):
        load_dataset("digits", image_size=16)


def test_a_truncated_or_altered_file_is_refused(
    cifar100_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = cifar100_folder / "cifar-100-python"
    folder = tmp_path / "cifar-100-python"
    folder.mkdir()
    shutil.copy(source / "meta", folder)
    monkeypatch.setenv("ENGRAM_DATA", str(tmp_path))
    content = bytearray((source / "test").read_bytes())
    for damaged in (content[:-1], content[:1000] + b"!" + content[1001:]):
        (folder / "train").write_bytes(damaged)
        with pytest.raises(UserError, match="is not the official file"):
            load_dataset("cifar100")
    (folder / "train").unlink()
    with pytest.raises(UserError, match="cannot be read"):
        load_dataset("cifar100")


def test_a_missing_data_folder_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ENGRAM_DATA", str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match="nowhere, which is not a folder"):
        load_dataset("cifar100")


def test_a_failed_download_says_what_to_do_and_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr(benchmarks.urllib.request, "urlopen", refuse)
    monkeypatch.setenv("ENGRAM_DATA", str(tmp_path))
    with pytest.raises(UserError, match="could not be downloaded"):
        load_dataset("cifar10")
    assert list(tmp_path.iterdir()) == []


class Answer(io.BytesIO):
    """What a server sends."""

    def __init__(self, content: bytes) -> None:
        super().__init__(content)
        self.headers = {"Content-Length": str(len(content))}


def archive_of(folder: str, files: dict[str, bytes]) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(f"{folder}/{name}")
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return packed.getvalue()


def md5(content: bytes) -> str:
    return hashlib.md5(content).hexdigest()


CIFAR_LAYOUTS = {
    "cifar10": (
        "cifar-10-batches-py",
        "batches.meta",
        [f"data_batch_{number}" for number in range(1, 6)],
        ["test_batch"],
        (b"labels",),
        (b"label_names",),
    ),
    "cifar100": (
        "cifar-100-python",
        "meta",
        ["train"],
        ["test"],
        (b"fine_labels", b"coarse_labels"),
        (b"fine_label_names", b"coarse_label_names"),
    ),
}
"""Folder, files and keys of the archives; of two keys, the first is of what is learnt."""


@pytest.mark.parametrize("name", CIFAR_LAYOUTS)
def test_cifar_is_downloaded_and_read_pixel_for_pixel(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, meta, train, test, label_keys, name_keys = CIFAR_LAYOUTS[name]
    random = np.random.default_rng(0)
    images = {file: random.integers(0, 256, (4, 32, 32, 3), np.uint8) for file in train + test}
    labels = {file: random.integers(0, 3, (2, 4)).tolist() for file in images}
    names = [[b"cat", b"dog", b"fish"], [b"animal", b"other", b"none"]]
    contents: dict[str, dict[bytes, Any]] = {meta: dict(zip(name_keys, names, strict=False))}
    for file in images:
        # A row an image: all of red from the top left, then all of green, then all of blue.
        rows = [[image[:, :, colour].ravel() for colour in range(3)] for image in images[file]]
        data = np.array(rows).reshape(4, 3072)
        contents[file] = {b"data": data, **dict(zip(label_keys, labels[file], strict=False))}
    files = {file: pickle.dumps(content, protocol=4) for file, content in contents.items()}
    archive = archive_of(folder, files)

    constant = f"_{name.upper()}"
    official = getattr(benchmarks, constant)
    ours = replace(
        official,
        archive_md5=md5(archive),
        train=tuple((file, md5(files[file])) for file in train),
        test=tuple((file, md5(files[file])) for file in test),
        meta=(meta, md5(files[meta])),
    )
    asked: list[str] = []

    def answer(url: str, **options: object) -> Answer:
        asked.append(url)
        return Answer(archive if len(asked) > 1 else archive[:-1])

    monkeypatch.setattr(benchmarks, constant, ours)
    monkeypatch.setattr(benchmarks, "_cifar", benchmarks._cifar.__wrapped__)
    monkeypatch.setattr(benchmarks.urllib.request, "urlopen", answer)
    monkeypatch.setenv("ENGRAM_DATA", str(tmp_path))
    with pytest.raises(UserError, match=r"The download of .* is damaged: md5"):
        load_dataset(name)
    assert list(tmp_path.iterdir()) == []
    for _ in range(2):
        dataset = load_dataset(name)
        assert dataset.class_names == ("cat", "dog", "fish")
        for found, of in ((dataset.train, train), (dataset.test, test)):
            assert np.array_equal(found.pixels, np.concatenate([images[file] for file in of]))
            assert found.labels.tolist() == [label for file in of for label in labels[file][0]]
    assert asked == [official.url] * 2, "what is there is not downloaded again"
    assert [path.name for path in tmp_path.iterdir()] == [folder]


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return print, ("a pickle may call anything",)


@pytest.mark.parametrize("payload", [Evil(), np.array([object()], dtype=object), {1: print}])
def test_the_unpickler_admits_arrays_only(payload: object) -> None:
    with pytest.raises(pickle.UnpicklingError, match="not admitted"):
        benchmarks._ArrayUnpickler(io.BytesIO(pickle.dumps([payload]))).load()


def test_the_unpickler_admits_arrays() -> None:
    array = np.arange(6, dtype=np.uint8).reshape(2, 3)
    content = pickle.dumps({b"data": array}, protocol=4)
    loaded = benchmarks._ArrayUnpickler(io.BytesIO(content)).load()
    assert np.array_equal(loaded[b"data"], array)
