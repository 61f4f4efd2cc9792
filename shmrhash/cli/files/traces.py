"""Traces of what is asked of a cache, as files: shmrhash/_tracing.py writes them."""

from __future__ import annotations

from array import array
from dataclasses import dataclass
from typing import BinaryIO

from shmrhash._inspect import tracing
from shmrhash.cli.errors import STATUS_DAMAGED, Failure
from shmrhash.cli.simulation import CLEAR, DELETE, HIT, MISS, STORE

CHUNK_BYTES = 1 << 20
EVENT = {
    tracing.HIT: HIT,
    tracing.MISS: MISS,
    tracing.SET: STORE,
    tracing.DELETE: DELETE,
    tracing.CLEAR: CLEAR,
}


@dataclass
class Trace:
    """A trace, or a part of its keys.

    events: (what, digest) in the order of time. sample: the part of all keys that it has. asked,
    found: the lookups of all keys, and how many of them found a value. seconds: from the first
    event to the last.
    """

    cache: str
    max_entries: int
    sample: float
    events: list[tuple[int, int]]
    asked: int
    found: int
    seconds: float

    @property
    def keys(self) -> int:
        """How many different keys the events name."""
        return len({key for what, key in self.events if what != CLEAR})

    @property
    def lookups(self) -> int:
        """How many of the events are lookups."""
        return sum(what <= MISS for what, _ in self.events)


def read_trace(path: str, most: int) -> Trace:
    """Read a trace; of a longer one than `most` events only as many keys as leave about so many.

    Raises Failure (it is none), OSError.
    """
    with open(path, "rb") as file:
        head = tracing.read_head(file.read(tracing.HEAD_BYTES))
        if head is None:
            raise Failure(f"{path}: not a trace, or of another version", STATUS_DAMAGED)
        file.seek(0, 2)
        records = (file.tell() - tracing.HEAD_BYTES) // tracing.RECORD.size
        part = min(1.0, most / max(1, records))
        file.seek(tracing.HEAD_BYTES)
        counts, events = _read_records(file, int(head["sample"] * part * tracing.DIGEST_MAX))
    events.sort()
    seconds = (events[-1][0] - events[0][0]) / 1e9 if events else 0.0
    return Trace(
        head["cache"],
        head["max_entries"],
        head["sample"] * part,
        [(what, key) for _, what, key in events],
        counts[tracing.ASKED],
        counts[tracing.FOUND],
        seconds,
    )


def _read_records(file: BinaryIO, below: int) -> tuple[dict[int, int], list[tuple[int, int, int]]]:
    """The sums of the numbers, and (time, what, digest) of the events whose digest is below."""
    counts = {tracing.ASKED: 0, tracing.FOUND: 0}
    events = []
    while True:  # to the end of the file
        words = array("Q")
        chunk = file.read(CHUNK_BYTES)
        words.frombytes(chunk[: len(chunk) // tracing.RECORD.size * tracing.RECORD.size])
        for digest, word in zip(words[::2], words[1::2], strict=True):
            now_ns, kind = divmod(word, tracing.KINDS)
            if kind in counts:
                counts[kind] += digest
            elif kind in EVENT and (digest < below or kind == tracing.CLEAR):
                events.append((now_ns, EVENT[kind], digest))
        if len(chunk) < CHUNK_BYTES:
            return counts, events
