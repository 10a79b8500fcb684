"""The learner that answers: that of the model's current version."""

from __future__ import annotations

import threading

from engram.errors import NotThereError
from engram.learner import Label, Learner, load
from engram.versions import ModelFolder

__all__ = ["CurrentModel"]


class CurrentModel:
    """Serves the current version. The first request after a change loads it; until it is there, the
    one before answers the others.

    Args:
        device: where it computes.
    """

    def __init__(self, model: ModelFolder, device: str) -> None:
        self._model = model
        self._device = device
        self._loaded: tuple[int, Learner] | None = None
        self._loading = threading.Lock()
        self._computing = threading.Lock()

    def get(self) -> tuple[int, Learner] | None:
        """The current version's number with its learner; None before anything was learnt.

        Raises:
            UserError: the model folder is damaged.
        """
        number = self._model.current
        there = self._loaded
        if number is None:
            return None
        if there is not None and there[0] == number:
            return there
        if not self._loading.acquire(blocking=there is None):
            return there
        try:
            if self._loaded is None or self._loaded[0] != number:
                learner = load(self._model.folder, number, device=self._device)
                self._loaded = (number, learner)
            return self._loaded
        finally:
            self._loading.release()

    def predict(self, picture: bytes, top: int) -> tuple[int, list[Label]]:
        """The version that answers, and what it sees.

        One at a time: two at once on the same cores would both be slower.

        Raises:
            NotThereError: nothing has been learnt.
            UserError: the picture cannot be read.
        """
        if (there := self.get()) is None:
            raise NotThereError("Nothing has been learnt yet.")
        number, learner = there
        with self._computing:
            return number, learner.predict(picture, top)
