"""What the server takes from those who send it something."""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass

from engram.data.pictures import normal_name
from engram.errors import UserError

__all__ = ["Limits", "TooLargeError"]


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
        normal = normal_name(" ".join(name.split()))
        if not any(unicodedata.category(character)[0] in "LNPS" for character in normal):
            raise UserError("A class needs a name.")
        if len(normal) > self.name_length:
            raise UserError(
                f"A name may have {self.name_length} characters; this one has {len(normal)}."
            )
        strange = [
            character
            for character in normal
            if character in "/\\" or unicodedata.category(character) in ("Cc", "Cs", "Co", "Cn")
        ]
        if strange or normal in (".", ".."):
            shown = ascii(strange[0]) if strange else f'"{normal}"'
            raise UserError(f"A name cannot have {shown} in it. Use letters, digits and spaces.")
        return normal

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
