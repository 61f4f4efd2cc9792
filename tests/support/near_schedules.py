"""Steps of a near cache and its tracker in an order that a test chooses.

A schedule is one order in which a promise has to hold; for each step that a mutant in
near_mutants.py leaves out there is a schedule in which the mutant breaks the promise.
"""

import contextlib
import socket
import threading
import time
from types import SimpleNamespace
from unittest import mock

from shmrhash import Deposed
from shmrhash._near.cache import NearCache
from shmrhash._near.redis import RedisSource
from shmrhash._near.resp import Push
from shmrhash._near.tracker import Tracker
from support.near import PlainSource

STALE = 0.2
BEAT = 0.01
KEY = b"k"


class Scene:
    """A near cache, its source, and a tracker whose steps the test performs."""

    def __init__(self, name, kind=NearCache, **options):
        self.source = PlainSource()
        given = {"track": False, "max_stale": STALE, "max_entries": 1000, "max_bytes": 1 << 20}
        given |= options
        self.near = kind(self.source, name=name, **given)
        self.max_stale = given["max_stale"]
        self.tracker = self.new_tracker()
        self.node = self.source.node_of(b"")

    def new_tracker(self):
        tracker = Tracker(self.near._state, self.source, self.near, self.max_stale)
        tracker._turn = self.near._state.take_office()
        return tracker

    def watch(self):
        self.tracker.began(self.node)
        self.prove()

    def prove(self):
        self.tracker.proved(self.node, time.monotonic_ns())

    def has(self, value):
        """Let another host write, without the tracker hearing of it."""
        self.source.server.values[KEY] = value

    def write(self, key, value):
        """Let another host write, and the tracker hear of it."""
        self.source.server.values[key] = value
        self.tracker.changed(self.node, [key])

    def during_a_fetch(self, happens):
        """Call happens() when the server has answered the next fetch, before the answer arrives."""

        def once():
            self.source.during = lambda: None
            happens()

        self.source.during = once

    def reads(self):
        return self.source.server.reads

    def close(self):
        self.near._state.entries.check()
        self.near._state.words.check()
        self.near.close()


def an_answer_is_overtaken(it):
    """N1: a fetch stores nothing if the key changes before its answer has arrived."""
    it.watch()
    it.has(b"old")
    it.during_a_fetch(lambda: it.write(KEY, b"new"))

    assert it.near.get(KEY) == b"old"  # this value was current during the call
    assert it.near.get(KEY) == b"new"


def another_fetch_begins_when_an_answer_is_overtaken(it):
    """N1: the first fetch does not take the claim of a second one for its own."""
    it.watch()
    it.has(b"old")
    second = []

    def overtaken():
        it.write(KEY, b"new")
        second.append(it.near._claim(KEY, it.near._state.line(it.node), 0))
        assert second[0].attempt()

    it.during_a_fetch(overtaken)
    it.near.get(KEY)
    second[0].drop()

    assert it.near.get(KEY) == b"new"


def a_watch_is_made_anew(it):
    """N2: a value that changed while no tracker watched is not served."""
    it.watch()
    it.has(b"old")
    it.near.get(KEY)
    it.has(b"new")
    it.watch()

    assert it.near.get(KEY) == b"new"


def a_watch_is_made_anew_during_a_fetch(it):
    """N2: the answer is stored under the old epoch, where no reader looks."""
    it.watch()
    it.has(b"old")

    def reconnected():
        it.has(b"new")
        it.watch()

    it.during_a_fetch(reconnected)
    it.near.get(KEY)

    assert it.near.get(KEY) == b"new"


def another_process_takes_over(it):
    """N5, N2: a value that changed between two trackers is not served."""
    it.watch()
    it.has(b"old")
    it.near.get(KEY)
    it.has(b"new")
    it.tracker = it.new_tracker()
    it.watch()

    assert it.near.get(KEY) == b"new"


def everything_changes(it):
    """N1: after a flush no value from before is served."""
    it.watch()
    it.has(b"old")
    it.near.get(KEY)
    it.source.server.values.clear()
    it.tracker.everything(it.node)

    assert it.near.get(KEY) is None


def nobody_is_heard_for_max_stale(it):
    """N1: no value is served after the end of the lease."""
    it.watch()
    it.has(b"old")
    it.near.get(KEY)
    it.has(b"new")
    time.sleep(STALE)

    assert it.near.get(KEY) == b"new"
    assert it.near.age() >= STALE


def a_tracker_wakes_while_a_value_is_read(it):
    """N1: a reader that looked at the entry before the lease would find an old entry, and then the
    lease that the tracker extended after it had deleted that entry."""
    it.watch()
    it.has(b"old")
    it.near.get(KEY)
    it.has(b"new")
    time.sleep(STALE)

    def woken():
        it.tracker.changed(it.node, [KEY])
        it.prove()

    it.near.between = woken

    assert it.near.get(KEY) == b"new"


def another_host_writes_what_this_one_has_written(it):
    """N1: a write stores no value here, because the tracker may already have told of a later
    write."""
    it.watch()
    it.near.set(KEY, b"mine")
    it.has(b"theirs")  # the tracker told of it before the call returned

    assert it.near.get(KEY) == b"theirs"


