"""The exception for what a user can mend, and what helps to say the way out."""

from __future__ import annotations

import difflib
import os
import shlex
import sys
from collections.abc import Iterable

__all__ = ["NotThereError", "UserError", "install_command", "nearest", "unknown"]


class UserError(Exception):
    """Something the user can mend: says what happened, the value, and the way out.

    The command line prints it as one line and leaves with exit code 2.
    """


class NotThereError(UserError):
    """What was asked for by its number does not exist, or no longer."""


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known word most like `word`, or None where nothing is close."""
    matches = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return matches[0] if matches else None


def unknown(kind: str, word: str, known: Iterable[str]) -> UserError:
    """The error for a name that does not exist, with the nearest one and all that do."""
    names = sorted(known)
    close = nearest(word, names)
    hint = f' Perhaps you meant "{close}".' if close else ""
    return UserError(f'Unknown {kind} "{word}".{hint} Known: {", ".join(names)}.')


def install_command(package: str) -> str:
    """The command that installs a package, or an extra such as `engram[hub]`, beside this engram.

    It names the Python that runs, since `pip` alone may be that of another one.
    """
    words = [sys.executable, "-m", "pip", "install", package]
    if os.name == "posix":
        return shlex.join(words)
    return " ".join(f'"{word}"' if " " in word else word for word in words)
