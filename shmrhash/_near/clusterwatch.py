"""The watch of a cluster: one connection to each primary, and which primaries may be believed.

A primary reports the changes that it executes itself. So a value that was read at a primary may be
served while two things are known: that this primary has reported everything (as for one server),
and that no other node executes writes of its slots. For the second the tracker asks each primary,
in rounds of one beat, for its view of the cluster (CLUSTER NODES), which is the question of the
lease as well. The rules, for a primary P in the round that began at q, the round before at m:

  owner     P itself says that it owns the slots that it had when its watch began. If they are
            others, or it begins to give slots away, or it has a new epoch: all its entries are
            discarded. So nothing outlives the right to the slot; in particular no "absent", which
            no deletion at P takes back when the key is created at the slot's new owner.
  majority  More than half of the owners of slots, P among them, say in this round or a later one
            that P owns its slots, and none has said last that another node owns one of them.
  proof     Then P has told, and alone executed, all writes before m: the lease is m + max_stale.

Why m, and not q: as for one server, an answer overtakes the messages of its own cycle. And a
replica that was elected owns the slots a moment before the others hear of it. The views were asked
for a beat after m; so the proof is right if the nodes hear of a new owner within one beat.

A primary that does not answer loses its own lease. The others keep theirs while they are a
majority: by the same rule the cluster itself goes on. A primary without slots is watched, too,
because its view is the first to say that it has become an owner.
"""

from __future__ import annotations

import contextlib
import queue
import select
import socket
import threading
from collections.abc import Callable, Sequence
from typing import NamedTuple

from shmrhash import _core
from shmrhash._errors import TrackingRefused, Unavailable
from shmrhash._near.client import begin_tracking, tell
from shmrhash._near.connection import Connection
from shmrhash._near.resp import Push, ServerError, command
from shmrhash._near.routing import Router
from shmrhash._near.source import STOP_SECONDS, Nodes, Sink
from shmrhash._near.topology import Address, Member, Ranges, View, parsed_nodes

_LOST_AFTER = 4  # beats without an answer, after which a connection is made anew
_PAUSE_MIN_NS, _PAUSE_MAX_NS = 20_000_000, 1_000_000_000  # between attempts to connect
_QUESTION = command("CLUSTER", "NODES")


class Right(NamedTuple):
    """By what a primary owns its slots. If this is the same twice, it has owned them all the time.

    A node that gains a slot gets a new epoch, unless it has the greatest of all already. So one
    that gained a slot and lost it again between two questions has a new epoch, or had the greatest
    and has it no more.
    """

    slots: Ranges
    epoch: int
    is_greatest: bool
    leaving: frozenset[bytes]


class Primary:
    """A connection to a primary, and what it has answered."""

    def __init__(self, place: Address, connection: Connection) -> None:
        self.place = place
        self.connection = connection
        self.number = -1  # of the node; -1: its watch has not begun, it owns no slots
        self.right: Right | None = None
        self.view: View | None = None  # the last answer
        self.round = 0  # in which that was asked
        self.sent_ns = 0  # when it was asked
        self.before_ns = 0  # when the question before it was asked
        self.asked = 0  # the round of the question that is under way; 0: none is
        self.asked_ns = 0


