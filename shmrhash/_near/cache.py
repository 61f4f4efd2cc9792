"""NearCache: the public class. Its coroutines are in coroutines.py."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import math
import os
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from shmrhash import _core
from shmrhash._arguments import checked_mode, checked_ttl
from shmrhash._errors import InvalidArgument, LockTimeout, MapClosed
from shmrhash._lifetime import ClosingMethods
from shmrhash._near.coroutines import NearCoroutines
from shmrhash._near.source import Source
from shmrhash._near.state import TTL_NODE, TURN, State
from shmrhash._near.steps import BATCH, MISSING, NO_ROOM, raw_of
from shmrhash._near.tracker import BEATS, Tracker
from shmrhash._types.declared import codec_for

_READY_WAIT = 5.0  # seconds that on_outage="raise" gives the first tracker


class NearCache(ClosingMethods, NearCoroutines):
    """The hot keys of a server in the memory of this machine, one copy for all its processes.

    All processes that make a NearCache of the same source share it. One of them, the tracker, has a
    connection to each node, through which the server reports changes; if it dies, another one takes
    over within 100 ms. A read finds its value in shared memory, or asks the server, once for all
    processes and threads.

    The promise (N1): a read that begins at t returns a value that the key had at its server at some
    moment at or after t - max_stale, or it raises; this holds whichever process is killed or
    stopped and whichever connection is cut. After a write through the cache has returned, every
    process of the machine reads its value or a newer one (N3). Reads are not linearizable with
    writes of other machines; where they must be, ask the server.

    Threads may share it, and so may processes after a fork: a child may become the tracker, too.
    """

    def __init__(
        self,
        source: Any,
        prefixes: Sequence[str | bytes] = (),
        *,
        name: str | None = None,
        value: Any = bytes,
        max_entries: int = 1 << 20,
        max_bytes: int = 256 << 20,
        max_stale: float = 1.0,
        ttl: float | None = None,
        ttl_absent: float = 5.0,
        on_outage: str | tuple[str, float] = "fetch",
        flight: float = 0.25,
        tracking: str = "bcast",
        track: bool = True,
        mode: int = 0o600,
    ) -> None:
        """Open the near cache of a server, or create it.

        source: a redis.Redis or valkey.Valkey, also one from Sentinel.master_for(), a RedisCluster
        or ValkeyCluster, one of their asyncio clients, or a URL of one server ("redis://host/0",
        "unix:///path"). The near cache makes its own connections with the client's settings. source
        may also be a Source (see the reference), which knows its prefixes. prefixes: which keys are
        kept and tracked; [""] means all. Other keys are read from the server each time.

        name: of the shared segment; None makes one from the source's name, value and max_stale, so
        it is the same in all processes. For a cluster that is true only while its nodes stay the
        same, so give it a name. value: what the server's bytes mean: bytes, str, object (pickle) or
        another type of a SharedDict that is stored as bytes of any length. max_entries, max_bytes:
        as for Cache(). max_stale: seconds, see N1; it has to be the same in all processes that
        share a name, since the tracker proves freshness for all of them. ttl, ttl_absent: the most
        seconds that a value, or the absence of one, is kept; the server's own deadline counts, too.
        flight: how many seconds a read waits for another read that has asked for the same key,
        before it asks itself. track: whether this process may be the tracker.

        on_outage: what reads do while the server does not answer the tracker, after max_stale:
        "fetch" asks the server; "raise" raises Unavailable at once; ("stale", seconds) goes on with
        the old values for that long. tracking: "ttl" for a server that does not report changes:
        values are then kept for ttl seconds, by default max_stale, and may be as old. "bcast" does
        the same if the server refuses to report changes; info() says so.

        If a Redis or Valkey does not answer now, the tracker asks it again. So a worker can start
        during an outage; until the server is back, its reads behave as on_outage says, and "fetch"
        raises the client's error.

        Raises InvalidArgument (also: another process has given another max_stale), LayoutMismatch,
        LockTimeout, what Cache() raises, and what the client raises.
        """
        if not max_stale > 0 or not flight >= 0:
            raise InvalidArgument("max_stale is above 0 and flight not below, both in seconds")
        if tracking not in ("bcast", "ttl"):
            raise InvalidArgument(f"tracking is 'bcast' or 'ttl', not {tracking!r}")
        self._outage, grace = _outage_of(on_outage)
        self._max_stale = float(max_stale)
        self._ttl = math.inf if ttl is None else checked_ttl(ttl)
        self._ttl_absent = min(self._ttl, checked_ttl(ttl_absent))
        self._flight = float(flight)
        self._source: Source = _source_of(source, prefixes)
        self._track = track
        self._refusal = "asked for" if tracking == "ttl" else ""
        if tracking != "ttl":
            probe = self._source.probe()
            self._refusal = "" if probe.tracking else probe.reason or "refused"
            if probe.tracking and probe.round_trip * BEATS > max_stale:
                raise InvalidArgument(
                    f"max_stale={max_stale} is less than {BEATS} round trips to the server, of "
                    f"{probe.round_trip:.3f} seconds"
                )
        if name is None:
            text = f"{self._source.name}\0{value!r}\0{self._max_stale}".encode()
            name = f"near-{hashlib.blake2b(text, digest_size=10).hexdigest()}"
        self._state = State(name, max_entries, max_bytes, checked_mode(mode))
        self._told_by = getattr(self._source, "tracking", "source")
        try:
            if not self._refusal:
                one = " one" if getattr(self._source, "one_server", False) else ""
                self._state.agree(int(self._max_stale * 1e9), self._told_by + one)
        except BaseException:
            self._state.close()
            raise
        super().__init__(
            self._state.entries,
            self._state.words,
            codec_for(value, "value").triple,
            int(grace * 1e9),
        )
        self._tracker: Tracker | None = None
        self._lock = threading.Lock()
        self._pid = 0
        self._closed = False
        self._flights = {}
        self._source.attach(self._state)
        if self._refusal:
            self._fall_back()
        self._enter()
        if self._outage == "raise":
            self.ready(_READY_WAIT)

    # Life.

    def _fall_back(self) -> None:
        """Keep values for their ttl: the server tells of no changes."""
        self._ttl = min(self._ttl, self._max_stale) if self._ttl == math.inf else self._ttl
        self._ttl_absent = min(self._ttl_absent, self._ttl)
        self._state.open_ttl_line()

    def _enter(self) -> None:
        """Called before anything but a hit: makes sure that a thread of this process tracks or
        stands by."""
        if self._closed:
            raise MapClosed(f"near cache {self._state.entries.name!r} is closed")
        if self._pid == os.getpid():
            tracker = self._tracker
            if tracker is None or tracker.refused is None or self._refusal:
                return
        if self._pid != os.getpid():
            self._lock = threading.Lock()  # the parent's may be held by a thread that is not here
            self._flights = {}
        with self._lock:
            if self._tracker is not None and self._tracker.refused is not None:
                self._refusal = self._refusal or str(self._tracker.refused)
                self._fall_back()
            elif self._pid != os.getpid() and self._track and not self._refusal:
                self._tracker = Tracker(self._state, self._source, self, self._max_stale)
                self._tracker.start()
            self._pid = os.getpid()

    def close(self) -> None:
        """Stop tracking in this process, and close its connections and segments. A second call
        does nothing."""
        if self._closed:
            return
        self._closed = True
        self._disarm()
        if self._tracker is not None and self._tracker.pid == os.getpid():
            self._tracker.end()
        self._source.close()
        self._state.close()

    def __reduce__(self) -> Any:
        raise TypeError(
            "a NearCache is not pickled: make one in each process, or inherit it by fork"
        )

    def ready(self, timeout: float = 5.0) -> bool:
        """Wait until values can be kept: a tracker has heard from each node of this process's
        source. Return whether they can. You need not call it: reads work before.

        Raises MapClosed.
        """
        end = time.monotonic() + timeout
        while self.age() > self._max_stale:  # ends with the timeout
            if time.monotonic() >= end:
                return False
            time.sleep(0.005)
        return True

    # Reads; get() is NearCore's.

    def get_many(self, keys: Iterable[str | bytes]) -> dict[Any, Any]:
        """Return a dict of those of these keys that the server has, with their values.

        Each value is as from get(). Missing keys for which no other read has asked yet are fetched
        64 at a time.

        Raises what get() raises.
        """
        self._enter()
        found: dict[Any, Any] = {}
        missing: list[Any] = []
        for key in dict.fromkeys(keys):
            raw = raw_of(key)
            node = self._node_of(raw)
            value = self._look(raw, node, MISSING) if node >= 0 else MISSING
            if value is MISSING:
                missing.append(key)
            elif value is not None:
                found[key] = value
        for at in range(0, len(missing), BATCH):
            some = missing[at : at + BATCH]
            fetched = self._fetch_many(some)
            for key in some:
                value = fetched[key] if key in fetched else self.get(key)
                if value is not None:
                    found[key] = value
        return found

    def warm(self, keys: Iterable[str | bytes], timeout: float = 5.0) -> int:
        """Fetch those of these keys that are not in memory, and keep them; return how many.

        For the start of a program, or after an outage: 64 keys cost one round trip, and keys for
        which another process is asking are left to it. Waits up to timeout seconds until values can
        be kept, and returns 0 if they cannot. keys may be an iterator; if the cache is full, later
        values evict earlier ones.

        Raises what get() raises.
        """
        self._enter()
        if not self.ready(timeout):
            return 0
        fetched, rest = 0, iter(keys)
        while some := list(dict.fromkeys(itertools.islice(rest, BATCH))):  # ends with the keys
            fetched += len(self._fetch_many(some))
        return fetched

    # Writes.

    def set(
        self,
        key: str | bytes,
        value: Any,
        ttl: float | None = None,
        *,
        nx: bool = False,
        xx: bool = False,
    ) -> bool:
        """Store a value at the server, and remove the key here; return whether the value was
        stored.

        ttl: seconds; None: without limit. nx: only if the server has no value for the key; xx: only
        if it has one. After this has returned, every process of the machine reads this value or a
        newer one (N3). The value is not put into the cache, since another machine may already have
        stored a newer one.

        Raises what the client and encoding raise, LockTimeout (the value is stored at the server).
        """
        self._enter()
        raw = raw_of(key)
        try:
            return self._source.set(raw, self._encode(value), ttl, nx=nx, xx=xx)
        finally:  # also after an error: the server may have executed it
            self._forget([raw])

    def delete(self, *keys: str | bytes) -> int:
        """Delete keys at the server, and here; return how many the server had. N3 holds as for
        set().

        Raises what the client raises, LockTimeout (the keys are deleted at the server).
        """
        self._enter()
        raw = [raw_of(key) for key in keys]
        try:
            return self._source.delete(raw)
        finally:
            self._forget(raw)

    def invalidate(self, *keys: str | bytes) -> None:
        """Remove keys here, for all processes of the machine: the next read asks the server.

        Raises TypeError (a key that is neither str nor bytes), LockTimeout, MapClosed.
        """
        self._enter()
        self._forget([raw_of(key) for key in keys])

    def clear(self) -> None:
        """Discard every value here, for all processes of the machine. Costs a store for each node.

        Raises LockTimeout.
        """
        self._enter()
        for number, _ in self._state.lines():
            self._state.discard(number)

    def get_or_set(
        self, key: str | bytes, make: Callable[[], Any], ttl: float | None = None
    ) -> Any:
        """Return the value of key; if the server has none, store make() there and return it.

        Only one process or thread of this machine makes a value at a time. If another machine has
        stored a value first, that value is returned. ttl: as for set().

        Raises what make(), get() and set() raise.
        """
        found = self.get(key, MISSING)
        if found is not MISSING:
            return found
        raw = raw_of(key)
        claim = _core.Claim(self._entries, self._maker(raw), 10.0)
        # If its maker is late, or there is no room: this thread makes one, too.
        with contextlib.suppress(LockTimeout, *NO_ROOM):
            claim.wait()
        try:
            found = self.get(key, MISSING)
            if found is not MISSING:
                return found
            made = make()
            if self.set(key, made, ttl, nx=True):
                return made
            return self.get(key, made)
        finally:
            claim.drop()

    def _maker(self, raw: bytes) -> bytes:
        return hashlib.blake2b(raw, digest_size=16, person=b"near maker").digest()

    # Figures.

    def age(self) -> float:
        """Seconds since the moment before which this machine knows every change: the bound of N1.

        inf: nothing is known, or no tracker has reported yet. Costs a read of each node's line.

        Raises MapClosed.
        """
        if self._refusal:
            return 0.0
        now = _core.clock_monotonic_ns()
        lines = [line for number, line in self._state.lines() if number != TTL_NODE]
        ends = [line.valid_until for line in lines if line.valid_until]
        if len(ends) < max(1, self._source.nodes()):
            return math.inf
        end = max(ends) if self._source.nodes() <= 1 else min(ends)
        return max(0.0, (now - end) / 1e9 + self._max_stale)

    def info(self) -> dict[str, Any]:
        """Facts for people and monitors: the source, the tracker, each node's age and epochs, and
        the counts of the entries. "tracking" says how the server reports changes: "bcast" (CLIENT
        TRACKING), "notify" (PostgreSQL), or "ttl" (it does not).

        Raises MapClosed.
        """
        now = _core.clock_monotonic_ns()
        turn = self._state.line(TURN)
        tracker = self._tracker
        names = self._source.names() if hasattr(self._source, "names") else {}
        return {
            "name": self._state.entries.name,
            "source": self._source.name,
            "tracking": "ttl" if self._refusal else self._told_by,
            "refusal": self._refusal,
            "tracker_pid": 0 if turn is None else turn.pid,
            "takeovers": 0 if turn is None else turn.epochs,
            "tracks_here": tracker is not None and tracker.tracks and tracker.pid == os.getpid(),
            "trouble": None if tracker is None or not tracker.trouble else repr(tracker.trouble),
            "age": self.age(),
            "max_stale": self._max_stale,
            "nodes": {
                number: {
                    "server": names.get(number, ""),
                    "age": (now - line.valid_until) / 1e9 + self._max_stale
                    if line.valid_until
                    else math.inf,
                    "epochs": line.epochs,
                    "watches": line.term,
                }
                for number, line in self._state.lines()
                if number != TTL_NODE
            },
            "entries": self._state.entries.stats()._asdict(),
        }


def _source_of(given: Any, prefixes: Sequence[str | bytes]) -> Source:
    """The source itself, or that of a client or a URL."""
    if all(hasattr(given, method) for method in ("fetch", "watch", "attach")):
        if prefixes:
            raise InvalidArgument("a source knows its prefixes: give it alone")
        return given  # type: ignore[no-any-return]
    from shmrhash._near.cluster import ClusterSource, is_cluster
    from shmrhash._near.redis import RedisSource

    if is_cluster(given):
        return ClusterSource(given, prefixes)
    return RedisSource(given, prefixes)


def _outage_of(given: str | tuple[str, float]) -> tuple[str, float]:
    """on_outage as a word, and the seconds for which old values are served."""
    if given in ("fetch", "raise"):
        return str(given), 0.0
    if isinstance(given, tuple) and len(given) == 2 and given[0] == "stale":
        return "stale", checked_ttl(given[1])
    raise InvalidArgument(f"on_outage is 'fetch', 'raise' or ('stale', seconds), not {given!r}")
