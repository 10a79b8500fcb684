"""The documentation: generated tables are those of results/, and the commands it names exist."""

from __future__ import annotations

import importlib.util
import inspect
import json
import re
import textwrap
import types
from pathlib import Path

import pytest

from engram.cli import COMMANDS
from engram.methods.icarl import ICaRL
from engram.results.comparison import find_runs

ROOT = Path(__file__).parents[1]
RESULTS = sorted((ROOT / "results").rglob("*.json"))


@pytest.fixture
def generate() -> types.ModuleType:
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