class Watch:
    """One turn of the tracker. All but connecting is done by one thread."""

    def __init__(
        self, router: Router, prefixes: Sequence[bytes], nodes: Nodes, sink: Sink, beat: float
    ) -> None:
        self._router = router
        self._prefixes = prefixes
        self._nodes = nodes
        self._sink = sink
        self._beat_ns = int(beat * 1e9)
        self._round = 0
        self._watched: dict[Address, Primary] = {}
        self._failed: dict[Address, tuple[int, int]] = {}  # when to try again, and the pause
        self._connecting: set[Address] = set()
        self._made: queue.SimpleQueue[tuple[Address, Connection | Exception]] = queue.SimpleQueue()
        self._is_over = threading.Event()
        self._told: frozenset[int] = frozenset()  # the nodes of the last only()
        self._error: Exception = Unavailable("no node of the cluster answers")

    def run(self, stop: Callable[[], bool]) -> None:
        """Watch until stop(). Raises TrackingRefused, Deposed, and the last error if no node
        can be reached."""
        due = _core.clock_monotonic_ns()
        self._bell, self._ring = socket.socketpair()  # rung when something is put into _made
        try:
            self._router.refresh(soon=True)
            self._router.release()
            while not stop():  # asks at least each beat
                now = _core.clock_monotonic_ns()
                if now >= due:
                    due = now + self._beat_ns
                    self._begin_round(now)
                self._wait(min(max(0, due - now) / 1e9, STOP_SECONDS))
                self._welcome()
                if not self._watched and not self._connecting:
                    raise self._error
        finally:
            self._is_over.set()
            for primary in list(self._watched.values()):
                self._lose(primary)
            self._welcome(to_close=True)
            self._bell.close()
            self._ring.close()

    # Connections.

    def _wanted(self) -> dict[Address, Member | None]:
        """The primaries that a node knows of; while no node has answered, those of the router."""
        wanted: dict[Address, Member | None] = {}
        for primary in self._watched.values():
            if primary.view is not None:
                for member in primary.view.primaries():
                    wanted[self._place_of(member)] = member
        if not wanted:
            wanted.update(dict.fromkeys(self._router.ids))
        return wanted

    def _place_of(self, member: Member) -> Address:
        """The address by which clients know a node: its name, where they use names."""
        for place, ident in self._router.ids.items():
            if ident == member.id:
                return place
        host, port = member.address
        return (member.name if member.name and self._router.uses_names() else host), port

    def _connect_missing(self, now: int) -> None:
        wanted = self._wanted()
        for primary in list(self._watched.values()):
            if primary.place not in wanted and primary.view is not None:
                self._lose(primary)
        for place in wanted:
            when, _ = self._failed.get(place, (0, 0))
            if place not in self._watched and place not in self._connecting and now >= when:
                self._connecting.add(place)
                threading.Thread(
                    target=self._connect, args=(place,), name="shmrhash near node", daemon=True
                ).start()

    def _connect(self, place: Address) -> None:
        """In a thread of its own: a dead machine takes seconds not to answer."""
        made: Connection | Exception
        try:
            made = Connection(self._router.server(place))
            try:
                refusal = begin_tracking(made, self._prefixes)
                if refusal:
                    raise TrackingRefused(refusal)
            except BaseException:
                made.close()
                raise
        except Exception as error:
            made = error
        self._made.put((place, made))
        if self._is_over.is_set():
            self._welcome(to_close=True)
        else:
            with contextlib.suppress(OSError):
                self._ring.send(b"!")

    def _welcome(self, to_close: bool = False) -> None:
        """Take over the connections that have been made; ask each at once for its view."""
        while True:  # until there are no more
            try:
                place, made = self._made.get_nowait()
            except queue.Empty:
                return
            self._connecting.discard(place)
            if to_close:
                if isinstance(made, Connection):
                    made.close()
            elif isinstance(made, TrackingRefused):
                raise made
            elif isinstance(made, Exception):
                self._error = made
                self._set_back(place)
            else:
                made.settimeout(self._beat_ns * _LOST_AFTER / 1e9)
                primary = self._watched[place] = Primary(place, made)
                self._router.learn_run_id(place, made.run_id)
                self._ask(primary, _core.clock_monotonic_ns())

    def _set_back(self, place: Address) -> None:
        """After an error: when to connect again."""
        _, pause = self._failed.get(place, (0, 0))
        pause = min(max(2 * pause, _PAUSE_MIN_NS), _PAUSE_MAX_NS)
        self._failed[place] = _core.clock_monotonic_ns() + pause, pause

    def _lose(self, primary: Primary, error: Exception | None = None) -> None:
        """A connection is gone, or of no use any more."""
        if error is not None:
            self._error = error
            self._set_back(primary.place)
        del self._watched[primary.place]
        primary.connection.close()
        if primary.number >= 0:
            self._sink.lost(primary.number)

    # Questions and answers.

    def _begin_round(self, now: int) -> None:
        self._round += 1
        for primary in list(self._watched.values()):
            if primary.asked == 0:
                self._ask(primary, now)
            elif now - primary.asked_ns > _LOST_AFTER * self._beat_ns:
                host, port = primary.place
                self._lose(primary, Unavailable(f"{host}:{port} has not answered for long"))
        self._connect_missing(now)

    def _ask(self, primary: Primary, now: int) -> None:
        primary.asked, primary.asked_ns = self._round, now
        try:
            primary.connection.send(_QUESTION)
        except OSError as error:
            self._lose(primary, error)

    def _wait(self, seconds: float) -> None:
        """Wait for what the nodes say, and hear it."""
        by_file = {primary.connection.fileno(): primary for primary in self._watched.values()}
        pending = [number for number, each in by_file.items() if each.connection.pending()]
        poll = select.poll()  # a file's number may be too great for select()
        for file in (self._bell.fileno(), *by_file):
            poll.register(file, select.POLLIN)
        ready = [file for file, _ in poll.poll(0 if pending else 1000 * seconds)]
        for file in {*ready, *pending}:
            primary = by_file.get(file)
            if primary is None:
                self._bell.recv(64)
                continue
            if self._watched.get(primary.place) is not primary:
                continue
            try:
                self._hear(primary)
            except OSError as error:
                if self._watched.get(primary.place) is primary:
                    self._lose(primary, error)

    def _hear(self, primary: Primary) -> None:
        """What one node says. Raises OSError, ConnectionError, ProtocolError, Deposed."""
        for reply in primary.connection.receive():
            if isinstance(reply, Push):
                if primary.number >= 0:
                    tell([reply], self._sink, primary.number)
                continue
            if isinstance(reply, ServerError):
                raise Unavailable(f"{primary.place} answers {reply} to CLUSTER NODES")
            try:
                view = parsed_nodes(reply, primary.place)
            except (ValueError, LookupError, TypeError, AttributeError) as error:
                raise Unavailable(f"{primary.place}: not an answer to CLUSTER NODES") from error
            primary.before_ns = primary.sent_ns
            primary.view, primary.round, primary.sent_ns = view, primary.asked, primary.asked_ns
            primary.asked = 0
            self._compare(primary, view)
            if not view.me.primary:
                raise Unavailable("{}:{} is a replica".format(*primary.place))
            self._failed.pop(primary.place, None)
            self._prove()

    def _compare(self, primary: Primary, view: View) -> None:
        """What a node says of itself, with what it said before."""
        me = view.me
        right = None
        if me.primary and me.slots:
            greatest = max(member.epoch for member in view.members.values())
            right = Right(me.slots, me.epoch, me.epoch == greatest, me.leaving)
        if right == primary.right:
            return
        if primary.right is not None:
            self._sink.everything(primary.number)
        if primary.right is None:
            self._begin(primary)
        primary.right = right
        if right is None:  # a replica now, or without slots
            self._sink.lost(primary.number)
            primary.number = -1

    def _begin(self, primary: Primary) -> None:
        """A node owns slots from now on. Its first proof takes two questions after this one."""
        primary.number = self._nodes.number(primary.connection.run_id)
        if primary.number < 0:
            raise Unavailable("more nodes are watched than a near cache has lines for")
        self._sink.began(primary.number)
        primary.before_ns = 0

    # Proofs.

    def _prove(self) -> None:
        """Extend the lease of each node that this answer has proved."""
        for primary in self._watched.values():
            if primary.number >= 0 and primary.before_ns and self._is_believed(primary):
                moment, primary.before_ns = primary.before_ns, 0
                self._sink.proved(primary.number, moment)
        self._say_who_is_left()

    def _is_believed(self, primary: Primary) -> bool:
        """The rule of the majority, for the last answer of a primary."""
        assert primary.view is not None
        assert primary.right is not None
        ident, slots = primary.view.me.id, primary.right.slots
        votes = 0
        for other in self._watched.values():
            if other.view is None:
                continue
            if not other.view.agrees(ident, slots):
                if other.view.contradicts(ident, slots):
                    return False
            elif other.round >= primary.round:
                votes += bool(other.view.me.slots and other.view.me.primary)
        return 2 * votes > max(each.view.owners() for each in self._watched.values() if each.view)

    def _say_who_is_left(self) -> None:
        """Once every owner of slots is watched: only these are nodes of the cluster."""
        begun = frozenset(each.number for each in self._watched.values() if each.number >= 0)
        if begun == self._told:
            return
        if all(
            each.view is not None and each.view.owners() == len(begun)
            for each in self._watched.values()
        ):
            self._sink.only(begun)
            self._told = begun
