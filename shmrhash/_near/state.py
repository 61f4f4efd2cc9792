"""The shared state of a near cache: its entries, and the lines of its nodes.

Two segments. The entries are a Cache whose keys are places (cython/python/near.pxi). The words have
a line for each node, and TURN, the line of the tracker's office. The name of the words contains the
identity of the entries, so the lines of one segment are never taken for those of another.

A line changes in a locked section only, as a whole. `term` counts the connections of trackers to
the node: a tracker that extends a lease says in which term, and is refused if another tracker has
begun one. So a tracker that was stopped, and wakes after another has begun, extends nothing (the
fence). The epoch is 16 random bytes: no two lines, and no two lives of a segment, ever have the
same.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import struct
import threading
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from shmrhash import _core
from shmrhash._cache import Cache
from shmrhash._constants import BPF_NOEXIST
from shmrhash._errors import Deposed, Error, InvalidArgument, KeyExists, LockTimeout
from shmrhash._map import RHashMap

NODES_MAX = 64  # lines; a cluster has as many primaries, with those of its last restarts
TTL_NODE = 1 << 20  # the line of entries that no tracker watches, which live for their ttl
TURN = 1 << 21  # the line of the tracker's office: valid_until is when it was last seen to work
TURN_PLACE = b"\xff" * 16  # its claim among the entries: no key's place, but by a chance of 2^-128
FOREVER_NS = (1 << 63) - 1
_LINE = struct.Struct("<16sqQ16sqqQQ")
_IDLE_NS = 60_000_000_000  # a number passes on when its node has had no lease for so long
_TIMEOUT = 0.25  # seconds to wait for a living process that holds a lock


class Place(ctypes.Structure):
    """The key of an entry: the digest of the user's key, XOR the epoch."""

    _fields_ = (("low", ctypes.c_uint64), ("high", ctypes.c_uint64))


class Line(NamedTuple):
    """The words of one node."""

    epoch: bytes  # under which entries are stored; in TURN's line of the tracker that heard last
    valid_until: int  # the lease: CLOCK_MONOTONIC in ns; 0: none
    term: int  # the number of this watch of the node
    identity: bytes  # a digest of the node's; in TURN's line words of agree()
    pid: int  # of the tracker, for people
    began_ns: int  # when the watch began
    epochs: int  # how often the epoch has changed; in TURN's line: how often another one took over
    max_stale_ns: int  # of all processes, in TURN's line only

    def packed(self) -> bytes:
        return _LINE.pack(*self)


class _Given(threading.local):
    """The identity for which a thread was given each number last."""

    def __init__(self) -> None:
        self.digests: dict[int, bytes] = {}


def _new_line(identity: bytes = bytes(16), valid_until: int = 0) -> Line:
    return Line(os.urandom(16), valid_until, 0, identity, 0, 0, 0, 0)


def _key(number: int) -> bytes:
    return number.to_bytes(8, "little")


def lines_name(name: str, identity: tuple[int, int]) -> str:
    """The name of the lines that belong to the entries of this name, device and inode."""
    device, inode = identity
    return f"{name}.{device:x}-{inode:x}"


def line_in(words: RHashMap, number: int) -> Line | None:
    """The line of this number. Waits for nobody."""
    found = words.lookup(_key(number))
    return None if found is None else Line._make(_LINE.unpack(found))


