"""Scenes of expiry: a value is a deadline, 9 is never; the clock begins at 0, and may tick."""

from support.protocol.scene import survives, writes
from support.protocol.scene_kit import APART, SAME, dying, scene

TIMED = {"timed": True, "elements": 1}
PAIR = TIMED | {"elements": 2}

SWEEPS = {
    "an entry is renewed under a sweeper": scene(
        writes(1, ("expire",)),
        writes(2, ("update", 1, 9)),
        hashes=SAME,
        entries={1: 1},
        clock=1,
        sizes=TIMED,
    ),
    "an entry is deleted and inserted again under a sweeper": scene(
        writes(1, ("expire",)),
        writes(2, ("delete", 1), ("insert", 1, 9)),
        hashes=SAME,
        entries={1: 1},
        clock=1,
        sizes=TIMED,
    ),
    "a removal moves an entry that a sweeper has seen": scene(
        writes(1, ("expire",)),
        writes(2, ("delete", 1)),
        hashes=APART,
        entries={1: 9, 2: 9, 3: 1},
        clock=1,
        sizes={"timed": True, "elements": 3, "lines": 2},
    ),
    "two contexts sweep at the same time": scene(
        writes(1, ("expire",)),
        writes(2, ("expire",)),
        hashes=SAME,
        entries={1: 1, 2: 1},
        clock=1,
        sizes=PAIR,
    ),
    "a split meets a sweeper": scene(
        writes(1, ("expire",)),
        writes(2, ("grow",)),
        hashes=APART,
        entries={1: 1, 2: 1},
        clock=1,
        sizes=PAIR | {"buckets": 2},
    ),
    "a merge meets a sweeper": scene(
        writes(1, ("expire",)),
        writes(2, ("shrink",)),
        hashes=APART,
        entries={1: 1, 2: 1},
        count=2,
        clock=1,
        sizes=PAIR | {"buckets": 2},
    ),
    "a sweeper dies while a writer renews the entry": dying(
        ("expire",),
        others=(writes(2, ("update", 1, 9)),),
        hashes=SAME,
        entries={1: 1},
        clock=1,
        sizes=TIMED,
    ),
    "a writer that renews an entry dies under a sweeper": dying(
        ("update", 1, 9),
        others=(writes(2, ("expire",)),),
        hashes=SAME,
        entries={1: 1},
        clock=1,
        sizes=TIMED,
    ),
}

ROOM = {
    "two insertions need the room of one expired entry": scene(
        writes(1, ("room", 2, 9)),
        writes(2, ("room", 3, 9)),
        hashes=SAME,
        entries={1: 1},
        clock=1,
        sizes=TIMED,
    ),
    "a deadline becomes earlier during a turn that removes nothing": scene(
        writes(1, ("update", 1, 1), ("tick", 1)),
        writes(2, ("room", 2, 9), ("room", 3, 9)),
        hashes=SAME,
        entries={1: 9},
        sizes=TIMED,
    ),
    "an entry with an early deadline is inserted during a turn that removes nothing": scene(
        writes(1, ("delete", 1), ("insert", 4, 1), ("tick", 1)),
        writes(2, ("room", 2, 9), ("room", 3, 9)),
        hashes=SAME,
        entries={1: 9},
        sizes=TIMED,
    ),
    "entries expire one after another": scene(
        writes(1, ("tick", 1), ("tick", 2)),
        writes(2, ("room", 3, 9), ("room", 4, 9)),
        hashes=SAME,
        entries={1: 1, 2: 2},
        sizes=PAIR,
    ),
    "a writer of an earlier deadline dies during a turn that removes nothing": scene(
        writes(1, ("update", 1, 1), mortal=True),
        survives(3, 1, ("tick", 1)),
        writes(2, ("room", 2, 9), ("room", 3, 9)),
        hashes=SAME,
        entries={1: 9},
        deaths=1,
        sizes=TIMED,
    ),
    "a deadline becomes earlier during a turn that finds an expired entry": scene(
        writes(1, ("update", 2, 5), ("room", 4, 9)),
        writes(2, ("room", 3, 9)),
        hashes=SAME,
        entries={1: 1, 2: 9},
        clock=1,
        sizes=PAIR,
    ),
    "two deadlines become earlier during a rest": scene(
        writes(1, ("room", 3, 9), ("update", 1, 5)),
        writes(2, ("update", 2, 1), ("tick", 1), ("room", 4, 9)),
        hashes=SAME,
        entries={1: 9, 2: 9},
        sizes=PAIR,
    ),
    "an insertion dies during its turn": dying(
        ("room", 2, 9), hashes=SAME, entries={1: 9}, sizes=TIMED
    ),
    "two turns that remove nothing, at the same time": scene(
        writes(1, ("room", 3, 9), ("tick", 1)),
        writes(2, ("room", 2, 9), ("room", 4, 9)),
        hashes=SAME,
        entries={1: 1},
        sizes=TIMED,
    ),
}

SWEEPING = SWEEPS | ROOM
