"""The command line: what it prints, what it refuses, and that a refusal leaves nothing behind."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from conftest import Command
from engram import commands, console, doctor
from engram.bench import Execution
from engram.cli import COMMANDS, main
from engram.config import as_mapping
from engram.engine.fit import EpochReport
from engram.errors import UserError
from engram.results import record
from engram.results.record import OccupiedError
from engram.runs import RunConfig, configured, folder_name, preset_settings

DEMO = ("bench", "icarl", "digits/3,2", "--preset", "demo", "--updates", "5", "--device", "cpu")
RIDGE = ("bench", "ranpac", "digits/3,2", "--preset", "demo", "--device", "cpu")


def test_help_does_not_import_torch() -> None:
    program = (
        "import sys; sys.argv = ['engram', '--help']\n"
        "import engram.cli; engram.cli.main(); print('torch' in sys.modules)"
    )
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert "engram bench METHOD STREAM" in answer.stdout
    assert answer.stdout.endswith("False\n")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["bnech"], 'Perhaps you meant "bench"'),
        (["bench"], "wants a method first"),
        (["bench", "icral", "digits/b0-inc2"], 'Perhaps you meant "icarl"'),
        (["bench", "icarl", "digits/b0-inc2", "--preset", "dmo"], 'Perhaps you meant "demo"'),
        ([*DEMO, "--preset", "dmo"], 'Perhaps you meant "demo"'),
        (["bench", "icarl", "digts/b0-inc2", "--preset", "demo"], 'Perhaps you meant "digits"'),
        (["bench", "icarl", "nowhere/photos/b0-inc2"], "There is no folder nowhere/photos/train"),
        (["bench", "icarl", "digits/b0-inc20"], "does not fit 10 classes"),
        ([*DEMO, "--order", "icarl_run"], 'Perhaps you meant "icarl_run0"'),
        ([*DEMO, "--budget", "4"], "cannot hold one exemplar of each of the 5 classes"),
        ([*DEMO, "--budget", "lots"], "is not a budget"),
        ([*DEMO, "--budget", "0"], "--classifier network"),
        ([*DEMO, "--codec", "rew"], 'Perhaps you meant "raw"'),
        ([*DEMO, "--codec", "jpeg"], "a whole number from 1 to 100, as in jpeg:75"),
        ([*DEMO, "--codec", "jpeg:75", "--budget", "700B"], "bytes as jpeg:75"),
        ([*DEMO, "--codec-augmentation", "2"], "codec_augmentation must be in [0, 1]"),
        ([*DEMO, "--backbone", "resnet23"], 'Perhaps you meant "resnet32"'),
        ([*DEMO, "--device", "gpu"], "not available"),
        ([*DEMO, "--epochs", "0", "--updates", "0"], "epochs"),
        (["bench", "icarl", "photos/b0-inc5"], "Or name a folder with train/ and test/"),
        ([*RIDGE, "--projected", "600000"], "Not enough memory"),
        (["bench", "--grid", "missing.yaml"], "missing.yaml cannot be read"),
        (["report", "."], "No finished run"),
        (["bench", "--grid", "."], ". cannot be read"),
    ],
)
def test_bad_input_is_one_line_and_code_2(
    engram: Command, tmp_path: Path, words: list[str], message: str
) -> None:
    code, text = engram(*words)
    assert code == 2
    assert message in text
    assert text.startswith("engram: ")
    assert text.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["--classifer", "nme"], "--classifier"),
        (["--classifier", "nmee"], "'network'"),
        (["--seed", "one"], "--seed"),
    ],
)
def test_misspelt_options_are_answered_with_the_right_ones(
    engram: Command, tmp_path: Path, words: list[str], hint: str
) -> None:
    code, text = engram(*DEMO, *words)
    assert code == 2
    assert hint in text
    assert list(tmp_path.iterdir()) == []


def test_a_method_without_a_stream_is_told_what_is_missing(engram: Command) -> None:
    code, text = engram("bench", "icarl")
    assert code == 2
    assert "required" in text
    assert "engram bench icarl --help" in text


def test_a_damaged_cifar_file_is_refused_before_anything_is_written(
    engram: Command, tmp_path: Path, cifar100_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tmp_path / "data"
    shutil.copytree(cifar100_folder / "cifar-100-python", data / "cifar-100-python")
    with (data / "cifar-100-python" / "train").open("r+b") as file:
        file.truncate(10**6)
    monkeypatch.setenv("ENGRAM_DATA", str(data))
    code, text = engram("bench", "icarl", "cifar100/b0-inc10", "--preset", "quick")
    assert code == 2
    assert text.count("\n") == 1
    assert "train is not the official file: 1000000 bytes" in text
    assert list(tmp_path.iterdir()) == [data]


def test_bench_runs_skips_and_compares(engram: Command, tmp_path: Path) -> None:
    code, text = engram(*DEMO, "--seed", "0", "1")
    assert code == 0
    assert "task  2/2    5 classes" in text
    runs = sorted((tmp_path / "runs").iterdir())
    assert (runs[0] / "report.html").exists()
    assert [run.name for run in runs] == [
        "icarl-digits-3,2-demo-s0-updates=5",
        "icarl-digits-3,2-demo-s1-updates=5",
        "report.html",
    ]
    before = (runs[0] / "summary.json").read_text()
    code, text = engram(*DEMO, "--seed", "0")
    assert code == 0
    assert "finished already\n" in text
    assert (runs[0] / "summary.json").read_text() == before
    assert (runs[0] / "report.html").exists()
    assert engram("report", "runs")[0] == 0


class Received:
    """Takes the runs that a command would do; each is said to be done by another process."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.runs: list[dict[str, Any]] = []
        monkeypatch.setattr("engram.commands.run", self)
        monkeypatch.setattr("engram.commands.check", lambda config, out: None)

    def __call__(
        self, config: RunConfig, out: Path, progress: object, execution: Execution | None
    ) -> None:
        carried_out = asdict(execution or Execution())
        self.runs.append({"out": str(out), **as_mapping(config), **carried_out})
        raise OccupiedError("Another process is at work.")


