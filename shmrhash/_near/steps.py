"""The steps of a near cache: what a miss does, for threads and, in parts, for coroutines."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from shmrhash import _core
from shmrhash._errors import LockTimeout, SegmentFull, TooManyProcesses, Unavailable
from shmrhash._near.source import Fetched, Source
from shmrhash._near.state import TTL_NODE, Line, State

MISSING: Any = object()
BATCH = 64  # claims at once of one call: all processes together have contexts for a thousand
TRIES_MAX = 8  # epochs that may change, or claims that may end without a value, during one miss
# There is no context, claim or memory for one more claim: this call asks alone, and stores nothing.
NO_ROOM = (TooManyProcesses, SegmentFull)
_ESCAPE = 0xC1  # NEAR_ESCAPE of near.pxi


def raw_of(key: str | bytes) -> bytes:
    """The bytes of a key."""
    if isinstance(key, str):
        return key.encode()
    if not isinstance(key, (bytes, bytearray, memoryview)):
        raise TypeError(f"a key must be str or bytes, not {type(key).__name__}")
    return bytes(key)


def stored(value: bytes | None) -> bytes:
    """The bytes of an entry (near.pxi)."""
    if value is None:
        return b""
    if not value or value[0] == _ESCAPE:
        return bytes((_ESCAPE,)) + value
    return value


class NearSteps(_core.NearCore):
    """The base of NearCache and of its coroutines."""

    _state: State
    _source: Source
    _refusal: str  # why the server tells of no changes; "": it tells
    _max_stale: float
    _ttl: float
    _ttl_absent: float
    _flight: float
    _outage: str

    if TYPE_CHECKING:

        def _enter(self) -> None: ...
        def age(self) -> float: ...

    def _node_of(self, key: bytes) -> int:
        return TTL_NODE if self._refusal else self._source.node_of(key)

    def _rearm(self) -> None:
        """After a fetch, which may have found out what node there is: where get() looks itself."""
        if self._refusal:
            self._arm(TTL_NODE)
        elif self._source.nodes() == 1:
            self._arm(self._source.node_of(b""))
        elif hasattr(self._source, "slots"):
            self._arm_slots(self._source.slots())
        else:
            self._arm(-1)

    def _watched(self, node: int) -> Line | None:
        """The line of a node whose lease is valid, or None."""
        line = self._state.line(node) if node >= 0 else None
        if line is None or line.valid_until <= _core.clock_monotonic_ns():
            return None
        return line

    def _claim(self, raw: bytes, line: Line, wait: float) -> _core.Claim:
        """The token: its owner may store what it fetches from now on, until it is deleted."""
        return _core.Claim(self._entries, self._place(raw, line.epoch), wait)

    def _keep(self, claim: _core.Claim, answer: Fetched, node: int, sent: float) -> None:
        """Store an answer under its claim, if it was read where its key is watched."""
        most = self._ttl_absent if answer.value is None else self._ttl
        left = most if answer.ttl is None else min(most, answer.ttl)
        left -= time.monotonic() - sent
        if left <= 0 or (answer.node != node and node != TTL_NODE):
            claim.drop()
            return
        claim.keep(stored(answer.value), left)

    def _count_miss(self) -> None:
        with contextlib.suppress(*NO_ROOM):
            self._missed()

    def _value(self, answer: Fetched, default: Any) -> Any:
        return default if answer.value is None else self._decode(answer.value)

    def _expect_no_outage(self, raw: bytes) -> None:
        """With on_outage="raise": raise Unavailable if the key would be kept in better times."""
        kept = self._outage == "raise" and not self._refusal and self._source.covers(raw)
        if kept and self._is_out(raw):
            raise Unavailable(
                f"near cache {self._state.entries.name!r}: the server does not answer"
            )

    def _is_out(self, raw: bytes) -> bool:
        """Whether the node of a key has not been heard for max_stale."""
        if self._source.nodes() <= 1:
            return self.age() > self._max_stale
        node = self._node_of(raw)
        # A node that is not known here to answer for the key: the fetch finds out.
        return node >= 0 and self._watched(node) is None

    def _forget(self, keys: Sequence[bytes]) -> None:
        for number, _ in self._state.lines():
            self._state.forget(self, keys, number)

    # The misses of threads.

    def _get_slowly(self, key: str | bytes, default: Any) -> Any:
        """get() without a hit of its own."""
        raw = raw_of(key)
        self._enter()
        for _ in range(TRIES_MAX):
            node = self._node_of(raw)
            found = self._look(raw, node, MISSING) if node >= 0 else MISSING
            if found is not MISSING:
                self._rearm()
                return default if found is None else found
            line = self._watched(node)
            if line is None or not self._source.covers(raw):
                break
            claim = self._claim(raw, line, self._flight)
            try:
                taken = claim.wait()
            except LockTimeout:
                claim.cut_off()
                continue
            except NO_ROOM:
                break
            if taken:
                return self._value(self._filled(claim, raw, node), default)
            if claim.has_to_compute:
                break
        self._expect_no_outage(raw)
        self._count_miss()
        (answer,) = self._source.fetch([raw])
        self._rearm()
        return self._value(answer, default)

    def _filled(self, claim: _core.Claim, raw: bytes, node: int) -> Fetched:
        """Fetch a key whose claim is this thread's, and store the answer."""
        self._count_miss()
        sent = time.monotonic()
        try:
            (answer,) = self._source.fetch([raw])
        except BaseException:
            claim.drop()
            raise
        self._keep(claim, answer, node, sent)
        self._rearm()
        return answer

    def _fetch_many(self, keys: Sequence[Any]) -> dict[Any, Any]:
        """Ask for those of these keys, up to BATCH, that are not here and that nobody asks for
        yet; keep the answers. Their values, None for absent ones."""
        claimed: list[tuple[Any, bytes, _core.Claim, int]] = []
        found: dict[Any, Any] = {}
        try:
            with contextlib.suppress(*NO_ROOM):  # not all are fetched here
                for key in keys:
                    raw = raw_of(key)
                    node = self._node_of(raw)
                    line = self._watched(node) if self._source.covers(raw) else None
                    claim = None if line is None else self._claim(raw, line, 0)
                    if claim is not None and claim.attempt():
                        claimed.append((key, raw, claim, node))
            sent = time.monotonic()
            answers = self._source.fetch([raw for _, raw, _, _ in claimed]) if claimed else ()
            for (key, _, claim, node), answer in zip(claimed, answers, strict=True):
                self._count_miss()
                self._keep(claim, answer, node, sent)
                found[key] = self._value(answer, None)
        finally:
            for _, _, claim, _ in claimed:
                claim.drop()
        if claimed:
            self._rearm()
        return found
