"""Scenes of sections on several keys that end in one step. Values are below 8."""

from support.protocol.scene import reads, recovers, writes, writes_several
from support.protocol.scene_kit import APART, SAME, scene

PAIR = {"elements": 2, "value_words": 1, "journal": True}
BOTH = ("several", (1, 3), (2, 4))
STORE_AND_DELETE = ("several", (1, 3), (2, 0))
DELETE_TWO = ("several", (1, 0), (2, 0))
ACCOUNTS = {1: 1, 2: 2}
OF_PAIR = (recovers(1, mortal=True, contexts=2), recovers(1, contexts=2))


def dying_in(operation, *others, **facts):
    """A writer that may die at any step of its journal, and its recoverers."""
    facts = {"hashes": SAME, "entries": ACCOUNTS, "sizes": PAIR, "deaths": 2} | facts
    return scene(writes_several(1, operation, mortal=True), *OF_PAIR, *others, **facts)


def living_with(*programs, **facts):
    facts = {"hashes": SAME, "entries": ACCOUNTS, "sizes": PAIR} | facts
    return scene(writes_several(1, BOTH), *programs, **facts)


JOURNALING = {
    "two keys change in one step under a reader": living_with(reads(("lookup", 1), ("lookup", 2))),
    "two keys change in one step, and a process looks at both": living_with(
        writes_several(3, ("seen together", 1, 2))
    ),
    "two keys change in one step while one is deleted": living_with(writes(3, ("delete", 2))),
    "two keys change in one step while the first is deleted and inserted": living_with(
        writes(3, ("delete", 1), ("insert", 1, 5))
    ),
    "a writer dies while two keys change in one step": dying_in(BOTH),
    "a writer dies while it changes one key and deletes another": dying_in(STORE_AND_DELETE),
    "a writer dies while it deletes two keys in one step": dying_in(DELETE_TWO),
    "a writer dies while two values of two words change in one step": dying_in(
        BOTH, reads(("lookup", 2)), sizes=PAIR | {"value_words": 2}
    ),
    "a writer dies while two keys change, and a process looks at both": dying_in(
        BOTH, writes_several(3, ("seen together", 1, 2))
    ),
    "a writer dies while two keys change, and one is deleted": dying_in(
        BOTH, writes(3, ("delete", 1))
    ),
    "a writer dies while it changes one key and deletes another, and a split moves one": dying_in(
        STORE_AND_DELETE, writes(3, ("grow",)), hashes=APART, deaths=1, sizes=PAIR | {"buckets": 2}
    ),
    "a writer dies while three keys change in one step": scene(
        writes_several(1, ("several", (1, 4), (2, 5), (3, 0)), contexts=3, mortal=True),
        recovers(1, mortal=True, contexts=3),
        recovers(1, contexts=3),
        hashes=SAME,
        entries={1: 1, 2: 2, 3: 3},
        deaths=2,
        sizes=PAIR | {"elements": 3, "slots": 3},
    ),
    "a writer dies while two keys change, and another changes both": dying_in(
        BOTH, writes_several(3, ("several", (1, 5), (2, 6))), deaths=1
    ),
}
