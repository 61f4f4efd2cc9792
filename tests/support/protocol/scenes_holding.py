"""Scenes of cells: a lock, a semaphore or an event, with deaths of holders and waiters."""

from support.protocol.scene import recovers, writes
from support.protocol.scene_kit import RECOVERERS, SAME, scene

LOCK = {"elements": 1, "value_words": 1, "waiters": 3, "cell": "lock"}
HELD = LOCK | {"waiters": 4, "held_at_first": True}
PERMITS = LOCK | {"cell": "permits"}
RWLOCK = LOCK | {"cell": "rwlock", "permits_at_first": 0}
EVENT = LOCK | {"cell": "event"}
HOLD = ("hold",)
BOTH = (("take permit",), ("give permit",))

HOLDING = {
    "three contexts take a lock in turn": scene(
        writes(1, HOLD), writes(2, HOLD), writes(3, HOLD), hashes=SAME, sizes=LOCK
    ),
    "the owner of a lock dies, and so does its recoverer": scene(
        writes(1, HOLD, mortal=True),
        writes(2, HOLD, HOLD),
        *RECOVERERS,
        hashes=SAME,
        deaths=2,
        sizes=LOCK,
    ),
    "a waiter for a lock gives up, and another one waits": scene(
        writes(1, HOLD, HOLD),
        writes(2, ("hold", False)),
        writes(3, HOLD),
        writes(4, ("ring alarm", 2)),
        hashes=SAME,
        sizes=LOCK | {"waiters": 4},
    ),
    "a context whose lock another one has taken dies": scene(
        writes(1, HOLD, HOLD, mortal=True),
        writes(2, HOLD, HOLD),
        recovers(1),
        hashes=SAME,
        deaths=1,
        sizes=LOCK,
    ),
    "a waiter for a lock dies, and two others wait": scene(
        writes(1, HOLD, mortal=True),
        writes(2, HOLD, HOLD),
        writes(3, HOLD),
        recovers(1),
        hashes=SAME,
        deaths=1,
        sizes=LOCK,
    ),
    "the owner of a lock dies in its release, and so does its recoverer": scene(
        writes(1, ("let lock go",), mortal=True),
        writes(2, HOLD),
        *RECOVERERS,
        hashes=SAME,
        deaths=2,
        sizes=HELD,
    ),
    "a lock is taken away from its owner, which is in its release": scene(
        writes(1, ("let lock go",)),
        writes(2, HOLD),
        writes(3, HOLD),
        writes(4, ("depose",)),
        hashes=SAME,
        sizes=HELD,
    ),
    "a lock is taken away from its owner, which dies in its release": scene(
        writes(1, ("let lock go",), mortal=True),
        writes(2, HOLD),
        writes(3, ("depose",)),
        recovers(1),
        hashes=SAME,
        deaths=1,
        sizes=HELD,
    ),
    "a context with the only permit dies": scene(
        writes(1, *BOTH, mortal=True),
        writes(2, *BOTH),
        *RECOVERERS,
        hashes=SAME,
        deaths=2,
        sizes=PERMITS,
    ),
    "two contexts wait for the only permit": scene(
        writes(1, *BOTH), writes(2, *BOTH), writes(3, *BOTH), hashes=SAME, sizes=PERMITS
    ),
    "two readers and a writer": scene(
        writes(1, ("read",)), writes(2, ("read",)), writes(3, ("write",)), hashes=SAME, sizes=RWLOCK
    ),
    "two writers and a reader": scene(
        writes(1, ("write",)),
        writes(2, ("write",)),
        writes(3, ("read",)),
        hashes=SAME,
        sizes=RWLOCK,
    ),
    "a writer dies, and others read and write": scene(
        writes(1, ("write",), mortal=True),
        writes(2, ("read",)),
        writes(3, ("write",)),
        recovers(1),
        hashes=SAME,
        deaths=1,
        sizes=RWLOCK,
    ),
    "a reader dies, and so does its recoverer": scene(
        writes(1, ("read",), mortal=True),
        writes(2, ("write",)),
        *RECOVERERS,
        hashes=SAME,
        deaths=2,
        sizes=RWLOCK,
    ),
    "an event is set while two contexts wait": scene(
        writes(1, ("wait for flag",)),
        writes(2, ("wait for flag",)),
        writes(3, ("set flag",)),
        hashes=SAME,
        sizes=EVENT,
    ),
    "an event is set and cleared while a context waits": scene(
        writes(1, ("wait for flag",)),
        writes(3, ("set flag", True)),
        hashes=SAME,
        sizes=EVENT,
    ),
}
