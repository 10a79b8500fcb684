"""Class-incremental image classification under a memory bounded in bytes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from engram.api import Learner
    from engram.versions import load

__all__ = ["Learner", "load"]


def __getattr__(name: str) -> Any:
    """What needs torch is imported when it is first asked for, so that the command answers fast."""
    if name == "Learner":
        from engram.api import Learner

        return Learner
    if name == "load":
        from engram.versions import load

        return load
    raise AttributeError(f"module engram has no attribute {name}")
