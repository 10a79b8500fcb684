"""Range asymmetric numeral systems: an entropy coder that reaches the entropy of its tables.

Duda, Asymmetric numeral systems, arXiv 1311.2540 (2013). A message is a row of symbols, each drawn
from a table of its own. Many messages are coded side by side, one step for all of them, so that the
loop in Python is over symbols and not over messages.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

__all__ = ["TOTAL", "FrequencyTable", "decode", "encode"]

PRECISION = 12
TOTAL = 1 << PRECISION
WORD = 16
LOWEST = 1 << WORD  # a state lies in [2^16, 2^32)
STATE_BYTES, WORD_BYTES = 4, 2


@dataclass(frozen=True, eq=False, slots=True)
class FrequencyTable:
    """How often symbols 0 to n - 1 occur.

    Attributes:
        frequencies: (n,), each at least 1; they sum to `TOTAL`.
    """

    frequencies: np.ndarray
    starts: np.ndarray
    symbols: np.ndarray

    @classmethod
    def of(cls, frequencies: np.ndarray) -> FrequencyTable:
        """The table with these frequencies.

        Raises:
            ValueError: one is below 1, or they do not sum to `TOTAL`.
        """
        whole = frequencies.astype(np.int64)
        if whole.sum() != TOTAL or whole.min() < 1:
            raise ValueError("not a table of frequencies")
        starts = np.cumsum(whole) - whole
        return cls(whole, starts, np.repeat(np.arange(len(whole)), whole))

    @classmethod
    def fitted(cls, counts: np.ndarray) -> FrequencyTable:
        """The table for symbols that were seen `counts` (n,) times; n is at most `TOTAL`."""
        spare = TOTAL - len(counts)
        frequencies = 1 + np.floor(counts * (spare / max(counts.sum(), 1))).astype(np.int64)
        frequencies[frequencies.argmax()] += TOTAL - frequencies.sum()
        return cls.of(frequencies)


def encode(symbols: np.ndarray, tables: Sequence[FrequencyTable]) -> list[bytes]:
    """Messages (N, T) to bytes, a 32-bit state and as many 16-bit words as it takes.

    Args:
        tables: of the symbol at each of the T places.
    """
    messages, length = symbols.shape
    state = np.full(messages, LOWEST, np.int64)
    words = np.zeros((messages, length), "<u2")
    begin = np.full(messages, length)  # words are written from the back, as they will be read
    for place in reversed(range(length)):
        table, symbol = tables[place], symbols[:, place]
        frequency = table.frequencies[symbol]
        full = np.flatnonzero(state >= frequency << (2 * WORD - PRECISION))
        begin[full] -= 1
        words[full, begin[full]] = state[full] & (LOWEST - 1)
        state[full] >>= WORD
        state = (state // frequency << PRECISION) + state % frequency + table.starts[symbol]
    states = state.astype("<u4")
    return [
        states[message].tobytes() + words[message, begin[message] :].tobytes()
        for message in range(messages)
    ]


def decode(
    payloads: Sequence[bytes], tables: Sequence[FrequencyTable]
) -> tuple[np.ndarray, list[bytes]]:
    """The messages (N, T) that `encode` made these of, and the bytes that follow each, in pairs.

    Raises:
        ValueError: a payload does not begin with one of `encode` with these tables.
    """
    sizes = np.array([len(payload) for payload in payloads]) - STATE_BYTES
    if (sizes < 0).any() or (sizes % WORD_BYTES).any():
        raise ValueError("a message of a length that none has")
    state = np.array([np.frombuffer(payload, "<u4", 1)[0] for payload in payloads], np.int64)
    words = np.frombuffer(b"".join(payload[STATE_BYTES:] for payload in payloads) + b"\0\0", "<u2")
    ends = np.cumsum(sizes // WORD_BYTES)
    position = ends - sizes // WORD_BYTES
    symbols = np.empty((len(payloads), len(tables)), np.int64)
    for place, table in enumerate(tables):
        slot = state & (TOTAL - 1)
        symbol = table.symbols[slot]
        symbols[:, place] = symbol
        state = table.frequencies[symbol] * (state >> PRECISION) + slot - table.starts[symbol]
        empty = np.flatnonzero(state < LOWEST)
        next_word = words[np.minimum(position[empty], len(words) - 1)]
        state[empty] = state[empty] << WORD | next_word
        position[empty] += 1
    if (state != LOWEST).any() or (position > ends).any():
        raise ValueError("a message that does not end as it began")
    rests = (WORD_BYTES * (ends - position)).tolist()
    return symbols, [
        payload[len(payload) - rest :] for payload, rest in zip(payloads, rests, strict=True)
    ]
