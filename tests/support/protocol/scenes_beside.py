"""Scenes in which contexts split and merge beside another that does so, or stopped or died in a
split or merge; and scenes of gaps: buckets below the number that are not there."""

from support.protocol.scene import reads, writes
from support.protocol.scene_kit import APART, FOUR, TABLE, THREE, TWO, dying, reading, scene

ROOM = {"buckets": 4, "elements": 4, "lines": 1}
EVEN = {1: 0, 2: 2, 3: 4, 4: 6}  # of two buckets all in bucket 0; bits 1 and 2 part them

BESIDE = {
    "two contexts split, and the second passes the first one's bucket": scene(
        writes(1, ("grow",)),
        writes(2, ("grow",), ("grow",)),
        reads(("lookup", 3)),
        hashes=APART,
        entries=FOUR,
        count=2,
        sizes=ROOM,
    ),
    "two contexts split, and the second leaves it to the next insert": scene(
        writes(1, ("grow", True)),
        writes(2, ("grow", True)),
        reads(("lookup", 3)),
        hashes=APART,
        entries=FOUR,
        count=2,
        sizes=ROOM,
    ),
    "a split is passed, and the number of buckets falls again": scene(
        writes(1, ("grow",)),
        writes(2, ("grow",), ("shrink",)),
        reads(("lookup", 3)),
        hashes=APART,
        entries={1: 1, 3: 3},
        count=2,
        sizes=ROOM | {"elements": 2},
    ),
    "the number of buckets falls below a split": scene(
        writes(1, ("grow",)),
        writes(2, ("shrink",)),
        reads(("lookup", 4)),
        hashes=APART,
        entries=FOUR,
        count=3,
        sizes=ROOM,
    ),
    "two contexts merge at the same time": scene(
        writes(1, ("shrink",)),
        writes(2, ("shrink",), ("shrink",)),
        reads(("lookup", 3)),
        hashes=APART,
        entries=FOUR,
        count=4,
        sizes=ROOM,
    ),
    "buckets beyond a merge are split": scene(
        writes(1, ("shrink",)),
        writes(2, ("grow",), ("grow",)),
        reads(("lookup", 2)),
        hashes=APART,
        entries=TWO,
        count=2,
        sizes=ROOM | {"elements": 2},
    ),
}

GAPS = {
    "a key whose bucket is a gap is read and written": scene(
        writes(1, ("catch up", 0)),
        writes(2, ("update", 3, 5)),
        reads(("lookup", 3)),
        hashes=APART,
        entries=THREE,
        count=3,
        gaps=(2,),
        sizes=ROOM,
    ),
    "two contexts make up for a gap": scene(
        writes(1, ("catch up", 0)),
        writes(2, ("catch up", 0), ("catch up", 2)),
        hashes=EVEN,
        entries=FOUR,
        count=7,
        gaps=(2, 4, 6),
        sizes={"buckets": 7, "elements": 4, "lines": 2},
    ),
    "a gap is made up for while the number of buckets falls": scene(
        writes(1, ("catch up", 0)),
        writes(2, ("shrink",)),
        reads(("lookup", 3)),
        hashes=APART,
        entries=THREE,
        count=3,
        gaps=(2,),
        sizes=ROOM,
    ),
    "a bucket whose parent is missing is passed": reading(
        ("lookup", 4),
        ("grow",),
        ("catch up", 0),
        ("grow",),
        ("catch up", 0),
        hashes=EVEN,
        entries=FOUR,
        count=6,
        gaps=(2, 4),
        sizes={"buckets": 8, "elements": 4, "lines": 3},
    ),
    "a walk meets a gap that is made up for": reading(
        ("walk",),
        ("catch up", 0),
        ("shrink",),
        hashes=APART,
        entries=THREE,
        count=3,
        gaps=(2,),
        sizes=ROOM,
    ),
}

