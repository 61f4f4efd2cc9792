"""Questions to a cluster: each to the primary that owns the key's slot, as far as is known here.

A Router belongs to one process. What it knows of slots is a hint: a node that does not own a slot
says which node does (MOVED). So a wrong table costs a detour, never a wrong answer. What a node
answers for another one (ASK) has no run id here, because it must not be stored.
"""

from __future__ import annotations

import asyncio
import ipaddress
import os
import threading
from collections.abc import Sequence
from typing import Any

from shmrhash import _core
from shmrhash._errors import InvalidArgument, TrackingRefused
from shmrhash._near.client import as_clients
from shmrhash._near.connection import Address as Server
from shmrhash._near.connection import AsyncConnection, Connection
from shmrhash._near.resp import ServerError, command
from shmrhash._near.topology import SLOTS, Address, parsed_slots, redirected, slot_of

_HOPS_MAX = 8  # nodes that a question is sent to, one after the other
_FAILURES_MAX = 2  # of them those that are not able to answer
_IDLE_MAX = 16  # connections of one event loop to one node that are kept
_DOWN = ("CLUSTERDOWN", "LOADING", "MASTERDOWN")  # the node cannot answer now
_NEWS_NS = 50_000_000  # a table is not asked for again sooner than after this time
_BAD = (ValueError, IndexError, LookupError, TypeError, AttributeError)  # an answer of no use


class Question:
    """What is asked about one key, and the answers."""

    def __init__(self, key: bytes, *commands: Sequence[Any]) -> None:
        self.slot = slot_of(key)
        self.answers: list[Any] | None = None
        self.run_id = b""  # of the server that owns the slot and has answered
        self.error: Exception | None = None  # the last one
        self.failures = 0
        self._commands = [command(*words) for words in commands]
        self._sent_to: Address | None = None  # by the last answer
        self._asking = False

    def place(self, table: Sequence[Address | None]) -> Address | None:
        """The node to ask next."""
        return self._sent_to or table[self.slot]

    def words(self) -> bytes:
        """The commands."""
        before = command("ASKING") if self._asking else b""
        return b"".join(before + each for each in self._commands)

    def count(self) -> int:
        """How many answers they have."""
        return len(self._commands) << self._asking

    def send_to(self, place: Address, asking: bool) -> None:
        self._sent_to, self._asking = place, asking

    def fail(self, error: Exception) -> None:
        """The node did not answer: look into the table again."""
        self.failures += 1
        self.error, self._sent_to, self._asking = error, None, False

    def take(self, answers: list[Any], run_id: bytes) -> None:
        self.answers = answers[1::2] if self._asking else answers
        self.run_id = b"" if self._asking else run_id

    def own_answers(self, answers: list[Any]) -> list[Any]:
        return answers[1::2] if self._asking else answers


