"""Scenes without deaths, except where only a death makes recovery undo an insertion."""

from support.protocol.scene import reads, survives, writes
from support.protocol.scene_kit import (
    APART,
    FEW_LINES,
    FOUR,
    LINES,
    ODD,
    ONE,
    SAME,
    TABLE,
    THREE,
    TWO,
    dying,
    reading,
    scene,
)

VALUES = {
    "a value of two words is replaced by two writers": scene(
        reads(("lookup", 1)),
        writes(1, ("update", 1, 2)),
        writes(2, ("update", 1, 3)),
        hashes=SAME,
        entries=ONE,
    ),
    "one writer replaces a word, and another adds to it": scene(
        reads(("lookup", 1)),
        writes(1, ("update", 1, 2)),
        writes(2, ("add", 1, 3)),
        hashes=SAME,
        entries=ONE,
        sizes={"value_words": 1},
    ),
    "two writers add to a field of two words": scene(
        writes(1, ("add", 1, 1)),
        writes(2, ("add", 1, 2)),
        hashes=SAME,
        entries=ONE,
    ),
    "an update meets a delete": scene(
        writes(1, ("replace", 1, 2)),
        writes(2, ("delete", 1)),
        hashes=SAME,
        entries=ONE,
        sizes={"elements": 1},
    ),
}

SECTIONS = {
    "a section is committed under a reader": reading(
        ("lookup", 1), ("section", 1, 2), ("section", 1, 3), hashes=SAME, entries=ONE
    ),
    "a key is deleted and inserted during its section": scene(
        writes(1, ("section", 1, 2)),
        writes(2, ("delete", 1), ("insert", 1, 5)),
        hashes=SAME,
        entries=ONE,
        sizes={"elements": 1},
    ),
    "two sections of one key, of which one removes it": scene(
        writes(1, ("remove", 1)),
        writes(2, ("section", 1, 2), ("abandon", 1)),
        hashes=SAME,
        entries=ONE,
        sizes={"elements": 1},
    ),
    "a writer dies in a section while another deletes the key": dying(
        ("section", 1, 2),
        others=(writes(2, ("delete", 1)),),
        hashes=SAME,
        entries=ONE,
        sizes={"elements": 1},
    ),
}

LIVES = {
    "a key is deleted, and inserted into the same element": reading(
        ("lookup", 1), ("delete", 1), ("insert", 1, 5), hashes=SAME, entries=TWO
    ),
    "an element is used again for another key of the bucket": reading(
        ("lookup", 1), ("delete", 1), ("insert", 2, 5), hashes=SAME, entries=ONE
    ),
    "an element is used again for a key of another bucket": reading(
        ("lookup", 1),
        ("delete", 1),
        ("insert", 2, 5),
        hashes=APART,
        entries=ONE,
        count=2,
        sizes={"buckets": 2, "elements": 1},
    ),
    "two writers insert the same key": scene(
        writes(1, ("insert", 1, 5)), writes(2, ("insert", 1, 6)), hashes=SAME
    ),
    "one writer inserts the key that another deletes": scene(
        writes(1, ("delete", 1)),
        writes(2, ("update", 1, 6)),
        hashes=SAME,
        entries=ONE,
        sizes={"elements": 2},
    ),
    "an insert is undone after a death, and another key gets its element": scene(
        reads(("contains", 1)),
        writes(1, ("delete", 2), ("insert", 1, 5), mortal=True),
        survives(2, 1, ("insert", 3, 5)),
        hashes=SAME,
        entries={2: 2},
        deaths=1,
        sizes={"elements": 1},
    ),
    "an insert meets one of the same key that is undone after a death": scene(
        writes(3, ("insert", 1, 7)),
        writes(1, ("delete", 2), ("insert", 1, 5), mortal=True),
        survives(2, 1, ("insert", 3, 5)),
        hashes=SAME,
        entries={2: 2},
        deaths=1,
        sizes={"elements": 2},
    ),
}

