"""The layers of the package: imports go downwards only."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import engram
from engram.methods import METHODS

SOURCE = Path(engram.__file__).parent

LAYERS: dict[str, int] = {
    "errors": 0,
    "seeding": 0,
    "config": 0,
    "files": 0,
    "data.images": 0,
    "models": 0,
    "results.figures": 0,
    "results.formats": 0,
    "results.found": 0,
    "results.markup": 0,
    "results.metrics": 0,
    "results.model_page": 0,
    "results.outcomes": 0,
    "results.verdict": 0,
    "data.codecs": 1,
    "data.encoded": 1,
    "data.augment": 1,
    "data.batches": 1,
    "data.benchmarks": 1,
    "data.folders": 1,
    "data.orders": 1,
    "data.pictures": 1,
    "data.stream": 1,
    "engine": 2,
    "memory": 2,
    "methods": 3,
    "results.comparison": 3,
    "results.exemplar_report": 3,
    "results.paired": 3,
    "results.record": 3,
    "results.report": 3,
    "results.run_report": 3,
    "runs": 3,
    "doctor": 4,
    "results.summary": 4,
    "task_learner": 4,
    "holdout": 4,
    "export": 4,
    "learner": 5,
    "versions": 4,
    "bench": 5,
    "console": 6,
    "commands": 6,
    "model_commands": 6,
    "serve": 6,
    "cli": 6,
    "__main__": 6,
}

# Other packages, each known in as few modules as can be.
OTHERS_WEIGHTS = {"timm", "huggingface_hub"}
ONE_PLACE = {
    *("sklearn", "yaml", "tyro", "safetensors", "filelock", "rich", "PIL", "fastapi"),
    *OTHERS_WEIGHTS,
}


def modules() -> Iterator[tuple[str, ast.Module]]:
    for path in sorted(SOURCE.rglob("*.py")):
        parts = path.relative_to(SOURCE).with_suffix("").parts
        name = ".".join(part for part in parts if part != "__init__")
        if name:
            yield name, ast.parse(path.read_text())


EVERY_MODULE = pytest.mark.parametrize(
    ("module", "tree"), [pytest.param(name, tree, id=name) for name, tree in modules()]
)


def imported(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def own(name: str) -> str | None:
    """The module of this package that an imported name belongs to."""
    if not name.startswith("engram."):
        return None
    words = name.split(".")[1:]
    while words:
        path = SOURCE.joinpath(*words)
        if path.is_dir() or path.with_suffix(".py").exists():
            return ".".join(words)
        words.pop()
    return None


def layer(module: str) -> int:
    name = module
    while name and name not in LAYERS:
        name = name.rpartition(".")[0]
    assert name, f"{module} has no layer: add it to LAYERS"
    return LAYERS[name]


@EVERY_MODULE
def test_imports_go_downwards(module: str, tree: ast.Module) -> None:
    for name in filter(None, map(own, imported(tree))):
        assert layer(name) <= layer(module), f"{module} imports {name} from a higher layer"


@EVERY_MODULE
def test_methods_know_neither_each_other_nor_the_engine(module: str, tree: ast.Module) -> None:
    targets = set(filter(None, map(own, imported(tree))))
    if module.startswith("methods."):
        assert not any(name.startswith("engine") for name in targets)
        methods = {kind.__module__.removeprefix("engram.") for kind in METHODS.values()}
        assert targets.isdisjoint(methods)
    if module.startswith("engine"):
        assert not targets & {"memory", "data.stream"}
        assert not any(name.startswith("methods") for name in targets)


def test_each_other_package_is_known_in_few_places() -> None:
    places: dict[str, set[str]] = {}
    for module, tree in modules():
        for name in imported(tree):
            package = name.split(".")[0]
            if package in ONE_PLACE:
                places.setdefault(package, set()).add(module)
    assert places["sklearn"] == {"data.benchmarks"}
    assert places["PIL"] <= {"data.pictures", "data.codecs.files", "results.figures"}
    assert places["safetensors"] == places["filelock"] == {"files"}
    assert places["timm"] == places["huggingface_hub"] == {"models.pretrained"}
    assert places["tyro"] == {"commands", "console", "model_commands"}
    assert places["yaml"] == {"config"}
    assert {name.split(".")[0] for name in places["fastapi"]} == {"serve"}
    assert places["rich"] == {"console", "model_commands", "data.benchmarks", "data.folders"}


BESIDE = [
    *("timm", "torchvision", "sklearn", "fastapi", "uvicorn", "onnx", "onnxscript"),
    *("onnxruntime", "huggingface_hub", "pi_heif", "pillow_jxl"),
]
"""What an installation without extras does not have."""


def test_what_is_installed_beside_is_imported_only_where_it_is_needed() -> None:
    core = [name for name, _ in modules() if not name.startswith(("serve", "__main__"))]
    program = (
        "import importlib, sys\n"
        f"sys.modules.update(dict.fromkeys({BESIDE}))\n"
        f"for name in {core}: importlib.import_module(f'engram.{{name}}')"
    )
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (answer.returncode, answer.stderr) == (0, "")


def test_relative_imports_are_seen() -> None:
    for text in ("from . import icarl", "from .icarl import ICaRL"):
        with pytest.raises(AssertionError, match="imports are absolute"):
            list(imported(ast.parse(text)))
