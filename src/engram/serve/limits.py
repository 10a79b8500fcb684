"""What the server takes from those who send it something."""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass

from engram.data.pictures import normal_name
from engram.errors import UserError

__all__ = ["Limits", "TooLargeError"]

MOST_PARTS = 4
"""Characters that stand for one, at most, where accents and the like stand by themselves."""

JOINERS = "\u200c\u200d"
"""Characters without a shape that names need: emoji are joined by them, and letters of some scripts
are joined or kept apart."""


class TooLargeError(UserError):
    """More was sent than the server takes."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds on what is sent.

    Attributes:
        picture_bytes: of one picture as it is sent.
        waiting_pictures: that were not learnt yet.
        waiting_bytes: that these take.
        waiting_classes: that were not learnt yet.
        name_length: characters of a class's name.
        requests: that are answered at once.
    """

    picture_bytes: int = 30_000_000
    waiting_pictures: int = 20_000
    waiting_bytes: int = 4_000_000_000
    waiting_classes: int = 1_000
    name_length: int = 100
    requests: int = 64

    def class_name(self, name: str) -> str:
        """A name as it is kept.

        Raises:
            UserError: it is empty, too long, or has characters that no name has.
        """
        spaced = " ".join(name.split())
        # To compose millions of accents takes hours.
        if len(spaced) > MOST_PARTS * self.name_length:
            raise self._too_long(spaced)
        normal = normal_name(spaced)
        if not any(unicodedata.category(character)[0] in "LNPS" for character in normal):
            raise UserError("A class needs a name.")
        if len(normal) > self.name_length:
            raise self._too_long(normal)
        strange = [character for character in normal if _is_strange(character)]
        if strange or normal in (".", ".."):
            shown = ascii(strange[0]) if strange else f'"{normal}"'
            raise UserError(f"A name cannot have {shown} in it. Use letters, digits and spaces.")
        return normal

    def _too_long(self, name: str) -> UserError:
        return UserError(
            f"A name may have {self.name_length} characters; this one has {len(name):,}. Choose a "
            "shorter one."
        )

    def check_classes(self, classes: int) -> None:
        """Refuse another class than so many that wait.

        Raises:
            TooLargeError: these are the most.
        """
        if classes >= self.waiting_classes:
            raise TooLargeError(
                f"{classes:,} classes wait already, which is the most. Let them be learnt first."
            )

    def check_room(self, pictures: int, waiting_bytes: int) -> None:
        """Refuse more pictures than may wait.

        Raises:
            TooLargeError: so many are there already.
        """
        if pictures >= self.waiting_pictures or waiting_bytes >= self.waiting_bytes:
            raise TooLargeError(
                f"{pictures:,} pictures wait already ({waiting_bytes / 1e6:,.0f} MB), which is the "
                "most. Let them be learnt first."
            )


def _is_strange(character: str) -> bool:
    """Whether no name has it: what separates folders, and what has no shape, with which a name
    could look like another or turn the text around it."""
    return character in "/\\" or (
        unicodedata.category(character)[0] == "C" and character not in JOINERS
    )