CHAINS = {
    "the last entry of a chain fills a gap": reading(
        ("lookup", 3), ("delete", 1), hashes=APART, entries=THREE, sizes=LINES
    ),
    "a line loses one of its two entries": reading(
        ("lookup", 2), ("delete", 3), hashes=APART, entries=THREE, sizes=LINES
    ),
    "a line is unlinked under a reader": reading(
        ("lookup", 2),
        ("delete", 3),
        ("delete", 2),
        ("insert", 2, 5),
        hashes=SAME,
        entries=THREE,
        sizes=LINES,
    ),
    "a line is unlinked and linked again under a reader": reading(
        ("lookup", 3),
        ("delete", 3),
        ("delete", 2),
        ("insert", 2, 5),
        ("insert", 3, 6),
        hashes=APART,
        entries=THREE,
        sizes=LINES,
    ),
    "a full bucket gets a line": reading(
        ("lookup", 2), ("insert", 3, 5), hashes=APART, entries=TWO, sizes=LINES
    ),
}

RESIZES = {
    "a split while its keys are written": scene(
        writes(1, ("grow",)),
        writes(2, ("update", 2, 5)),
        hashes=APART,
        entries=TWO,
        sizes={"buckets": 2, "elements": 2},
    ),
    "a merge while its keys are written": scene(
        writes(1, ("shrink",)),
        writes(2, ("delete", 2)),
        hashes=APART,
        entries=THREE,
        count=2,
        sizes=TABLE,
    ),
    "a split moves all entries of a chain": reading(
        ("lookup", 3),
        ("grow",),
        hashes=ODD,
        entries=THREE,
        sizes={"buckets": 2, "lines": 3, "elements": 3},
    ),
    "a merge and a split under a reader": reading(
        ("lookup", 2), ("shrink",), ("grow",), hashes=APART, entries=TWO, count=2, sizes=TABLE
    ),
    "a bucket is merged and split while a writer waits for its lock": scene(
        writes(1, ("shrink",), ("grow",)),
        writes(2, ("update", 2, 5)),
        hashes=APART,
        count=2,
        sizes={"buckets": 2, "elements": 1},
    ),
    "three buckets become four, and three again": reading(
        ("lookup", 4),
        ("grow",),
        ("shrink",),
        hashes=APART,
        entries=FOUR,
        count=3,
        sizes={"buckets": 4, "lines": 2, "elements": 4},
    ),
}

WALKS = {
    "a walk meets a delete and an insert": reading(
        ("walk",), ("delete", 1), ("insert", 2, 5), hashes=APART, entries=ONE, sizes={"elements": 1}
    ),
    "a walk meets a removal that moves the last entry": reading(
        ("walk",), ("delete", 1), hashes=APART, entries=THREE, sizes=LINES
    ),
    "a walk meets a line that is being linked": reading(
        ("walk",), ("insert", 3, 5), hashes=APART, entries=TWO, sizes=LINES
    ),
    "a walk meets a merge and a split": reading(
        ("walk",), ("shrink",), ("grow",), hashes=APART, entries=THREE, count=2, sizes=TABLE
    ),
}

SHORTAGES = {
    "a split finds no free line": reading(
        ("lookup", 3), ("grow",), hashes=ODD, entries=THREE, sizes=FEW_LINES
    ),
    "a merge finds no free line": reading(
        ("lookup", 1),
        ("shrink",),
        hashes=APART,
        entries={1: 1, 3: 3, 2: 2, 4: 4},
        count=2,
        sizes={"buckets": 2, "lines": 1, "elements": 4},
    ),
    "a writer dies in a merge that finds no free line": dying(
        ("shrink",),
        hashes=APART,
        entries={1: 1, 3: 3, 2: 2, 4: 4},
        count=2,
        sizes={"buckets": 2, "lines": 1, "elements": 4},
    ),
    "an insert finds no free line": reading(
        ("lookup", 3), ("insert", 3, 5), hashes=APART, entries=TWO, sizes={"elements": 3}
    ),
}

LIVING = VALUES | SECTIONS | LIVES | CHAINS | RESIZES | WALKS | SHORTAGES
