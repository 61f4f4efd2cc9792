"""Near caches that lack one step each, for the tests that have to find them wrong."""

import time

from shmrhash import _core
from shmrhash._near import redis
from shmrhash._near.cache import NearCache
from shmrhash._near.state import NODES_MAX, State
from shmrhash._near.steps import MISSING, stored

KEEP_S = 60.0


class _Filling(NearCache):
    """Parts of a fill, from which mutants compose other fills."""

    def _place_now(self, raw, node):
        return self._place(raw, self._state.line(node).epoch)

    def _put(self, place, answer):
        self._state.entries.set(place, stored(answer.value), KEEP_S)


class WithoutToken(_Filling):
    """Stores an answer even if its claim was deleted."""

    def _filled(self, claim, raw, node):
        place = self._place_now(raw, node)
        (answer,) = self._source.fetch([raw])
        claim.drop()
        self._put(place, answer)
        return answer


class WithSharedToken(_Filling):
    """Takes the claim of another fetch for its own."""

    def _filled(self, claim, raw, node):
        place = self._place_now(raw, node)
        (answer,) = self._source.fetch([raw])
        if not claim.keep(stored(answer.value), KEEP_S):
            other = _core.Claim(self._entries, place, 0)
            if other.attempt() is None or other.has_to_compute:  # another's; its own
                self._put(place, answer)
            other.drop()
        return answer


class WithLateToken(_Filling):
    """Claims the key only when the answer has arrived."""

    def _filled(self, claim, raw, node):
        place = self._place_now(raw, node)
        claim.drop()
        (answer,) = self._source.fetch([raw])
        late = _core.Claim(self._entries, place, 0)
        if late.attempt():
            late.keep(stored(answer.value), KEEP_S)
        return answer


class WithLateLease(NearCache):
    """Looks at the entry, calls between(), and then looks at the lease."""

    between = staticmethod(lambda: None)

    def get(self, key, default=None):
        node = self._node_of(key)
        line = self._state.line(node) if node >= 0 else None
        now = time.monotonic_ns()
        if line is not None:
            found = self._state.entries.get(self._place(key, line.epoch), MISSING)
            self.between()
            line = self._state.line(node)
            if found is not MISSING and now < line.valid_until:
                return self._decoded_(found)
        return self._get_slowly(key, default)

    def _decoded_(self, found):
        return None if found == b"" else self._decode(found)


class WithWriteThrough(_Filling):
    """Stores a written value in the near cache, too."""

    def set(self, key, value, ttl=None, *, nx=False, xx=False):
        done = self._source.set(key, value, ttl, nx=nx, xx=xx)
        for number, _ in self._state.lines():
            self._state.entries.set(self._place_now(key, number), stored(value), KEEP_S)
        return done


class WithoutForgetting(NearCache):
    """Leaves it to the tracker to remove a written key."""

    def _forget(self, keys):
        pass


class WithoutEpoch(State):
    """Serves values under a new watch that were fetched under an earlier one."""

    def begin(self, number):
        before = self.line(number)
        term = super().begin(number)
        if before is not None and number < NODES_MAX:
            with self.words.locked(number.to_bytes(8, "little")) as value:
                value[:16] = before.epoch
        return term


class WithoutLease(State):
    """Has a lease that never ends."""

    def extend(self, number, term, valid_until):
        super().extend(number, term, valid_until + (1 << 50) * (number < NODES_MAX))


class WithoutTerm(State):
    """Extends a lease for a tracker of any term."""

    def extend(self, number, term, valid_until):
        line = self.line(number)
        super().extend(number, line.term if number < NODES_MAX else term, valid_until)


class WithoutIdentity(State):
    """Begins a watch even if the number now belongs to another node."""

    def begin(self, number):
        self._given.digests.clear()
        return super().begin(number)


class WithoutFlush(State):
    """Discards nothing when everything may have changed."""

    def discard(self, number):
        pass


class DeletingValuesOnly(State):
    """Deletes the value of a changed key, but not a claim of it."""

    def forget(self, core, keys, number):
        line = self.line(number)
        for key in keys if line is not None else ():
            if self.entries.get(core._place(key, line.epoch), None) is not None:
                super().forget(core, [key], number)


class _Sink:
    """A sink that changes the moments of proofs."""

    def __init__(self, sink, moment_of):
        self._sink = sink
        self._moment_of = moment_of

    def __getattr__(self, name):
        return getattr(self._sink, name)

    def proved(self, node, moment_ns):
        self._sink.proved(node, self._moment_of(moment_ns))


class _Sending:
    """A connection that notes the moment of its last question."""

    def __init__(self, connection):
        self._connection = connection
        self.sent_ns = 0

    def __getattr__(self, name):
        return getattr(self._connection, name)

    def send(self, data):
        self.sent_ns = redis._core.clock_monotonic_ns()
        self._connection.send(data)


class ProvingByOneQuestion(redis.RedisSource):
    """Believes that an answer arrives after the changes of its own cycle."""

    def _watch_on(self, connection, sink, *others):
        noting = _Sending(connection)
        super()._watch_on(noting, _Sink(sink, lambda _: noting.sent_ns), *others)


class ProvingWhenItHears(redis.RedisSource):
    """Takes the moment when an answer arrives for the moment when its question was sent."""

    def _watch_on(self, connection, sink, *others):
        super()._watch_on(
            connection, _Sink(sink, lambda _: redis._core.clock_monotonic_ns()), *others
        )


class DeafToFlushes(redis.RedisSource):
    """Ignores an invalidation without keys, by which a server tells of a flush."""

    def _watch_on(self, connection, sink, *others):
        deaf = _Sink(sink, lambda moment_ns: moment_ns)
        deaf.everything = lambda _node: None
        super()._watch_on(connection, deaf, *others)


# The mutants that a storm finds, and the weather in which it finds them soonest. The others need
# an order of steps that is too rare, or a server that storms do not have.
WEATHER = {"max_stale": 0.15, "pause": 0.006, "keys": 24}
FOUND_BY_STORMS = {
    WithoutToken: WEATHER,
    WithLateToken: WEATHER,
    DeletingValuesOnly: WEATHER,
    WithoutEpoch: WEATHER | {"blows": ("cut", "reader")},
    WithoutLease: WEATHER | {"blows": ("stop",), "stopped": 5.0, "readers": 2},
    WithoutFlush: WEATHER | {"flushes": 50},
}

# Those that the promises rest on most; a fleet of near_fleet.py finds each of them.
FOUND_BY_FLEETS = (WithoutToken, WithoutEpoch, WithoutLease, ProvingByOneQuestion)