class State:
    """The entries and the lines. It is the Nodes of a source."""

    def __init__(self, name: str, max_entries: int, max_bytes: int, mode: int) -> None:
        self.entries: Cache[Place, bytes] = Cache(
            name,
            key=Place,
            value=bytes,
            max_entries=max_entries,
            max_bytes=max_bytes,
            mode=mode,
            ephemeral=True,
            timeout=_TIMEOUT,
        )
        try:
            self.words = RHashMap.open_or_create(
                lines_name(name, self.entries.handle._identity()),
                key_size=8,
                value_size=_LINE.size,
                max_entries=NODES_MAX + 2,
                mode=mode,
                ephemeral=True,
                timeout=_TIMEOUT,
            )
        except BaseException:
            self.entries.close()
            raise
        # From here on the keys of entries are the bytes of places.
        _core.CacheCore.__init__(
            self.entries,
            self.entries.handle,
            (_core.KEY_FIXED, bytes, bytes),
            (_core.VALUE_BYTES, None, None),
            0,
            self.entries.handle.max_bytes // 8,
        )
        self._given = _Given()

    def line(self, number: int) -> Line | None:
        """The line of this number. Waits for nobody."""
        return line_in(self.words, number)

    def lines(self) -> Iterator[tuple[int, Line]]:
        """The lines of nodes, and that of TTL_NODE if entries live there."""
        for number in (*range(NODES_MAX), TTL_NODE):
            line = self.line(number)
            if line is not None:
                yield number, line

    def number(self, identity: bytes) -> int:
        """Nodes.number()."""
        digest = hashlib.blake2b(identity, digest_size=16).digest()
        number = self._known(digest)
        if number < 0:
            try:
                number = self._numbered(digest)
            except (LockTimeout, KeyExists):
                return -1
        self._given.digests[number] = digest
        return number

    def _known(self, digest: bytes) -> int:
        """The number that this identity has; -1: none."""
        for number in range(NODES_MAX):
            line = self.line(number)
            if line is None:
                break
            if line.identity == digest:
                return number
        return -1

    def _numbered(self, digest: bytes) -> int:
        """A new number, given out under the lock of TURN's line: two processes give one."""
        oldest, oldest_valid = -1, _core.clock_monotonic_ns() - _IDLE_NS
        with self.words.locked(_key(TURN), default=_new_line().packed()):
            for number in range(NODES_MAX):
                line = self.line(number)
                if line is None:
                    fresh = _new_line(digest)
                    self.words.update(_key(number), fresh.packed(), BPF_NOEXIST)
                    return number
                if line.identity == digest:
                    return number
                if max(line.valid_until, line.began_ns) < oldest_valid:
                    oldest, oldest_valid = number, max(line.valid_until, line.began_ns)
            if oldest >= 0:
                with self.words.locked(_key(oldest)) as value:
                    before = Line._make(_LINE.unpack(bytes(value)))
                    fresh = _new_line(digest)._replace(term=before.term + 1)
                    value[:] = fresh.packed()
        return oldest

    def begin(self, number: int) -> int:
        """A tracker's watch of the node has begun: a new term, a new epoch, no lease yet.

        Raises Deposed: since this thread asked for it, the number has passed to another node.
        """
        digest = self._given.digests.get(number)
        with self.words.locked(_key(number), default=_new_line().packed()) as value:
            line = Line._make(_LINE.unpack(bytes(value)))
            if digest is not None and line.identity != digest:
                raise Deposed(f"near cache {self.entries.name!r}: number {number} has passed on")
            line = line._replace(
                epoch=os.urandom(16),
                valid_until=0,
                term=line.term + 1,
                pid=os.getpid(),
                began_ns=_core.clock_monotonic_ns(),
                epochs=line.epochs + 1,
            )
            value[:] = line.packed()
        return line.term

    def take_office(self) -> int:
        """A tracker has the office: a new term of TURN's line. It has heard no server yet."""
        with self.words.locked(_key(TURN), default=_new_line().packed()) as value:
            line = Line._make(_LINE.unpack(bytes(value)))
            line = line._replace(valid_until=0, term=line.term + 1, pid=os.getpid())
            value[:] = line.packed()
        return line.term

    def heard_by(self, term: int, tracker: bytes) -> None:
        """The tracker of this term hears a server: a takeover, if another tracker heard one
        last. tracker: 16 bytes that no other one has. Raises Deposed, LockTimeout."""
        with self.words.locked(_key(TURN)) as value:
            line = Line._make(_LINE.unpack(bytes(value)))
            if line.term != term:
                raise Deposed(f"near cache {self.entries.name!r}: another process tracks")
            if line.epoch != tracker:
                value[:] = line._replace(epoch=tracker, epochs=line.epochs + 1).packed()

    def extend(self, number: int, term: int, valid_until: int) -> None:
        """Extend the lease in this term. It never gets shorter. Raises Deposed."""
        with self.words.locked(_key(number)) as value:
            line = Line._make(_LINE.unpack(bytes(value)))
            if line.term != term:
                raise Deposed(f"near cache {self.entries.name!r}: another process tracks")
            if valid_until > line.valid_until:
                value[:] = line._replace(valid_until=valid_until).packed()

    def agree(self, max_stale_ns: int, tracking: str) -> None:
        """Say in TURN's line for how long trackers extend leases, and by what the server tells, a
        word; a second word, "one", says that the source asks one server at a time.

        All processes have to say the same, since the tracker extends the lease for all. It is said
        for the life of the segment, which ends with its last user's. Raises InvalidArgument (others
        have said another max_stale), LockTimeout.
        """
        line = self.line(TURN)
        if line is None or line.max_stale_ns == 0:
            with self.words.locked(_key(TURN), default=_new_line().packed()) as value:
                line = Line._make(_LINE.unpack(bytes(value)))
                if line.max_stale_ns == 0:
                    word = tracking.encode()[:16].ljust(16, b"\0")
                    line = line._replace(max_stale_ns=max_stale_ns, identity=word)
                    value[:] = line.packed()
        if line.max_stale_ns != max_stale_ns:
            raise InvalidArgument(
                f"near cache {self.entries.name!r} is in use with max_stale="
                f"{line.max_stale_ns / 1e9:g}, not {max_stale_ns / 1e9:g}: give all processes the "
                f"same, or another name"
            )

    def discard(self, number: int) -> None:
        """Discard all entries of a node: a new epoch, in one store. The lease goes on."""
        with self.words.locked(_key(number)) as value:
            line = Line._make(_LINE.unpack(bytes(value)))
            line = line._replace(epoch=os.urandom(16), epochs=line.epochs + 1)
            value[:] = line.packed()

    def retire(self, number: int) -> None:
        """End the lease of a node: it answers for no keys any more."""
        with self.words.locked(_key(number)) as value:
            line = Line._make(_LINE.unpack(bytes(value)))
            value[:] = line._replace(valid_until=0).packed()

    def open_ttl_line(self) -> None:
        """Make the line of the entries that live for their ttl."""
        with contextlib.suppress(KeyExists):
            fresh = _new_line(valid_until=FOREVER_NS)
            self.words.update(_key(TTL_NODE), fresh.packed(), BPF_NOEXIST)

    def forget(self, core: _core.NearCore, keys: Iterable[bytes], number: int) -> None:
        """Delete keys of a node. After this no claim that began before stores a value.

        The line is read first: an entry or claim under a later epoch began after this call.
        """
        line = self.line(number)
        if line is None:
            return
        try:
            for key in keys:
                self.entries.delete(core._place(key, line.epoch))  # type: ignore[arg-type]
        except LockTimeout:  # a stopped process holds the bucket: nothing is waited for
            self.discard(number)

    def close(self) -> None:
        for handle in (self.entries, self.words):
            with contextlib.suppress(Error):
                handle.close()