@pytest.mark.parametrize(
    ("words", "name", "value"),
    [
        (["--strict"], "strict", True),
        (["--strict-memory"], "batchwise", True),
        (["--input-mean", "first-task"], "input_mean", "first-task"),
        (["--image-size", "48"], "image_size", 48),
        (["--images-per-class", "7"], "images_per_class", 7),
        (["--precision", "bf16"], "precision", "bf16"),
        (["--precision", "fp32"], "precision", "fp32"),
        (["--infer-through-codec"], "infer_through_codec", True),
        (["--evaluate-on", "validation"], "evaluate_on", "validation"),
        (["--order", "given"], "order", "given"),
        (["--budget", "50"], "budget", "50"),
        (["--codec", "png"], "codec", "png"),
        (["--out", "elsewhere"], "out", "elsewhere"),
    ],
)
def test_every_option_of_bench_reaches_the_run(
    engram: Command, monkeypatch: pytest.MonkeyPatch, words: list[str], name: str, value: object
) -> None:
    received = Received(monkeypatch)
    engram(*DEMO)
    engram(*DEMO, *words)
    usual, asked = received.runs
    assert asked[name] == value
    assert {key for key in usual if asked[key] != usual[key]} <= {name}


def test_options_of_a_grid_reach_its_runs(engram: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("grid.yaml").write_text("runs: [{method: joint, stream: 'digits/2,2', preset: demo}]")
    received = Received(monkeypatch)
    engram("bench", "--grid", "grid.yaml", "--out", "elsewhere")
    engram("bench", "--grid", "grid.yaml", "--strict", "--strict-memory")
    usual, strict = received.runs
    assert usual["out"] == "elsewhere"
    assert (usual["strict"], usual["batchwise"]) == (False, False)
    assert (strict["strict"], strict["batchwise"]) == (True, True)


def test_the_demo_is_a_method_between_its_floor_and_its_ceiling(
    engram: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    received = Received(monkeypatch)
    engram("demo", "--out", "here")
    assert [(found["method"], found["budget"]) for found in received.runs] == [
        ("finetune", "0"),
        ("icarl", "100"),
        ("joint", "all"),
    ]
    for found in received.runs:
        assert (found["stream"], found["preset"], found["out"]) == (
            "digits/b0-inc2",
            "demo",
            "here",
        )
        assert (found["seed"], found["order"], found["evaluate_on"]) == (0, "seed0", "test")
        assert found["settings"] == as_mapping(preset_settings(found["method"], "demo"))


def test_summary_says_what_was_asked_and_what_came_out(engram: Command, tmp_path: Path) -> None:
    assert engram(*DEMO, "--order", "given", "--evaluate-on", "validation")[0] == 0
    (path,) = tmp_path.glob("runs/*/summary.json")
    summary = json.loads(path.read_text())
    assert summary["class_order"] == [0, 1, 2, 3, 4]
    assert summary["evaluate_on"] == "validation"
    assert summary["config"]["settings"]["schedule"]["updates"] == 5
    assert summary["memory_budget_bytes"] == 100 * 8 * 8 * 3
    assert summary["memory_bytes"] <= summary["memory_budget_bytes"]
    assert summary["updates"] == 10
    assert summary["seconds"].keys() == {"total", "train", "memory", "evaluate"}
    assert len(summary["parameters"]) == len(summary["accuracy_per_task"]) == 2
    assert [len(row) for row in summary["accuracy_matrix"]] == [1, 2]
    curves = summary["accuracy_by_classifier"]
    assert curves.keys() == {"nme", "network"}
    assert curves["nme"]["accuracy_per_task"] == summary["accuracy_per_task"]
    for curve in curves.values():
        assert [len(row) for row in curve["accuracy_matrix"]] == [1, 2]
        assert curve["forgetting"] is not None
        for kind in ("old_as_new", "new_as_old"):
            first, second = curve[kind]
            assert first is None
            assert 0 <= second <= 100
    assert all(0 <= accuracy <= 100 for accuracy in summary["accuracy_per_task"])
    assert summary["model_bytes"] > 4 * summary["parameters"][-1]


def test_a_run_folder_of_another_configuration_is_refused(engram: Command, tmp_path: Path) -> None:
    assert engram(*DEMO)[0] == 0
    (folder,) = (tmp_path / "runs").iterdir()
    config = folder / "config.yaml"
    config.write_text(config.read_text().replace("seed: 0", "seed: 5"))
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    code, text = engram(*DEMO)
    assert code == 2
    assert "belongs to another configuration: seed is 5 there and 0 here" in text
    assert before == {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_grid_lists_runs_and_finished_ones_are_skipped(engram: Command, tmp_path: Path) -> None:
    Path("grid.yaml").write_text(
        """
        runs:
          - method: icarl
            stream: digits/2,2
            preset: demo
            seed: [0, 1]
            classifier: [nme, network]
            updates: 3
          - {method: finetune, stream: "digits/2,2", preset: demo, updates: 3}
        """
    )
    assert engram("bench", "--grid", "grid.yaml", "--out", "grid")[0] == 0
    names = {path.name for path in (tmp_path / "grid").iterdir() if path.is_dir()}
    assert names == {
        "icarl-digits-2,2-demo-s0-updates=3",
        "icarl-digits-2,2-demo-s1-updates=3",
        "icarl-digits-2,2-demo-s0-classifier=network-updates=3",
        "icarl-digits-2,2-demo-s1-classifier=network-updates=3",
        "finetune-digits-2,2-demo-s0-updates=3",
    }
    _, text = engram("bench", "--grid", "grid.yaml", "--out", "grid")
    assert text.count("finished already") == 5


def test_a_run_that_diverges_does_not_keep_others_from_being_done(
    engram: Command, tmp_path: Path
) -> None:
    Path("grid.yaml").write_text(
        """
        runs:
          - method: finetune
            stream: digits/2,2
            preset: demo
            updates: 3
            learning_rate: [1.0e+30, 0.01]
        """
    )
    for _ in range(2):
        code, text = engram("bench", "--grid", "grid.yaml", "--out", "grid")
        assert code == 2
        assert "Choose a learning rate below 1e+30" in " ".join(text.split())
        assert "1 of 2 runs failed and are not in the report: finetune-digits" in text
    assert "finished already" in text
    assert (tmp_path / "grid" / "report.html").exists()


def test_a_run_that_cannot_go_on_does_not_keep_others_from_being_done(
    engram: Command, tmp_path: Path
) -> None:
    Path("grid.yaml").write_text(
        """
        runs:
          - {method: finetune, stream: "digits/2,2", preset: demo, updates: 3, seed: [0, 1]}
        """
    )
    assert engram("bench", "--grid", "grid.yaml", "--out", "grid")[0] == 0
    (first, second) = sorted(path.parent for path in (tmp_path / "grid").glob("*/summary.json"))
    for folder in (first, second):
        (folder / "summary.json").unlink()
    (learner,) = (first / "model").glob("task-*/learner.json")
    learner.write_text("{")
    code, text = engram("bench", "--grid", "grid.yaml", "--out", "grid")
    assert code == 2
    assert "To begin this run anew, remove" in " ".join(text.split())
    assert f"1 of 2 runs failed and are not in the report: {first.name}" in " ".join(text.split())
    assert (second / "summary.json").exists()


def test_a_run_by_other_code_is_skipped_and_says_so(
    engram: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(record, "commit", lambda: "0123456789ab")
    engram(*DEMO)
    monkeypatch.setattr(record, "commit", lambda: "ba9876543210")
    code, text = engram(*DEMO)
    assert code == 0
    assert "by the code of 0123456789ab; remove its folder to do it" in " ".join(text.split())


@pytest.mark.filterwarnings("always:Files of engram have changed")
@pytest.mark.parametrize("state", ["0123456789ab", "0123456789ab-dirty"])
def test_publishing_from_changed_files_is_warned_of_before_the_run(
    engram: Command, monkeypatch: pytest.MonkeyPatch, state: str
) -> None:
    monkeypatch.setattr(commands, "commit", lambda: state)
    code, text = engram(*DEMO, "--publish", "results")
    assert code == 0
    assert ("will name 0123456789ab-dirty" in text) == state.endswith("-dirty")


def test_a_bound_below_the_first_task_is_refused_before_a_folder_is_made(
    engram: Command, tmp_path: Path
) -> None:
    words = ("bench", "der", "digits/5,2", "--preset", "demo", "--max-parameters", "2.8k")
    code, text = engram(*words)
    assert code == 2
    assert "resnet8 and a classifier of 5 classes need" in " ".join(text.split())
    assert not list(tmp_path.iterdir())


def test_a_run_is_named_as_one_folder() -> None:
    settings = preset_settings("ranpac", "demo")
    pretrained = replace(settings.pretrained, backbone="timm/resnet50", weights="/data/w.pth")
    config = configured("ranpac", "digits/2,2", "demo")
    named = folder_name(replace(config, settings=replace(settings, pretrained=pretrained)))
    assert "/" not in named
    assert "backbone=timm-resnet50" in named


def test_progress_counts_what_began_and_what_did_not(capsys: pytest.CaptureFixture[str]) -> None:
    with console.RunProgress(3) as progress:
        (line,) = progress._bar.tasks
        progress.begin("diverges", tasks=2, share=0.0)
        progress.skip("It diverged.")
        assert (line.completed, line.total) == (1, 3)
        progress.skip("It is done elsewhere.")
        assert (line.completed, line.total) == (1, 2)
        progress.begin("has two stages", tasks=1, share=0.0)
        for epoch, share in ((1, 0.5), (2, 1.0), (0, 0.1)):
            report = EpochReport(
                task=0,
                stage="any",
                epoch=epoch,
                epochs=2,
                losses={},
                learning_rate=0.1,
                images=1,
                seconds=1.0,
            )
            progress.epoch(report, share)
        assert line.completed == 2
        progress.skip("It failed in its second stage.")
        assert (line.completed, line.total) == (2, 2)


def test_a_grid_that_is_no_text_is_refused(engram: Command) -> None:
    Path("grid.yaml").write_bytes(b"runs: \xe9\xff")
    code, text = engram("bench", "--grid", "grid.yaml")
    assert code == 2
    assert "grid.yaml is not YAML" in text


def test_what_is_no_stream_is_told_as_that(engram: Command) -> None:
    code, text = engram("bench", "icarl", "digits", "--preset", "demo")
    assert (code, text.startswith('engram: "digits" is not a stream. Give <data set>/')) == (
        2,
        True,
    )


def test_a_grid_without_a_file_is_refused(engram: Command) -> None:
    code, text = engram("bench", "--grid")
    assert (code, "--grid names no file" in text) == (2, True)


@pytest.mark.parametrize("option", ["--out", "--publish"])
def test_a_file_where_a_folder_is_to_be_is_refused_before_the_run(
    engram: Command, tmp_path: Path, option: str
) -> None:
    (tmp_path / "results").write_text("notes")
    code, text = engram(*DEMO, option, "results/icarl")
    assert (code, "results is a file, and not a folder" in text) == (2, True)
    assert [path.name for path in tmp_path.iterdir()] == ["results"]


def test_published_runs_are_copied_and_not_done_again(
    engram: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commands, "commit", lambda: "0123456789ab")
    assert engram(*DEMO, "--publish", "results")[0] == 0
    (copy,) = tmp_path.glob("results/icarl/*.json")
    (summary,) = tmp_path.glob("runs/*/summary.json")
    assert copy.stem == summary.parent.name
    assert copy.read_bytes() == summary.read_bytes()
    shutil.rmtree(tmp_path / "runs")
    code, text = engram(*DEMO, "--publish", "results")
    assert code == 0
    assert "results has all of these runs" in text
    assert not (tmp_path / "runs").exists()
    assert engram(*DEMO, "--seed", "0", "1", "--publish", "results")[0] == 0
    assert len(list(tmp_path.glob("results/icarl/*.json"))) == 2
    assert len(list(tmp_path.glob("runs/*/summary.json"))) == 1
    older = json.loads(copy.read_text())
    del older["config"]["settings"]["distillation_fades"]
    copy.write_text(json.dumps(older))
    assert "results has all" in engram(*DEMO, "--publish", "results")[1], "a knob added since"
    copy.write_text(copy.read_text().replace('"temperature": 2.0', '"temperature": 3.0'))
    code, text = engram(*DEMO, "--publish", "results")
    assert code == 2
    assert "was published with other settings" in text
    assert "temperature is 3.0 there and 2.0 here" in text


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        ("runs: 3", "a list of runs"),
        ("runs:\n- {method: icarl, preset: demo}", "run 1: stream missing"),
        ("runs:\n- {method: icarl, stream: digits/2, preset: demo, updatse: 3}", '"updates"'),
        ("runs:\n- {method: icarl, stream: digits/2, preset: demo, updates: many}", "updates"),
        ("runs:\n- {method: icarl, stream: digits/2, preset: demo, budget: 1}", "one exemplar"),
        ("runs:\n- {method: icarl, stream: digits/2, preset: demo, seed: x}", "seed must be"),
        ("runs: [3]", "run 1 must be a mapping"),
        ("runs: []", "a list of runs"),
        (
            "runs:\n- {method: icarl, stream: digits/2, preset: demo, precision: [fp32, bf61]}",
            "bf16",
        ),
        ("runs:\n- {method: icarl, stream: [digits/2, digts/2], preset: demo}", '"digits"'),
        ("runs: [", "is not YAML"),
        ("runs:\n- {method: icarl, stream: digits/2, preset: demo, seed: []}", "a list of nothing"),
        ("runs:\n- {method: icarl, stream: digits/2, preset: demo, 1: 2}", "1 is no name"),
    ],
)
def test_a_wrong_grid_is_refused_with_the_place(
    engram: Command, tmp_path: Path, grid: str, message: str
) -> None:
    Path("grid.yaml").write_text(grid)
    code, text = engram("bench", "--grid", "grid.yaml")
    assert code == 2
    assert message in text
    assert text.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["grid.yaml"]


@pytest.mark.parametrize("command", [*COMMANDS, "bench icarl"])
def test_every_command_explains_itself(engram: Command, tmp_path: Path, command: str) -> None:
    code, text = engram(*command.split(), "--help")
    assert code == 0
    assert f"engram {command}" in text
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written_is_one_line(engram: Command, tmp_path: Path) -> None:
    code, text = engram(*DEMO, "--out", "long" * 100)
    assert code == 2
    assert text.startswith("engram: File name too long")
    assert text.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_whoever_reads_no_further_is_told_nothing() -> None:
    command = [sys.executable, "-c", "from engram.cli import main; main()", "methods"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as started:
        assert started.stdout is not None
        assert started.stderr is not None
        started.stdout.close()
        assert started.stderr.read() == b""
    assert started.returncode == 1


def test_two_processes_do_not_share_a_run(engram: Command, tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "icarl-digits-3,2-demo-s0-updates=5"
    folder.mkdir(parents=True)
    with FileLock(folder / ".lock"):
        code, text = engram(*DEMO)
    assert code == 2
    assert "Another process is at work" in text


def test_processes_share_the_runs_of_grids(engram: Command, tmp_path: Path) -> None:
    for name, seeds in (("one", "[0, 1]"), ("other", "[1, 2]")):
        Path(f"{name}.yaml").write_text(
            f"runs: [{{method: finetune, stream: 'digits/2,2', preset: demo, updates: 3, "
            f"seed: {seeds}}}]"
        )
    folder = tmp_path / "runs" / "finetune-digits-2,2-demo-s1-updates=3"
    folder.mkdir(parents=True)
    with FileLock(folder / ".lock"):
        code, text = engram("bench", "--grid", "one.yaml", "other.yaml")
    assert code == 0
    assert text.count("Another process is at work") == 1
    assert len(list(tmp_path.glob("runs/*/summary.json"))) == 2
    _, text = engram("bench", "--grid", "one.yaml", "other.yaml")
    assert text.count("finished already") == 2
    assert len(list(tmp_path.glob("runs/*/summary.json"))) == 3


def test_epochs_and_updates_exclude_each_other(engram: Command, tmp_path: Path) -> None:
    code, text = engram("bench", "icarl", "digits/3,2", "--preset", "demo", "--epochs", "3")
    assert code == 2
    assert "Give epochs or updates" in text
    assert engram(*DEMO[:5], "--epochs", "1", "--updates", "None")[0] == 0


def test_methods_and_doctor_answer(engram: Command) -> None:
    code, text = engram("methods")
    assert code == 0
    assert all(name in text for name in ("icarl", "finetune", "joint", "paper", "laptop"))
    code, text = engram("doctor")
    assert code == 0
    rows = ("torchvision", "pretrained weights", "extra serve", "codec avif", "codec jxl")
    assert all(name in text for name in rows)


def test_the_doctor_knows_what_can_be_installed_beside() -> None:
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    extras = {
        name: tuple(re.split("[<>=]", requirement)[0] for requirement in requirements)
        for name, requirements in project["optional-dependencies"].items()
        if name != "dev"
    }
    assert extras == doctor.EXTRAS


def test_the_doctor_names_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(doctor.EXTRAS, "serve", ("rich", "no-such-package"))
    monkeypatch.setattr(sys, "executable", "bin/python")
    found = doctor.diagnosis()["extra serve"]
    assert found == "no-such-package missing: bin/python -m pip install 'engram[serve]'"


@pytest.mark.skipif(os.name != "posix", reason="quotes are those of POSIX")
def test_what_is_missing_is_installed_beside_the_engram_that_runs(
    engram: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "/my place/bin/python")
    monkeypatch.delitem(sys.modules, "engram.serve.run", raising=False)
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    code, text = engram("serve", "model")
    assert code == 2
    install = "'/my place/bin/python' -m pip install 'engram[serve]'"
    assert text == f"engram: engram serve needs uvicorn. Install it: {install}.\n"


def test_the_doctor_names_what_a_codec_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str, size: tuple[int, int]) -> None:
        raise UserError(f"{name} needs a plugin.")

    monkeypatch.setattr(doctor, "create_codec", refuse)
    assert doctor.diagnosis()["codec jxl"] == "jxl:80 needs a plugin."


def test_names_that_look_like_markup_are_shown_as_they_are(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with console.RunProgress(2) as progress:
        progress.begin("icarl-[b]-:cat:", tasks=2, share=0.0)
        progress.skip("Another process is at work in runs[/x]/:cat:.")
    found = capsys.readouterr().out
    assert "icarl-[b]-:cat:\n" in found
    assert "Another process is at work in runs[/x]/:cat:.\n" in found


@pytest.mark.parametrize(
    "error",
    [
        KeyError("memory_bytes"),
        RuntimeError("CUDA error: an illegal memory access was encountered"),
        AttributeError("no attribute 'memory'"),
    ],
)
def test_what_is_engram_s_own_fault_is_not_called_a_lack_of_memory(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(words: object) -> None:
        raise error

    monkeypatch.setattr("engram.cli._dispatch", fail)
    with pytest.raises(type(error)):
        main()
