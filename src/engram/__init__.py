"""Class-incremental image classification under a memory bounded in bytes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from engram.errors import UserError

if TYPE_CHECKING:
    from engram.learner import Learner, load

__all__ = ["Learner", "UserError", "load"]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def __getattr__(name: str) -> Any:
    """What needs torch is imported when it is first asked for, so that the command answers fast."""
    if name in __all__:
        from engram import learner

        return getattr(learner, name)
    raise AttributeError(f"module engram has no attribute {name}")
