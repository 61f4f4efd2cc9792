"""Scenes in which a context dies and its recoverer may die, too; and scenes of supply."""

from support.protocol.scene import reads, reads_as, recovers, survives, writes
from support.protocol.scene_kit import (
    APART,
    FOUR,
    LINES,
    MEMORY,
    ODD,
    ONE,
    SAME,
    SUPPLY,
    THREE,
    TWO,
    dying,
    scene,
)

DEATHS = {
    "a writer dies in an update": dying(
        ("update", 1, 2),
        others=(reads(("lookup", 1)),),
        hashes=SAME,
        entries=ONE,
        sizes={"elements": 1},
    ),
    "a writer dies in an update while another updates the same key": dying(
        ("update", 1, 2),
        others=(writes(2, ("update", 1, 3)),),
        hashes=SAME,
        entries=ONE,
        sizes={"elements": 1},
    ),
    "a writer dies while it adds to one word": dying(
        ("add", 1, 2),
        others=(reads(("lookup", 1)),),
        hashes=SAME,
        entries=ONE,
        sizes={"elements": 1, "value_words": 1},
    ),
    "a writer dies in a delete or in the insert after it": dying(
        ("delete", 1), ("insert", 1, 5), hashes=SAME, entries=TWO, sizes={"elements": 2}
    ),
    "a writer dies in an insert under a reader": dying(
        ("insert", 2, 5), others=(reads(("lookup", 2)),), hashes=APART, sizes={"elements": 1}
    ),
    "a writer dies in a removal that moves the last entry": dying(
        ("delete", 1),
        others=(reads(("lookup", 3)),),
        hashes=APART,
        entries=THREE,
        sizes={"lines": 2, "elements": 3},
    ),
    "a writer that gives and takes lines dies": dying(
        ("delete", 3),
        ("delete", 2),
        ("insert", 2, 5),
        ("insert", 3, 6),
        hashes=APART,
        entries=THREE,
        sizes=LINES,
    ),
    "a writer dies while it unlinks a line, and the survivor inserts": scene(
        reads(("lookup", 2)),
        writes(1, ("delete", 3), ("delete", 2), mortal=True),
        survives(2, 1, ("insert", 2, 5)),
        hashes=SAME,
        entries=THREE,
        deaths=1,
        sizes={"lines": 1, "elements": 3},
    ),
    "a writer dies in a split": dying(
        ("grow",),
        others=(reads(("lookup", 2)),),
        hashes=APART,
        entries=TWO,
        sizes={"buckets": 2, "elements": 2},
    ),
    "a writer dies in a merge": dying(
        ("shrink",),
        others=(reads(("lookup", 2)),),
        hashes=APART,
        entries=TWO,
        count=2,
        sizes={"buckets": 2, "elements": 2},
    ),
    "a writer dies in a split of a chain with lines": dying(
        ("grow",), hashes=ODD, entries=FOUR, sizes={"buckets": 2, "lines": 6, "elements": 4}
    ),
    "a writer dies in a merge of chains with lines": dying(
        ("shrink",),
        hashes=APART | {5: 5},
        entries=FOUR | {5: 5},
        count=2,
        sizes={"buckets": 2, "lines": 6, "elements": 5},
    ),
}

SUPPLIES = {
    "elements and credits are fetched from block and header, and given back": scene(
        writes(1, ("insert", 1, 1), ("delete", 1), ("trim",)),
        writes(2, ("insert", 2, 2)),
        hashes=SAME,
        parked=(1, 1),
        credited=(1, 0),
        sizes=SUPPLY,
    ),
    "a writer that fetches an element and gives it back dies": dying(
        ("insert", 1, 1),
        ("delete", 1),
        ("trim",),
        hashes=SAME,
        parked=(0, 0),
        credited=(0, 0),
        sizes=SUPPLY,
    ),
    "a writer that fetches an element dies while another needs one": scene(
        writes(1, ("insert", 1, 1), mortal=True),
        writes(2, ("insert", 2, 2)),
        recovers(1),
        hashes=SAME,
        deaths=1,
        parked=(0,),
        credited=(0,),
        sizes=SUPPLY | {"depots": 1, "elements": 3},
    ),
    "a writer that gives runs of elements to their blocks dies": dying(
        ("trim",),
        ("trim",),
        hashes=SAME,
        parked=(3,),
        credited=(2,),
        sizes=SUPPLY | {"depots": 1, "elements": 4},
    ),
    "a writer that gives a run to its block dies while another needs an element": scene(
        writes(1, ("trim",), mortal=True),
        writes(2, ("insert", 2, 2)),
        recovers(1),
        hashes=SAME,
        deaths=1,
        parked=(2,),
        credited=(1,),
        sizes=SUPPLY | {"depots": 1, "elements": 3},
    ),
    "memory is given back under a reader": scene(
        reads_as(2, ("lookup", 2)),
        writes(1, ("delete", 2), ("trim",), ("release", 1)),
        hashes=APART,
        entries=TWO,
        parked=(0,),
        credited=(1,),
        sizes=MEMORY,
    ),
    "a writer releases memory that the system keeps": dying(
        ("delete", 2),
        ("trim",),
        ("release", 1),
        hashes=APART,
        entries=TWO,
        parked=(0,),
        credited=(1,),
        sizes=MEMORY | {"keeps_memory": True},
    ),
    "a writer dies while it releases memory": dying(
        ("delete", 2),
        ("trim",),
        ("release", 1),
        hashes=APART,
        entries=TWO,
        parked=(0,),
        credited=(1,),
        sizes=MEMORY,
    ),
}

DYING = DEATHS | SUPPLIES