DEAD_BESIDE = {
    "a writer dies in a split, and others split beyond it": dying(
        ("grow",),
        others=(writes(2, ("grow",), ("grow",)),),
        hashes=APART,
        entries=TWO,
        count=2,
        sizes=ROOM | {"elements": 2},
    ),
    "a writer dies in a merge, and others split beyond it": dying(
        ("shrink",),
        others=(writes(2, ("grow",)),),
        hashes=APART,
        entries=TWO,
        count=2,
        sizes=ROOM | {"elements": 2},
    ),
    "a writer that makes up for a gap dies while the number of buckets falls": dying(
        ("catch up", 0),
        others=(writes(2, ("shrink",)),),
        hashes=APART,
        entries={1: 1, 3: 3},
        count=3,
        gaps=(2,),
        sizes=ROOM | {"elements": 2},
    ),
    "a writer that lowers the number of buckets below a gap dies": dying(
        ("shrink",),
        ("shrink",),
        others=(writes(2, ("catch up", 0)),),
        hashes=APART,
        entries={1: 1, 3: 3},
        count=3,
        gaps=(2,),
        sizes=ROOM | {"elements": 2},
    ),
}

CLEARINGS = {
    "a map is cleared while a bucket is split": scene(
        writes(1, ("clear",)),
        writes(2, ("grow",)),
        hashes=APART,
        entries={2: 2},
        sizes={"buckets": 2, "elements": 1},
    ),
    "a map is cleared while a bucket is split and merged": scene(
        writes(1, ("clear",)),
        writes(2, ("grow",), ("shrink",)),
        hashes=APART,
        entries=TWO,
        sizes={"buckets": 2, "elements": 2},
    ),
    "a map is cleared while two contexts split": scene(
        writes(1, ("clear",)),
        writes(2, ("grow",)),
        writes(3, ("grow",)),
        hashes=APART,
        entries={4: 4},
        count=2,
        sizes=ROOM | {"elements": 1},
    ),
    "a writer dies in a split while another clears the map": dying(
        ("grow",),
        others=(writes(2, ("clear",)),),
        hashes=APART,
        entries={2: 2},
        sizes={"buckets": 2, "elements": 1},
    ),
}

LARGE_BESIDE = {
    "a split is passed, and the number of buckets falls below it": scene(
        writes(1, ("grow",)),
        writes(2, ("grow",), ("shrink",), ("shrink",)),
        reads(("lookup", 3)),
        hashes=APART,
        entries=FOUR,
        count=2,
        sizes=ROOM,
    ),
    "a walk meets two contexts that split": scene(
        reads(("walk",)),
        writes(1, ("grow",)),
        writes(2, ("grow",), ("grow",)),
        hashes=APART,
        entries=FOUR,
        count=2,
        sizes=ROOM,
    ),
    "a writer dies in a split under a reader, and others split beyond it": dying(
        ("grow",),
        others=(reads(("lookup", 3)), writes(2, ("grow",), ("grow",))),
        hashes=APART,
        entries={1: 1, 3: 3},
        count=2,
        sizes=ROOM | {"elements": 2},
    ),
    "a writer dies in a merge under a reader, and others split beyond it": dying(
        ("shrink",),
        others=(reads(("lookup", 2)), writes(2, ("grow",))),
        hashes=APART,
        entries=TWO,
        count=2,
        sizes=ROOM | {"elements": 2},
    ),
    "a split is passed, and gaps are made up for, while keys are written": scene(
        writes(1, ("grow",)),
        writes(2, ("grow",), ("grow",), ("catch up", 0)),
        writes(3, ("update", 3, 5)),
        hashes=EVEN,
        entries=THREE,
        count=2,
        sizes=TABLE | {"buckets": 4},
    ),
    "a writer dies in a split or merge while another clears the map": dying(
        ("grow",),
        ("shrink",),
        others=(writes(2, ("clear",)),),
        hashes=APART,
        entries=TWO,
        sizes={"buckets": 2, "elements": 2},
    ),
}

STANDING_BESIDE = BESIDE | GAPS | CLEARINGS | DEAD_BESIDE
