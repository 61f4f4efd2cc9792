"""The tracker: the one process of a machine that watches a server, and those that stand by.

Each process has a thread that asks for the office: a claim on TURN_PLACE among the entries. One has
it. If that process is killed its claim is free, and one that stands by takes it within 50 ms. If it
hangs, it stops to renew TURN's line; after two max_stale its claim is cut off.

Safety never depends on the office: two trackers at once would fence each other, line by line, by
the terms (state.py). The order of a tracker's stores is what readers rely on:

  began     after the server has confirmed the subscription: a new epoch, so that no value that was
            fetched before it is served
  changed   deletions, of values and of claims: a fetch that began before does not store its answer
  proved    the lease, after the deletions that the proof covers
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Collection, Sequence

from shmrhash import _core
from shmrhash._errors import Deposed, LockTimeout, MapClosed, TrackingRefused
from shmrhash._near.source import Source
from shmrhash._near.state import TTL_NODE, TURN, TURN_PLACE, State

_SLICE = 0.1  # seconds in the queue, before one looks whether the tracker hangs
_PAUSE_MIN, _PAUSE_MAX = 0.02, 1.0  # between two attempts to watch
BEATS = 4  # proofs in one max_stale


class Tracker(threading.Thread):
    """The thread of one process, which watches or stands by. It is the Sink of its source."""

    def __init__(
        self, state: State, source: Source, core: _core.NearCore, max_stale: float
    ) -> None:
        super().__init__(name="shmrhash near cache", daemon=True)
        self.pid = os.getpid()
        self.refused: TrackingRefused | None = None
        self.trouble: BaseException | None = None  # the last error, for people
        self._state = state
        self._source = source
        self._core = core
        self._max_stale_ns = int(max_stale * 1e9)
        self._ended = threading.Event()
        self._identity = os.urandom(16)
        self._turn = 0  # the term of this process in the office; 0: it has none
        self._has_heard = False  # a server, in this term
        self._terms: dict[int, int] = {}

    @property
    def tracks(self) -> bool:
        """Whether this process has the office."""
        return self._turn != 0

    def end(self) -> None:
        """Ask the thread to end, and wait for it for one beat or two."""
        self._ended.set()
        if threading.current_thread() is not self:
            self.join(2 * self._max_stale_ns / 1e9 / BEATS)

    def run(self) -> None:
        pause = _PAUSE_MIN
        while not self._ended.is_set() and self.refused is None:  # ends with the process's cache
            try:
                self._stand_by()
                pause = _PAUSE_MIN
            except MapClosed:
                return
            except TrackingRefused as error:
                self.refused = error
            except Deposed:
                continue
            except Exception as error:  # of the server, the client, the segment: again later
                self.trouble = error
                self._ended.wait(pause)
                pause = min(2 * pause, _PAUSE_MAX)

    def _stand_by(self) -> None:
        """Queue for the office for a slice; track if it is this process's turn."""
        claim = _core.Claim(self._state.entries, TURN_PLACE, _SLICE)
        try:
            taken = claim.wait()
        except LockTimeout:
            line = self._state.line(TURN)
            seen = 0 if line is None else line.valid_until
            if _core.clock_monotonic_ns() - seen > 2 * self._max_stale_ns:
                claim.cut_off()
            return
        if not taken:
            self._ended.wait(_SLICE)  # every entry is claimed: there is no room for the office
            return
        try:
            self._has_heard = False
            self._turn = self._state.take_office()
            self._has_to_end()
            self._source.watch(self, self._has_to_end, self._max_stale_ns / 1e9 / BEATS)
        finally:
            self._turn = 0
            self._terms.clear()
            claim.drop()

    def _has_to_end(self) -> bool:
        """For watch(): whether to stop. Says in TURN's line that this thread works."""
        try:
            self._state.extend(TURN, self._turn, _core.clock_monotonic_ns())
        except LockTimeout:
            pass
        except (Deposed, MapClosed):
            return True
        return self._ended.is_set()

    # The sink.

    def _expect_office(self) -> None:
        line = self._state.line(TURN)
        if line is None or line.term != self._turn:
            raise Deposed("another process tracks")

    def began(self, node: int) -> None:
        self._expect_office()
        self._terms[node] = self._state.begin(node)
        if not self._has_heard:
            with contextlib.suppress(LockTimeout):  # the next beginning counts it
                self._state.heard_by(self._turn, self._identity)
                self._has_heard = True

    def changed(self, node: int, keys: Sequence[bytes]) -> None:
        self._state.forget(self._core, keys, node)

    def everything(self, node: int) -> None:
        self._state.discard(node)

    def proved(self, node: int, moment_ns: int) -> None:
        if node not in self._terms:
            raise Deposed("the node is not watched in this turn")
        self._state.extend(node, self._terms[node], moment_ns + self._max_stale_ns)

    def lost(self, node: int) -> None:
        self._terms.pop(node, None)

    def only(self, nodes: Collection[int]) -> None:
        self._expect_office()
        for number, line in self._state.lines():
            if number not in nodes and number != TTL_NODE and line.valid_until:
                self._state.retire(number)