class Router:
    """The table of slots and the connections of a process. Threads may share it."""

    def __init__(self, client: Any) -> None:
        """From a RedisCluster or ValkeyCluster. Raises InvalidArgument."""
        manager: Any = getattr(client, "nodes_manager", None)
        try:
            self.settings: dict[str, Any] = dict(client.get_connection_kwargs())
            begins = [(node.host, int(node.port)) for node in manager.startup_nodes.values()]
        except AttributeError:
            raise InvalidArgument(
                f"{type(client).__name__} is no client of a cluster whose settings are known"
            ) from None
        self._client = client
        self._remap = getattr(manager, "address_remap", None) or (lambda place: place)
        self._begins: list[Address] = begins
        self.table: list[Address | None] = [None] * SLOTS
        self.ids: dict[Address, bytes] = {}  # the primaries
        self.run_ids: dict[Address, bytes] = {}  # of those that have been connected to
        self.changes = 0  # of the table, and of run ids
        self._forget()

    def _forget(self) -> None:
        """In a new process: no connection is this one's. The parent's stay open, and unused."""
        self._pid = os.getpid()
        self._lock = threading.Lock()  # of refresh()
        self._news_ns = 0  # when the table was asked for last
        self._is_old = True  # or nothing is known: it is asked for before the next question
        self._failing: set[Address] = set()  # nodes that could not answer, and are asked last
        self._mine = threading.local()
        self._all: list[Connection] = []
        self._idle: dict[asyncio.AbstractEventLoop, dict[Address, list[AsyncConnection]]] = {}

    def _expect_own_process(self) -> None:
        if self._pid != os.getpid():
            self._forget()

    def server(self, place: Address) -> Server:
        """The settings of a connection to a node."""
        host, port = self._remap(place)
        return Server(self.settings | {"host": host, "port": port})

    def owner(self, key: bytes) -> bytes:
        """The run id of the node that owns the key, as far as is known; b"": it is not."""
        place = self.table[slot_of(key)]
        return b"" if place is None else self.run_ids.get(place, b"")

    def as_clients(self, error: Exception, place: Address | None = None) -> Exception:
        """An error as the client would raise it."""
        words = "the cluster" if place is None else "{}:{}".format(*place)
        if isinstance(error, ServerError):
            name = "ClusterDownError" if error.code == "CLUSTERDOWN" else "ResponseError"
        elif isinstance(error, (TimeoutError, asyncio.TimeoutError)):
            name = "TimeoutError"
        elif isinstance(error, OSError):
            name = "ConnectionError"
        else:
            return error
        return as_clients(self._client, error, name, words)

    # The table.

    def refresh(self, *, soon: bool = False) -> None:
        """Ask for the table, one node after the other until one answers. soon: only if it has not
        been asked for a moment ago, by another thread too.

        Raises what connecting to the last of them raises, or its answer.
        """
        self._expect_own_process()
        with self._lock:
            if soon and _core.clock_monotonic_ns() - self._news_ns < _NEWS_NS:
                return
            error: Exception = InvalidArgument("a cluster without nodes")
            places = dict.fromkeys((*self.ids, *self._begins))
            for place in sorted(places, key=self._failing.__contains__):
                try:
                    answer = self._connection(place).call("CLUSTER", "SLOTS")
                    if isinstance(answer, ServerError):
                        raise answer
                    self._learn(answer, place)
                    return
                except TrackingRefused:
                    raise
                except (OSError, ServerError, *_BAD) as one:
                    self._drop(place)
                    error = one
            raise error

    def _learn(self, answer: list[Any], asked: Address) -> None:
        table: list[Address | None] = [None] * SLOTS
        ids = {}
        for first, last, place, ident in parsed_slots(answer, asked):
            table[first : last + 1] = [place] * (last + 1 - first)
            ids[place] = ident
        if not ids:
            raise LookupError("a cluster in which nobody owns a slot")
        self.table, self.ids = table, ids
        self.changes += 1
        self._news_ns, self._is_old = _core.clock_monotonic_ns(), False

    def _refresh_quietly(self) -> None:
        try:
            self.refresh(soon=True)
        except (OSError, ServerError, *_BAD):
            self._news_ns = _core.clock_monotonic_ns()  # no node answers: do not ask again at once

    def learn_run_id(self, place: Address, run_id: bytes) -> None:
        """A connection has been made: note which node it reached."""
        if self.run_ids.get(place) != run_id:
            self.run_ids[place] = run_id
            self.changes += 1

    def uses_names(self) -> bool:
        """Whether clients know nodes by names."""
        for host, _ in self.ids:
            try:
                ipaddress.ip_address(host)
            except ValueError:
                return True
        return False

    # Connections of threads.

    def _connection(self, place: Address) -> Connection:
        """This thread's connection to a node."""
        mine: dict[Address, Connection] = self._mine.__dict__.setdefault("connections", {})
        found = mine.get(place)
        if found is None:
            found = mine[place] = Connection(self.server(place))
            self._all.append(found)
            self.learn_run_id(place, found.run_id)
            self._failing.discard(place)
        return found

    def _drop(self, place: Address) -> None:
        """After an error: this thread's connection to a node is of no use."""
        self._failing.add(place)
        found = self._mine.__dict__.get("connections", {}).pop(place, None)
        if found is not None:
            found.close()
            if found in self._all:
                self._all.remove(found)

    def release(self) -> None:
        """Close the connections of this thread."""
        for found in self._mine.__dict__.pop("connections", {}).values():
            found.close()
            if found in self._all:
                self._all.remove(found)

    # Asking.

    def ask(self, questions: Sequence[Question], *, again: bool) -> None:
        """Answer these questions. again: they may be sent again after a lost connection.

        Raises the client's errors.
        """
        self._expect_own_process()
        if self._is_old:
            self._refresh_quietly()
        for _ in range(_HOPS_MAX):
            open_ones = [each for each in questions if each.answers is None]
            if not open_ones:
                break
            self._round(self._groups(open_ones))
            if self._failed(open_ones, again):
                self._refresh_quietly()
        self._finish(questions)

    def _groups(self, questions: Sequence[Question]) -> dict[Address, list[Question]]:
        groups: dict[Address, list[Question]] = {}
        for question in questions:
            place = question.place(self.table)
            if place is None:
                error = ServerError(f"CLUSTERDOWN slot {question.slot} has no owner")
                question.fail(self.as_clients(error))
            else:
                groups.setdefault(place, []).append(question)
        return groups

    def _round(self, groups: dict[Address, list[Question]]) -> None:
        """Send each node its questions, and then take the answers."""
        sent = []
        for place, group in groups.items():
            try:
                connection = self._connection(place)
                connection.send(b"".join(each.words() for each in group))
                sent.append((place, group, connection))
            except (OSError, ServerError) as error:
                self._lose(place, group, error)
            except BaseException:
                self._drop_all(groups)
                raise
        for place, group, connection in sent:
            try:
                for each in group:
                    answers = [connection.answer() for _ in range(each.count())]
                    self._take(each, answers, place, connection.run_id)
            except OSError as error:
                self._lose(place, [each for each in group if each.answers is None], error)
            except BaseException:  # also KeyboardInterrupt: answers are still under way
                self._drop_all(groups)
                raise

    def _drop_all(self, groups: dict[Address, list[Question]]) -> None:
        for place in groups:
            self._drop(place)

    def _lose(self, place: Address, group: list[Question], error: Exception) -> None:
        self._drop(place)
        for each in group:
            each.fail(self.as_clients(error, place))

    def _take(self, question: Question, answers: list[Any], place: Address, run_id: bytes) -> None:
        """Answers of one node: they are final, or name the node to ask."""
        for answer in question.own_answers(answers):
            if not isinstance(answer, ServerError):
                continue
            sent_to = redirected(str(answer), place)
            if sent_to is not None:
                asking, slot, other = sent_to
                question.send_to(other, asking)
                if not asking:
                    self.table[slot], self._is_old = other, True
                    self.changes += 1
                return
            if answer.code in _DOWN:
                self._failing.add(place)  # it may be cut off from the others: they are asked first
                question.fail(self.as_clients(answer, place))
                return
        question.take(answers, run_id)

    def _failed(self, questions: Sequence[Question], again: bool) -> bool:
        """Whether some have not been answered for want of a node. Raises if that is final."""
        failed = [each for each in questions if each.answers is None and each.failures]
        for each in failed:
            late = isinstance(each.error, TimeoutError) or "Timeout" in type(each.error).__name__
            if each.failures >= _FAILURES_MAX or late or not again:
                self._is_old = True
                assert each.error is not None
                raise each.error
        return bool(failed)

    def _finish(self, questions: Sequence[Question]) -> None:
        for each in questions:
            if each.answers is None:
                raise each.error or self.as_clients(
                    ConnectionError(f"slot {each.slot} is sent on and on, {_HOPS_MAX} times")
                )

    # For coroutines.

    async def aask(self, questions: Sequence[Question], *, again: bool) -> None:
        """ask() for coroutines."""
        self._expect_own_process()
        if self._is_old:
            await asyncio.to_thread(self._refresh_quietly)
        for _ in range(_HOPS_MAX):
            open_ones = [each for each in questions if each.answers is None]
            if not open_ones:
                break
            groups = self._groups(open_ones)
            await asyncio.gather(*(self._around(place, group) for place, group in groups.items()))
            if self._failed(open_ones, again):
                await asyncio.to_thread(self._refresh_quietly)
        self._finish(questions)

    async def _around(self, place: Address, group: list[Question]) -> None:
        """Ask one node."""
        loop = asyncio.get_running_loop()
        for ended in [each for each in self._idle if each.is_closed()]:
            del self._idle[ended]
        idle = self._idle.setdefault(loop, {}).setdefault(place, [])
        try:
            connection = idle.pop() if idle else await AsyncConnection(self.server(place)).open()
        except (OSError, asyncio.TimeoutError, ServerError) as error:
            return self._lose(place, group, error)
        self.learn_run_id(place, connection.run_id)
        self._failing.discard(place)
        try:
            data = b"".join(each.words() for each in group)
            answers = await connection.ask(data, sum(each.count() for each in group))
        except (OSError, asyncio.TimeoutError) as error:
            connection.close()
            return self._lose(place, group, error)
        except BaseException:  # also a cancellation: answers are still under way
            connection.close()
            raise
        if len(idle) < _IDLE_MAX:
            idle.append(connection)
        else:
            connection.close()
        for each in group:
            own, answers = answers[: each.count()], answers[each.count() :]
            self._take(each, own, place, connection.run_id)
        return None

    def close(self) -> None:
        """Close the connections of this process. A second call does nothing."""
        self._expect_own_process()
        for connection in self._all:
            connection.close()
        for places in self._idle.values():
            for idle in places.values():
                for each in idle:
                    each.close()
        self._forget()
