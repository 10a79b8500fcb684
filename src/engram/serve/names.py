"""Names that people give to classes: how they are kept, and which are refused."""

from __future__ import annotations

import unicodedata

from engram.data.pictures import normal_name
from engram.errors import UserError

__all__ = ["checked_name"]

MOST_PARTS = 4
"""The most characters that one is made of where its accents and the like stand by themselves."""

JOINERS = "\u200c\u200d"
"""Characters without a shape that names need: emoji are joined by them, and letters of some scripts
are joined or kept apart."""


def checked_name(name: str, longest: int) -> str:
    """A class's name as it is kept.

    Args:
        longest: characters that it may have.

    Raises:
        UserError: it is empty, too long, or has characters that no name has.
    """
    spaced = " ".join(name.split())
    # To compose millions of accents takes hours.
    if len(spaced) > MOST_PARTS * longest:
        raise _too_long(spaced, longest)
    normal = normal_name(spaced)
    if not any(unicodedata.category(character)[0] in "LNPS" for character in normal):
        raise UserError("A class needs a name.")
    if len(normal) > longest:
        raise _too_long(normal, longest)
    strange = [character for character in normal if _is_strange(character)]
    if strange or normal in (".", ".."):
        shown = ascii(strange[0]) if strange else f'"{normal}"'
        raise UserError(f"A name cannot have {shown} in it. Use letters, digits and spaces.")
    return normal


def _too_long(name: str, longest: int) -> UserError:
    return UserError(
        f"A name may have {longest} characters; this one has {len(name):,}. Choose a shorter one."
    )


def _is_strange(character: str) -> bool:
    """Whether no name has it: what separates folders, and what has no shape, with which a name
    could look like another or turn the text around it."""
    return character in "/\\" or (
        unicodedata.category(character)[0] == "C" and character not in JOINERS
    )
