"""ClusterSource: a cluster of Valkey or Redis as the source of a near cache.

Each primary is a node of the near cache, with an epoch and a lease of its own, under its run id.
Keys are routed by this process's table of slots (routing.py). The tracker has one connection to
each primary, and believes a primary only while the others agree on its slots (clusterwatch.py). So
a wrong table here costs a detour: no entry outlives its node's right to the slot.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from shmrhash import _core
from shmrhash._errors import TrackingRefused
from shmrhash._near.client import checked_prefixes, in_words, probed, set_words
from shmrhash._near.clusterwatch import Watch
from shmrhash._near.connection import Connection
from shmrhash._near.resp import ServerError
from shmrhash._near.routing import Question, Router
from shmrhash._near.source import Fetched, Nodes, Probe, Sink
from shmrhash._near.topology import SLOTS, slot_of

NO_NUMBER = 0xFF  # NEAR_NO_NUMBER of near.pxi
_SLOTS_NS = (
    50_000_000  # slots() is made anew no sooner than after this time: it takes a millisecond
)


def is_cluster(client: Any) -> bool:
    """Whether a client is one of a cluster."""
    return hasattr(client, "nodes_manager") and hasattr(client, "get_connection_kwargs")


class ClusterSource:
    """A cluster of Valkey or Redis.

    client: a RedisCluster or ValkeyCluster, of asyncio or not. Its settings (user, TLS, timeouts,
    the nodes to begin with) are those of the connections that are made here; writes go through the
    client itself where it is of the caller's kind. Only primaries are read. prefixes: as for
    RedisSource.

    Raises InvalidArgument (no prefix, overlapping prefixes), what connecting raises.
    """

    tracking = "bcast"

    def __init__(self, client: Any, prefixes: Sequence[str | bytes]) -> None:
        self._prefixes = checked_prefixes(prefixes)
        self._client = client
        self._is_async = asyncio.iscoroutinefunction(getattr(client, "execute_command", None))
        self._router = Router(client)
        self._nodes: Nodes | None = None
        self._name = ""
        self._slots = bytes((NO_NUMBER,)) * SLOTS
        self._slots_of, self._slots_ns = -1, 0  # the changes of the router that they show; when

    @property
    def name(self) -> str:
        """A cluster has no name of its own: the least id of its primaries stands for it. It is
        another one once that node is a replica; then near caches made before keep the old name."""
        if not self._name:
            self._learn()
            user = self._router.settings.get("username") or "default"
            ident = min(self._router.ids.values()).decode()
            self._name = f"redis cluster of {ident} as {user}, keys {in_words(self._prefixes)}"
        return self._name

    def _learn(self) -> None:
        """Ask for the table of slots, if none is known. Raises the client's errors."""
        if self._router.ids:
            return
        try:
            self._router.refresh()
        except (OSError, ServerError) as error:
            raise self._router.as_clients(error) from error

    def attach(self, nodes: Nodes) -> None:
        self._nodes = nodes

    def nodes(self) -> int:
        return len(self._router.ids)

    def names(self) -> dict[int, str]:
        """The addresses of the nodes that this process has asked, by their numbers."""
        known = self._router.run_ids
        return {
            self._number(known[place]): "{}:{}".format(*place)
            for place in self._router.ids
            if place in known
        }

    def node_of(self, key: bytes) -> int:
        return self._number(self._router.owner(key))

    def slots(self) -> bytes:
        """The number of each slot's node, as far as is known: a byte each, NO_NUMBER for unknown.

        The same object until something changes; after a change a moment may pass.
        """
        now = _core.clock_monotonic_ns()
        changes = self._router.changes
        if changes != self._slots_of and now - self._slots_ns > _SLOTS_NS:
            known = {}
            for place, run_id in list(self._router.run_ids.items()):
                number = self._number(run_id)
                known[place] = NO_NUMBER if number < 0 else number
            self._slots = bytes(known.get(place, NO_NUMBER) for place in self._router.table)  # type: ignore[arg-type]
            self._slots_of, self._slots_ns = changes, now
        return self._slots

    def _number(self, run_id: bytes) -> int:
        return self._nodes.number(run_id) if run_id and self._nodes is not None else -1

    def covers(self, key: bytes) -> bool:
        return key.startswith(self._prefixes)

    # Reading.

    def fetch(self, keys: Sequence[bytes]) -> Sequence[Fetched]:
        questions = [Question(key, ("GET", key), ("PTTL", key)) for key in keys]
        self._router.ask(questions, again=True)
        return self._fetched(questions)

    async def afetch(self, keys: Sequence[bytes]) -> Sequence[Fetched]:
        questions = [Question(key, ("GET", key), ("PTTL", key)) for key in keys]
        await self._router.aask(questions, again=True)
        return self._fetched(questions)

    def _fetched(self, questions: Sequence[Question]) -> list[Fetched]:
        found = []
        for question in questions:
            value, ttl = self._good(question)
            # A key without a deadline, or absent: PTTL is negative.
            left = ttl / 1000 if ttl >= 0 else None
            found.append(Fetched(value, left, self._number(question.run_id)))
        return found

    def _good(self, question: Question) -> list[Any]:
        """The answers, if none is an error."""
        assert question.answers is not None
        for answer in question.answers:
            if isinstance(answer, ServerError):
                raise self._router.as_clients(answer)
        return question.answers

    # Writing.

    def _written(self, key: bytes, words: list[Any]) -> Any:
        """A command of the caller's thread, by its client or by a connection of its own."""
        if not self._is_async:
            return self._client.execute_command(*words)
        question = Question(key, words)
        self._router.ask([question], again=False)
        return self._good(question)[0]

    async def _awritten(self, key: bytes, words: list[Any]) -> Any:
        if self._is_async:
            return await self._client.execute_command(*words)
        question = Question(key, words)
        await self._router.aask([question], again=False)
        return self._good(question)[0]

    def set(
        self, key: bytes, value: bytes, ttl: float | None, *, nx: bool = False, xx: bool = False
    ) -> bool:
        return bool(self._written(key, set_words(key, value, ttl, nx, xx)))

    async def aset(
        self, key: bytes, value: bytes, ttl: float | None, *, nx: bool = False, xx: bool = False
    ) -> bool:
        return bool(await self._awritten(key, set_words(key, value, ttl, nx, xx)))

    def _by_slot(self, keys: Sequence[bytes]) -> list[list[bytes]]:
        """Keys of one slot together: a cluster takes only those in one command."""
        groups: dict[int, list[bytes]] = {}
        for key in keys:
            groups.setdefault(slot_of(key), []).append(key)
        return list(groups.values())

    def delete(self, keys: Sequence[bytes]) -> int:
        return sum(int(self._written(each[0], ["DEL", *each])) for each in self._by_slot(keys))

    async def adelete(self, keys: Sequence[bytes]) -> int:
        groups = self._by_slot(keys)
        gone = [await self._awritten(each[0], ["DEL", *each]) for each in groups]
        return sum(int(each) for each in gone)

    # Watching.

    def probe(self) -> Probe:
        """Ask each primary that answers what it allows; one that refuses counts for all."""
        try:
            self._learn()
        except TrackingRefused as error:
            return Probe("servers without RESP3", False, str(error), 0.0)
        found: list[Probe] = []
        failure: Exception | None = None
        for place in self._router.ids:
            try:
                connection = Connection(self._router.server(place))
            except (OSError, ServerError) as error:
                failure = self._router.as_clients(error, place)
                continue
            self._router.learn_run_id(place, connection.run_id)
            try:
                found.append(self._probed(connection))
            except OSError as error:
                failure = self._router.as_clients(error, place)
            finally:
                connection.close()
        if not found:
            assert failure is not None
            raise failure
        refused = [each for each in found if not each.tracking]
        slowest = max(each.round_trip for each in found)
        return (refused or found)[0]._replace(round_trip=slowest)

    def _probed(self, connection: Connection) -> Probe:
        found = probed(connection, self._prefixes)
        answer = connection.call("CLUSTER", "NODES") if found.tracking else None
        if not isinstance(answer, ServerError):
            return found
        reason = (
            f"the server refuses CLUSTER NODES ({answer}): allow it (ACL SETUSER ... "
            f"+cluster|nodes), or use tracking='ttl'"
        )
        return found._replace(tracking=False, reason=reason)

    def watch(self, sink: Sink, stop: Callable[[], bool], beat: float) -> None:
        assert self._nodes is not None
        Watch(self._router, self._prefixes, self._nodes, sink, beat).run(stop)

    def close(self) -> None:
        self._router.close()
