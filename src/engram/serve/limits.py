"""Limits of the server, and the error where one is passed."""

from __future__ import annotations

from dataclasses import dataclass

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

    def check_classes(self, classes: int) -> None:
        """Refuse another class beside so many that wait.

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
