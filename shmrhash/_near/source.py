"""The wall between a near cache and the server that it is near to.

A source fetches values, and watches for changes. A near cache asks three things of it:

(a) A change after a fetch is told to a watcher that began before the fetch.
(b) The watcher can prove that it has told every change before a moment.
(c) A fetch says at which node it read; its value is stored only if that node is watched.

Nothing here knows of shared memory, and nothing beyond the wall knows of a server.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple, Protocol

STOP_SECONDS = 0.25  # the most between two looks of a watch at stop(): close() waits for it


class Fetched(NamedTuple):
    """What the server answered for one key.

    value: the bytes as the server sent them; None: the key is absent. ttl: seconds to live, counted
    from the moment at which the question was *sent*, so that the deadline is never late; None:
    without limit. node: the number of the node at which the value was read (Nodes.number); -1: the
    reader does not know, or the answer came by a detour (MOVED, ASK, a replica): not to be stored.
    """

    value: bytes | None
    ttl: float | None
    node: int


class Probe(NamedTuple):
    """What a server allows, as found by asking it.

    server: its name and version, for people. tracking: whether it tells of changes. reason: if it
    does not, why, and what to do about it. round_trip: seconds that a question took, at least.
    """

    server: str
    tracking: bool
    reason: str
    round_trip: float


class Nodes(Protocol):
    """The numbers of nodes, the same in all processes of the machine. A near cache has them."""

    def number(self, identity: bytes) -> int:
        """The number of the node with this identity; -1: there are too many nodes.

        identity: what no other node has, nor the same server after it has lost what it knew of its
        watchers: the run id of a Redis or Valkey, or the node id and the run id. Up to 64 bytes.
        A number can pass to another node when its own has not been watched for a while. So ask
        again for each fetch: that costs a look into shared memory, about a microsecond. Never keep
        a number longer than a connection's one question and answer; a watch that is to begin asks
        in the thread that calls began(), which raises Deposed if the number has passed on.
        """


class Sink(Protocol):
    """Where a watcher tells what it hears. All calls for one node come from one thread at a time.

    Each returns when what it says is visible to every reader of the machine. Each may raise
    Deposed: another process tracks; then watch() has to end, as it does with its own errors.
    """

    def began(self, node: int) -> None:
        """The watch of a node has begun: every change after this moment will be told. To be called
        after the server has confirmed the subscription, again after each reconnection. Nothing
        that was fetched at this node before is served any more."""

    def changed(self, node: int, keys: Sequence[bytes]) -> None:
        """These keys may have changed at this node. Keys that the near cache does not have are
        allowed."""

    def everything(self, node: int) -> None:
        """Everything may have changed: a flush, a change of role, slots that the node has lost."""

    def proved(self, node: int, moment_ns: int) -> None:
        """Every change that the node executed before this moment has been told, by calls that have
        returned. moment_ns: of CLOCK_MONOTONIC, taken before the question was sent whose answer
        proves it."""

    def lost(self, node: int) -> None:
        """The connection to a node is gone, or the node is not watched any more. Its values are
        served until the last proof is too old; the next began() discards them."""

    def only(self, nodes: Collection[int]) -> None:
        """These are all nodes that answer for keys now. What others have said counts no more: their
        leases end. Only a source of several nodes calls this, when it knows them all."""


class Source(Protocol):
    """A server, a cluster or a database, as the processes of one machine use it.

    One object serves all threads of a process. After a fork the child uses the object it inherits,
    which then makes connections of its own, and leaves those of its parent alone.
    """

    @property
    def name(self) -> str:
        """Names the server, the database, the user and the prefixes, without secrets. It is the
        same in all processes that mean the same: the name of the shared segment is made of it."""

    def attach(self, nodes: Nodes) -> None:
        """Called once, before anything else but name and probe(): where numbers of nodes are."""

    def nodes(self) -> int:
        """How many nodes answer for keys, as far as this process knows. 1: node_of() is the same
        for all keys."""

    def node_of(self, key: bytes) -> int:
        """The number of the node that answers for this key, as far as this process knows, without
        asking a server; -1: not known yet, and the next fetch will find out. A wrong number costs
        a hit, never a wrong value."""

    def covers(self, key: bytes) -> bool:
        """Whether changes of this key are watched (it has one of the prefixes)."""

    def fetch(self, keys: Sequence[bytes]) -> Sequence[Fetched]:
        """The values of these keys, in their order. Raises the errors of the client."""

    async def afetch(self, keys: Sequence[bytes]) -> Sequence[Fetched]:
        """fetch() for coroutines."""

    def set(
        self, key: bytes, value: bytes, ttl: float | None, *, nx: bool = False, xx: bool = False
    ) -> bool:
        """Store a value at the server; return, after its answer, whether it was stored.

        ttl: seconds; None: without limit. nx: only if the key is absent; xx: only if it is there.
        """

    async def aset(
        self, key: bytes, value: bytes, ttl: float | None, *, nx: bool = False, xx: bool = False
    ) -> bool:
        """set() for coroutines."""

    def delete(self, keys: Sequence[bytes]) -> int:
        """Delete keys at the server; return, after its answer, how many there were."""

    async def adelete(self, keys: Sequence[bytes]) -> int:
        """delete() for coroutines."""

    def probe(self) -> Probe:
        """Ask the server what it allows. Raises the errors of the client."""

    def watch(self, sink: Sink, stop: Callable[[], bool], beat: float) -> None:
        """Tell the sink of every change, and a proof at least every beat seconds while the server
        answers. Runs in the tracker's thread until stop() is true, which it asks at least every
        beat seconds, or until an error: then it raises, and is called again after a pause.

        Connections that it loses it makes again itself, or it raises. Raises TrackingRefused (the
        server refuses to report changes; the message says what to do)."""

    # A source may have:
    # tracking: str, by what the server tells of changes, for people, up to 12 bytes: "bcast".
    # one_server: bool, whether it asks one server at a time, so that a new node replaces the old.
    # A source of several nodes may have:
    # names(self) -> dict[int, str]: the addresses of nodes by their numbers, for people;
    # slots(self) -> bytes: a byte for each of 16,384 slots, the number of its node or 255 (not
    # known), so that get() finds a hit by the key's slot, as a cluster of Redis has it, by itself.

    def close(self) -> None:
        """Close the connections of this process. A second call does nothing."""
