"""The one exception for what a user can mend, and the nearest right word for what was misspelt."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = ["UserError", "nearest", "unknown"]


class UserError(Exception):
    """Something the user can mend: says what happened, the value, and the way out.

    The command line prints it as one line and leaves with exit code 2.
    """


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
