"""What a GPU would refuse, tried without one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def test_every_method_works_on_a_device_beside_the_processor() -> None:
    """In a process of its own: torch counts the devices once, at its first gradient."""
    cases = Path(__file__).with_name("on_a_device.py")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(cases)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-5000:]
