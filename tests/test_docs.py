"""The documentation: generated tables are those of results/, and the commands it names exist."""

from __future__ import annotations

import importlib.util
import inspect
import json
import re
import textwrap
import types
from pathlib import Path
from typing import Any

import pytest

from engram.cli import COMMANDS
from engram.methods.icarl import ICaRL
from engram.results.comparison import find_runs

ROOT = Path(__file__).parents[1]
RESULTS = sorted((ROOT / "results").rglob("*.json"))


@pytest.fixture
def generate(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    monkeypatch.syspath_prepend(ROOT / "docs")
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_tables_show_what_results_holds(generate: types.ModuleType) -> None:
    for path in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]:
        text = path.read_text()
        assert generate.filled(text, generate.measured()) == text, f"{path}: run make docs"


def test_figures_show_what_results_holds(generate: types.ModuleType, tmp_path: Path) -> None:
    measured = generate.measured()
    assert generate.figures.outdated(ROOT / "docs" / "figures", measured) == []
    study = [study_run(codec, budget) for codec in ("float16", "float32") for budget in (6, 24)]
    assert generate.figures.outdated(tmp_path, study) == ["float16", "bytes"]
    for name in ("float16", "bytes"):
        generate.figures.draw(tmp_path, name, study)
    assert generate.figures.outdated(tmp_path, study) == []
    assert "float32" in (tmp_path / "float16.svg").read_text()
    study[0]["average_incremental_accuracy"] += 1
    assert generate.figures.outdated(tmp_path, study) == ["bytes"]


def study_run(codec: str, megabytes: int) -> dict[str, Any]:
    """What the figures read of a run of the memory study."""
    return {
        "method": "icarl",
        "preset": "quick",
        "codec": codec,
        "config": {"budget": {6: "6144000B", 24: "24576000B"}[megabytes], "settings": {}},
        "task_sizes": [10, 10],
        "average_incremental_accuracy": 50.0 + megabytes,
        "accuracy_by_classifier": {"nme": {"accuracy_per_task": [80.0, 60.0]}},
    }


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_every_result_is_a_whole_summary(path: Path) -> None:
    (run,) = [run for run in find_runs(ROOT / "results").runs if run.path == path]
    summary = run.summary
    assert summary["method"] == path.parent.name
    assert path.stem.startswith(f"{summary['method']}-")
    assert summary["evaluate_on"] in json.loads(path.read_text())["config"].values()
    assert "dirty" not in summary["environment"]["commit"]


def test_the_readme_names_what_exists() -> None:
    text = (ROOT / "README.md").read_text()
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"^make ([\w-]+)", text, re.MULTILINE)) <= targets
    assert set(re.findall(r"`?engram (\w+)", text)) <= {*COMMANDS}
    for link in re.findall(r"\]\((?!http)([^)#]+)", text):
        assert (ROOT / link).exists(), link


def test_the_readme_shows_icarl_as_it_is() -> None:
    source = textwrap.dedent(inspect.getsource(ICaRL.learn))
    shown = re.search(r"```python\n(def learn.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert shown is not None
    assert shown[1].splitlines()[1:] == source.splitlines()[1:]