def a_key_that_is_here_is_written(it):
    """N3: every read after the call returns the value or a newer one."""
    it.watch()
    it.has(b"old")
    it.near.get(KEY)
    it.near.set(KEY, b"mine")

    assert it.near.get(KEY) == b"mine"
    it.near.delete(KEY)
    assert it.near.get(KEY) is None


def another_one_tracks(it):
    """N1: a tracker that was replaced cannot extend the lease, because its term is over."""
    it.watch()
    old, it.tracker = it.tracker, it.new_tracker()
    it.tracker.began(it.node)
    with contextlib.suppress(Deposed):
        old.proved(it.node, time.monotonic_ns())

    assert it.near._watched(it.node) is None


def a_number_passes_to_another_node(it):
    """N1: a tracker is stopped before it begins a watch, and another node gets the number of the
    tracker's node. Otherwise the tracker would extend the lease of that node."""
    passed = []
    other = threading.Thread(target=lambda: passed.append(it.near._state.number(b"another")))
    with (
        mock.patch("shmrhash._near.state.NODES_MAX", 1),
        mock.patch("shmrhash._near.state._IDLE_NS", 0),
    ):
        other.start()
        other.join()
        assert passed == [it.node]
        with contextlib.suppress(Deposed):
            it.watch()

        assert it.near._watched(it.node) is None
        it.node = it.source.node_of(b"")  # the next attempt asks for the node's number again
    it.watch()
    assert it.near._watched(it.node) is not None


SCHEDULES = (
    an_answer_is_overtaken,
    another_fetch_begins_when_an_answer_is_overtaken,
    a_watch_is_made_anew,
    a_watch_is_made_anew_during_a_fetch,
    another_process_takes_over,
    everything_changes,
    nobody_is_heard_for_max_stale,
    a_tracker_wakes_while_a_value_is_read,
    another_host_writes_what_this_one_has_written,
    a_key_that_is_here_is_written,
    another_one_tracks,
    a_number_passes_to_another_node,
)


# ---- what a server says ----


class Conversation:
    """A watch of RedisSource with a server whose messages the test chooses. This object is the
    connection and the sink: it notes writes that were executed before a proof and told after it."""

    connection_pool = type("Pool", (), {"connection_kwargs": {"path": "nowhere"}})

    def __init__(self, kind=RedisSource):
        self.source = kind(self, [""])
        self.here, self.there = socket.socketpair()
        self.script = []  # what the server says, in portions of one read
        self.questions = 0
        self.now_ns = 0
        self.untold = {}
        self.discarded = False
        self.unproved = []  # writes before a proof's moment that were told after it
        self.proofs = 0

    def run(self, script):
        """Let the watch run by the script, a generator that continues each time the watch asks
        whether to stop."""
        clock = SimpleNamespace(clock_monotonic_ns=self.clock_ns)
        try:
            with mock.patch("shmrhash._near.redis._core", clock):
                self.source._watch_on(self, self, lambda: next(script, True), 0, BEAT, b"?")
        finally:
            self.here.close()
            self.there.close()

    def clock_ns(self):
        """Return the time of the watch's clock, which is later at each call."""
        self.now_ns += 1
        return self.now_ns

    def until_asked(self, number):
        for _ in range(10):
            if self.questions >= number:
                return
            self.now_ns += int(BEAT * 1e9 / 4)
            yield False
        raise AssertionError("the server is not asked")

    def until_heard(self):
        while self.script:  # several reads, one for each word
            yield False

    def says(self, *words):
        self.script.append(list(words))
        self.there.send(b".")

    def executes_write(self, key):
        self.untold[key] = self.clock_ns()

    # ---- the connection ----

    def fileno(self):
        return self.here.fileno()

    def settimeout(self, seconds):
        pass

    def pending(self):
        return False

    def send(self, data):
        self.questions += 1

    def receive(self):
        self.here.recv(1)
        return self.script.pop(0)

    # ---- the sink ----

    def changed(self, node, keys):
        for key in keys:
            self.untold.pop(key, None)

    def everything(self, node):
        self.discarded = True
        self.untold.clear()

    def proved(self, node, moment_ns):
        self.proofs += 1
        self.unproved += [key for key, moment in self.untold.items() if moment < moment_ns]


MASTER = [b"master", 0, []]


def an_answer_overtakes_a_change(it):
    """Promise (b) of a source: a proof covers what it says although an answer arrives before
    messages of its own cycle, also if the question was sent after a write of that cycle."""

    def script():
        yield from it.until_asked(1)
        it.says(MASTER)
        yield from it.until_heard()
        it.executes_write(KEY)
        yield from it.until_asked(2)
        it.says(MASTER)
        it.says(Push([b"invalidate", [KEY]]))
        yield from it.until_heard()

    it.run(script())

    assert it.proofs == 1
    assert it.unproved == []


def the_server_is_flushed(it):
    """Promise (a) of a source: the sink is told when everything may have changed."""

    def script():
        yield from it.until_asked(1)
        it.says(Push([b"invalidate", None]))
        yield from it.until_heard()

    it.run(script())

    assert it.discarded


CONVERSATIONS = (an_answer_overtakes_a_change, the_server_is_flushed)
