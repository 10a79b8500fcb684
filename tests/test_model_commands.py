"""The commands for folders of images, from the first class to a rollback."""

from __future__ import annotations

import io
import json
import re
import sys
from pathlib import Path

import pytest
from PIL import Image

from conftest import Command, coloured
from engram.config import Preset
from engram.learner import load
from engram.versions import ModelFolder


def pictures(folder: Path, *names: str, count: int = 8, seed: int = 0) -> Path:
    """A folder with a folder of pictures for each colour."""
    for name in names:
        (folder / name).mkdir(parents=True, exist_ok=True)
        for number, pixels in enumerate(coloured(name, count, seed)):
            Image.fromarray(pixels).save(folder / name / f"{seed}-{number}.png")
    return folder


@pytest.fixture(autouse=True)
def small_models(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every method stands on a small network with random weights."""
    small = {
        "pretrained": {"backbone": "vit_micro_patch4_16", "weights": "random", "input_size": 16},
        "projected": 100,
        "adapt": False,
    }
    preset = Preset(reaches={}, budget="20MB", settings=small)
    monkeypatch.setattr("engram.runs.load_preset", lambda method, name: preset)


LEARN = ("--into", "model", "--device", "cpu")


def test_from_the_first_class_to_a_rollback(engram: Command, tmp_path: Path) -> None:
    first, second = pictures(tmp_path / "1", "red", "blue"), pictures(tmp_path / "2", "grün")
    code, text = engram("learn", "1", *LEARN, "--image-size", "16", "--budget", "300kB")
    assert code == 0
    assert "2 classes are known" in text
    assert "Version 1 of model" in text
    code, text = engram("learn", "2", *LEARN)
    assert code == 0
    assert "red" in text
    assert "100.0 %" in text
    assert "measured on" in text
    assert "No loss was seen on the 2 pictures of both classes" in text
    assert "(1 a class; so few that one picture can count for 50 points)" in " ".join(text.split())
    page = (tmp_path / "model" / "forgetting.html").read_text()
    assert "What did it forget?" in page
    assert "grün" in page

    code, text = engram("predict", "model", "2/grün/0-0.png", "1/red/0-0.png", "--top", "1")
    assert code == 0
    lines = text.splitlines()
    assert lines[0].startswith("2/grün/0-0.png: grün ")
    assert lines[1].startswith("1/red/0-0.png: red ")
    code, text = engram("predict", "model", "1/red/0-0.png", "--json", "--top", "2")
    found = json.loads(text)
    assert found["picture"] == "1/red/0-0.png"
    assert found["labels"][0]["label"] == "red"
    assert len(found["labels"]) == 2

    code, text = engram("evaluate", "model", "1", "--report", "out.html")
    assert code == 0
    assert "measured on" in text
    assert "100.0 % of all 16 pictures were recognised (8 a class; too few to be sure)." in text
    assert "By class" in (tmp_path / "out.html").read_text()
    code, text = engram("history", "model")
    assert code == 0
    assert "\N{RIGHTWARDS ARROW}  2" in text
    assert "on disk" in text
    lost = re.findall(" (\N{EN DASH}|\\d\\.\\d) *$", text, re.MULTILINE)
    assert lost == ["\N{EN DASH}", "0.0"]
    assert engram("rollback", "model", "1") == (0, "Version 1 of model is the current one.\n")
    assert "grün" not in engram("predict", "model", "2/grün/0-0.png")[1].partition(":")[2]
    assert first.exists()
    assert second.exists()


def test_names_survive_an_output_that_cannot_write_them(
    engram: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures(tmp_path / "2", "red", "grün")
    engram("learn", "2", *LEARN, "--image-size", "16", "--budget", "300kB")
    output = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", output)
    code, _ = engram("predict", "model", "2/grün/0-0.png", "--json")
    output.seek(0)
    assert code == 0
    assert json.loads(output.read())["labels"][0]["label"] == "grün"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("learn", "nowhere", *LEARN), "There is no folder nowhere"),
        (("learn", "pictures", *LEARN), "Known already: red. To learn from their new images"),
        (("learn", "other", *LEARN, "--seed", "3"), "was made with seed 0, not 3"),
        (("learn", "other", *LEARN, "--codec", "png"), "was made with codec jpeg:75, not png"),
        (("learn", "other", *LEARN, "--image-size", "24"), "made with image-size 16, not 24"),
        (("learn", "other", *LEARN, "--method", "lae"), "was made with method ranpac, not lae"),
        (("learn", "other", *LEARN, "--budget", "much"), '"much" is not a budget'),
        (("learn", "other", *LEARN, "--holdout", "2"), "holdout must be in [0, 1), not 2.0"),
        (("learn", "other", *LEARN, "--weights", "no.npz"), "model has its weights already"),
        (
            ("learn", "other", "--into", "other/model"),
            "other/model lies in other, where",
        ),
        (("learn", "other", "--into", "new", "--image-size", "0"), "image_size must be 8 or more"),
        (("learn", "other", "--into", "new", "--weights", "no.npz"), "There is no file no.npz"),
        (
            ("learn", "other", "--into", "new", "--method", "icarl", "--weights", "no.npz"),
            "--weights goes with lae and ranpac. What icarl starts from is looked for in weights/",
        ),
        (("learn", "other", *LEARN, "--keep-versions", "0"), "At least one version must be kept"),
        (("predict", "model"), "wants pictures after the model"),
        (("predict", "model", "nothing.jpg"), "There is no file nothing.jpg"),
        (("predict", "elsewhere", "nothing.jpg"), "There is no model in elsewhere"),
        (("evaluate", "model", "other"), 'Unknown class "blue"'),
        (
            ("history", "elsewhere"),
            "There is no model in elsewhere. Learn one: engram learn FOLDER --into elsewhere",
        ),
        (
            ("evaluate", "model", "nowhere", "--report", "reports/out.html"),
            "There is no folder reports for reports/out.html. Make it, or name another.",
        ),
        (("evaluate", "model", "pictures", "--report", "other"), "other is a folder. Name a file"),
        (("export", "elsewhere", "--to", "files/x.onnx"), "There is no folder files for files/x"),
        (("predict", "model", "pictures"), "pictures is a folder. Give the pictures that are in"),
        (("rollback", "model", "7"), "model has no version 7. Present: 1"),
    ],
)
def test_a_mistake_is_one_line_and_changes_nothing(
    engram: Command, tmp_path: Path, words: tuple[str, ...], message: str
) -> None:
    pictures(tmp_path / "pictures", "red")
    pictures(tmp_path / "other", "blue")
    engram("learn", "pictures", *LEARN, "--image-size", "16", "--budget", "300kB")
    code, text = engram(*words)
    assert code == 2
    assert message in text
    assert len(text.strip().splitlines()) == 1
    model = ModelFolder(tmp_path / "model")
    assert model.numbers() == [1]
    assert load(model.folder, device="cpu").classes_ == ("red",)
    assert {path.name for path in tmp_path.iterdir()} <= {"pictures", "other", "model"}


def test_a_model_is_exported(engram: Command, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    pictures(tmp_path / "pictures", "red", "blue")
    engram("learn", "pictures", *LEARN, "--image-size", "16")
    code, text = engram("export", "model", "--to", "model.onnx")
    assert code == 0
    assert text.startswith("model.onnx: pixels (N, H, W, 3) uint8 to scores")
    assert (tmp_path / "model.onnx").stat().st_size > 1000


def test_an_interruption_has_an_exit_code_of_its_own(
    engram: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*given: object, **options: object) -> None:
        raise KeyboardInterrupt

    pictures(tmp_path / "pictures", "red", "blue")
    monkeypatch.setattr("engram.task_learner.TaskLearner.learn", interrupt)
    code, text = engram("learn", "pictures", *LEARN, "--image-size", "16")
    assert code == 130
    assert "Traceback" not in text
    assert not (tmp_path / "model" / "current").exists()


def test_a_version_that_forgets_too_much_is_refused(engram: Command, tmp_path: Path) -> None:
    pictures(tmp_path / "pictures", "red", "blue", count=20)
    pictures(tmp_path / "other", "red", count=60, seed=1)
    (tmp_path / "other" / "red").rename(tmp_path / "other" / "scarlet")
    engram("learn", "pictures", *LEARN, "--image-size", "16", "--holdout", "0.5")
    code, text = engram("learn", "other", *LEARN, "--refuse-if-forgetting-above", "5")
    assert code == 2
    assert re.search(
        r"Known classes lost \d\d\.\d points on average, more than 5\. model stays", text
    )
    assert ModelFolder(tmp_path / "model").numbers() == [1]
    assert engram("learn", "other", *LEARN, "--refuse-if-forgetting-above", "99")[0] == 0
    assert ModelFolder(tmp_path / "model").numbers() == [1, 2]


def test_what_cannot_be_measured_is_not_taken_for_nothing_forgotten(
    engram: Command, tmp_path: Path
) -> None:
    pictures(tmp_path / "pictures", "red", count=3)
    pictures(tmp_path / "other", "blue")
    limit = ("--refuse-if-forgetting-above", "5")
    assert engram("learn", "pictures", *LEARN, "--image-size", "16", *limit)[0] == 0
    code, text = engram("learn", "other", *LEARN, *limit)
    assert code == 2
    assert "What was forgotten cannot be measured" in text
    assert ModelFolder(tmp_path / "model").numbers() == [1]
    assert engram("learn", "other", *LEARN, *limit, "--test", "pictures")[0] == 0


def test_what_is_left_out_is_counted(engram: Command, tmp_path: Path) -> None:
    pictures(tmp_path / "pictures", "red", "blue")
    (tmp_path / "pictures" / "red" / "x.jpg").write_text("broken")
    code, text = engram("learn", "pictures", *LEARN, "--image-size", "16")
    assert code == 0
    assert "1 picture left out, as unreadable:" in text
    assert "x.jpg cannot be read as an image" in text
    pictures(tmp_path / "pictures", "red", seed=1)
    code, text = engram("learn", "pictures", *LEARN, "--update")
    assert code == 0
    assert "14 images learnt before, or given twice: left out." in text


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere names may not differ so")
def test_names_that_differ_in_their_case_alone_are_told(engram: Command, tmp_path: Path) -> None:
    pictures(tmp_path / "pictures", "blue", "red")
    assert "two classes now" not in engram("learn", "pictures", *LEARN, "--image-size", "16")[1]
    pictures(tmp_path / "other", "Blue")
    assert "blue and Blue are two classes now" in engram("learn", "other", *LEARN)[1]
    pictures(tmp_path / "third", "grün")
    assert "two classes now" not in engram("learn", "third", *LEARN)[1]


def test_the_budget_of_a_model_and_its_holdout_can_be_changed(
    engram: Command, tmp_path: Path
) -> None:
    pictures(tmp_path / "pictures", "red")
    pictures(tmp_path / "other", "blue")
    pictures(tmp_path / "third", "grün")
    engram("learn", "pictures", *LEARN, "--image-size", "16", "--budget", "300kB")
    assert engram("learn", "other", *LEARN, "--budget", "1MB", "--holdout", "0.5")[0] == 0
    assert engram("learn", "third", *LEARN)[0] == 0
    for version, settings in ((1, ("300kB", 0.1)), (2, ("1MB", 0.5)), (3, ("1MB", 0.5))):
        learner = load(tmp_path / "model", version, device="cpu")
        assert (learner.budget, learner.holdout) == settings
    assert [change.images for change in learner.changes_] == [1, 4, 4]


def test_of_several_pictures_one_may_be_broken(engram: Command, tmp_path: Path) -> None:
    pictures(tmp_path / "pictures", "red", "blue")
    engram("learn", "pictures", *LEARN, "--image-size", "16")
    (tmp_path / "x.jpg").write_text("broken")
    code, text = engram("predict", "model", "x.jpg", "pictures/red/0-0.png", "--top", "1")
    assert code == 2
    assert "x.jpg cannot be read as an image" in text
    assert "pictures/red/0-0.png: red" in text
    assert "1 of 2 pictures could not be read" in text


@pytest.mark.parametrize("top", ["0", "-1"])
def test_no_fewer_than_one_class_is_named(engram: Command, tmp_path: Path, top: str) -> None:
    pictures(tmp_path / "pictures", "red", "blue")
    engram("learn", "pictures", *LEARN, "--image-size", "16")
    names = ("pictures/red/0-0.png", "pictures/blue/0-0.png")
    code, text = engram("predict", "model", *names, "--top", top)
    assert (code, text.count("\n")) == (2, 1)
    assert f"not {top}: top must be 1 or more" in text


def test_a_damaged_version_is_listed_as_such(engram: Command, tmp_path: Path) -> None:
    pictures(tmp_path / "pictures", "red")
    pictures(tmp_path / "other", "blue")
    engram("learn", "pictures", *LEARN, "--image-size", "16")
    engram("learn", "other", *LEARN)
    (ModelFolder(tmp_path / "model").path(1) / "version.json").write_text("{")
    code, text = engram("history", "model")
    assert code == 0
    assert "damaged" in text
    assert "\N{RIGHTWARDS ARROW}  2" in text


def test_known_classes_learn_further_from_new_images(engram: Command, tmp_path: Path) -> None:
    pictures(tmp_path / "pictures", "red", "blue")
    pictures(tmp_path / "more", "red", seed=1)
    engram("learn", "pictures", *LEARN, "--image-size", "16", "--budget", "300kB")
    code, text = engram("learn", "more", *LEARN, "--update")
    assert code == 0
    assert "2 classes are known" in text
    model = load(tmp_path / "model", device="cpu")
    assert model.classes_ == ("blue", "red")
    assert model.memory.counts[1] > model.memory.counts[0]


def test_a_limit_of_forgetting_that_is_no_number_is_refused(
    engram: Command, tmp_path: Path
) -> None:
    pictures(tmp_path / "1", "red", "blue")
    code, text = engram("learn", "1", *LEARN, "--refuse-if-forgetting-above", "nan")
    assert code == 2
    assert "must be a number of points, not nan" in " ".join(text.split())
    assert not (tmp_path / "model").exists()


def test_a_page_that_cannot_be_written_undoes_nothing(engram: Command, tmp_path: Path) -> None:
    pictures(tmp_path / "1", "red", "blue")
    (tmp_path / "model" / "forgetting.html").mkdir(parents=True)
    code, text = engram("learn", "1", *LEARN, "--image-size", "16", "--budget", "300kB")
    assert code == 0
    assert "Version 1 of model. model/forgetting.html could not be written" in text
