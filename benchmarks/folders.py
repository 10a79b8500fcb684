"""Folders of pictures, learnt round by round: accuracy, time and bytes of every method.

    python benchmarks/folders.py photos cifar100 --work FOLDER --json docs/folders.json

`photos` are the photographs of the data folder: four rounds of five classes, tested on all classes
known so far. `cifar100` is written out as PNG files first: its first fifty classes in five rounds
of ten, with 50 training and 20 test images of each. Everything goes through `engram.Learner`, as
for anybody who has folders; what is tested on was never learnt or looked at before. Rows that the
JSON file has already are not measured again; every round is a version of a model below FOLDER, so
that what was interrupted goes on after the last of them.
"""

from __future__ import annotations

import argparse
import itertools
import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

import engram
from engram.config import Precision
from engram.data.benchmarks import load_dataset
from engram.files import data_folder
from engram.learner import Learner
from engram.results.record import environment
from engram.versions import ModelFolder

TRAIN, TEST = 50, 20


@dataclass(frozen=True)
class Contender:
    """A method with the settings it is compared in.

    What trains does so in bfloat16 where the processor has it, which about halves its time.
    """

    name: str
    method: str
    preset: str = "photos"
    budget: str = "20MB"
    image_size: int = 224
    precision: Precision = "auto"


CONTENDERS = (
    Contender("ranpac (the default)", "ranpac", precision="fp32"),
    Contender("lae", "lae"),
    Contender("finetune", "finetune", budget="0"),
    Contender("joint", "joint", budget="all"),
    Contender("icarl", "icarl"),
    Contender("der", "der"),
    Contender("icarl, from scratch", "icarl", preset="photos-scratch", image_size=96),
    Contender("der, from scratch", "der", preset="photos-scratch", image_size=96),
)

NAMES = [contender.name for contender in CONTENDERS]

CLASSES = {"photos": 5, "cifar100": 10}
"""How many come in a round of each set."""


def place(row: dict[str, Any]) -> tuple[int, int]:
    """Where a row stands in the table."""
    return list(CLASSES).index(row["set"]), NAMES.index(row["name"])


def pictures(name: str, work: Path) -> Path:
    """The folder of a set, with `train` and `test` below."""
    return data_folder() / "photos" if name == "photos" else png_folders(work / "cifar100-png")


def png_folders(folder: Path) -> Path:
    """The first fifty classes of CIFAR-100 as folders of PNG files."""
    if folder.exists():
        return folder
    dataset = load_dataset("cifar100")
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    for split, images, count in (("train", dataset.train, TRAIN), ("test", dataset.test, TEST)):
        for label, name in enumerate(dataset.class_names[:50]):
            target = partial / split / name
            target.mkdir(parents=True)
            for number, pixels in enumerate(images.of(label).pixels[:count].numpy()):
                Image.fromarray(pixels).save(target / f"{number:03}.png")
    partial.rename(folder)
    return folder


def by_class(folder: Path, names: Sequence[str]) -> dict[str, list[Path]]:
    return {name: sorted((folder / name).iterdir()) for name in names}


def rounds(contender: Contender, folder: Path, classes: int, model: Path) -> Iterator[Learner]:
    """The learner after each round; the rounds that are versions of the model already are read."""
    learner = Learner(
        contender.method,
        preset=contender.preset,
        budget=contender.budget,
        image_size=contender.image_size,
        precision=contender.precision,
    )
    names = sorted(path.name for path in (folder / "train").iterdir())
    for number, start in enumerate(range(0, len(names), classes), start=1):
        if number in ModelFolder(model).numbers():
            learner = engram.load(model, number)
        else:
            learner.learn(by_class(folder / "train", names[start : start + classes]))
            learner.save(model)
        yield learner


def measured_round(learner: Learner, test: Path) -> dict[str, Any]:
    """What the table says of a round."""
    return {
        "classes": len(learner.classes_),
        "accuracy": round(learner.evaluate(by_class(test, learner.classes_)).accuracy, 2),
        "seconds": round(learner.seconds_, 1),
        "bytes_of_images": learner.nbytes,
    }


def measured(contender: Contender, name: str, work: Path) -> dict[str, Any]:
    """All rounds of a method on the set `name`: a row of the table."""
    folder, model = pictures(name, work), work / "models" / f"{name}, {contender.name}"
    found = []
    for learner in rounds(contender, folder, CLASSES[name], model):
        found.append(measured_round(learner, folder / "test"))
        print(f"{name}, {contender.name}: {found[-1]}", flush=True)
    return {
        "set": name,
        "name": contender.name,
        "preset": contender.preset,
        "budget": contender.budget,
        "image_size": contender.image_size,
        "precision": contender.precision,
        "rounds": found,
        "environment": environment(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sets", nargs="+", choices=sorted(CLASSES))
    parser.add_argument("--work", type=Path, required=True, help="where folders are written out")
    parser.add_argument("--json", type=Path, required=True, help="the rows, old and new")
    parser.add_argument("--only", nargs="+", choices=NAMES, default=NAMES, help="some of the rows")
    options = parser.parse_args()
    content = json.loads(options.json.read_text()) if options.json.exists() else {"rows": []}
    there = {(row["set"], row["name"]) for row in content["rows"]}
    for name, contender in itertools.product(options.sets, CONTENDERS):
        if (name, contender.name) in there or contender.name not in options.only:
            continue
        content["rows"].append(measured(contender, name, options.work))
        content["rows"].sort(key=place)
        options.json.write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main()
