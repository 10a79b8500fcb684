"""A run that ends at any moment, by a failing write or a kill, goes on to the same bits."""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from conftest import InterruptionError, same, saved_state, tiny
from engram.bench import Execution, Progress, run

TESTS = str(Path(__file__).parent)

LONG_RUN = """
import sys
from dataclasses import replace
from pathlib import Path

from conftest import tiny
from engram.bench import Execution, run, Progress

config = tiny("icarl", "digits/3,3,4", updates=100, precision="auto")
config = replace(config, settings=replace(config.settings, backbone="resnet32"))
run(config, Path(sys.argv[1]), Progress(), Execution(snapshot_every=0.5))
"""
"""With snapshots so often that most kills come between two of the same stage."""


class FailsOnce:
    """Stands before a function and ends the run in place of its call number `stop`."""

    def __init__(self, function: Callable[..., Any], stop: int) -> None:
        self.function = function
        self.stop = stop
        self.calls = 0

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        self.calls += 1
        if self.calls == self.stop:
            raise InterruptionError
        return self.function(*arguments, **options)


@pytest.mark.parametrize("call", ["fsync", "rename", "replace", "rmdir", "unlink"])
def test_an_end_at_any_write_loses_nothing(
    call: str, tmp_path: Path, silent: Progress, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny("icarl", "digits/2,2", updates=4)
    whole, expected = run(config, tmp_path / "whole", silent)
    for stop in itertools.count(1):
        out = tmp_path / str(stop)
        failing = FailsOnce(getattr(os, call), stop)
        with monkeypatch.context() as patch, contextlib.suppress(InterruptionError):
            patch.setattr(os, call, failing)
            run(config, out, silent, Execution(snapshot_every=0))
        if failing.calls < stop:
            break
        folder, summary = run(config, out, silent, Execution(snapshot_every=0))
        assert same(saved_state(folder), saved_state(whole)), f"{call} number {stop}"
        assert summary["accuracy_by_classifier"] == expected["accuracy_by_classifier"]
        assert summary["updates"] == expected["updates"]
    assert stop > 1, f"{call} was never called"


@pytest.mark.slow
def test_a_process_killed_again_and_again_ends_with_the_same_bits(tmp_path: Path) -> None:
    """In bfloat16 where the processor has it, on all cores, with the network of the paper."""

    def start(out: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-c", LONG_RUN, str(tmp_path / out)]
        return subprocess.Popen(command, env={**os.environ, "PYTHONPATH": TESTS})

    assert start("whole").wait() == 0
    moments = random.Random(0)
    kills = 0
    while True:
        process = start("killed")
        try:
            code = process.wait(timeout=moments.uniform(4, 12))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            kills += 1
            continue
        assert code == 0
        break
    assert kills >= 2
    (whole,) = (tmp_path / "whole").iterdir()
    (killed,) = (tmp_path / "killed").iterdir()
    assert same(saved_state(whole), saved_state(killed))
