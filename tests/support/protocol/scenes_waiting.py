"""Scenes of waiting: processes that sleep until a key has a value, and writers that wake them."""

from support.protocol.scene import waits, writes
from support.protocol.scene_kit import ONE, RECOVERERS, SAME, scene

EARLY = {"looks_early": True}
WORD = {"elements": 1, "value_words": 1, "waiters": 1}
PAIR = WORD | {"waiters": 2}


def changing(context, *changes, mortal=False):
    return writes(context, *(("change", *one) for one in changes), mortal=mortal)


WAITING = {
    "one waits for what one stores": scene(
        waits(0, 1, 2), changing(1, ("update", 1, 2)), hashes=SAME, entries=ONE, sizes=WORD
    ),
    "one waits for a key that is inserted": scene(
        waits(0, 1, 2), changing(1, ("update", 1, 2)), hashes=SAME, sizes=WORD
    ),
    "one waits for a key to go": scene(
        waits(0, 1, 0), changing(1, ("delete", 1)), hashes=SAME, entries=ONE, sizes=WORD
    ),
    "one waits for the last of two changes": scene(
        waits(0, 1, 3),
        changing(1, ("update", 1, 2), ("update", 1, 3)),
        hashes=SAME,
        entries=ONE,
        sizes=WORD,
    ),
    "two wait, and the first leaves": scene(
        waits(0, 1, 2),
        waits(1, 1, 3),
        changing(1, ("update", 1, 2), ("update", 1, 3)),
        hashes=SAME,
        entries=ONE,
        sizes=PAIR,
    ),
    "one waits, and the writer dies": scene(
        waits(0, 1, 2),
        changing(1, ("update", 1, 2), mortal=True),
        *RECOVERERS,
        hashes=SAME,
        entries=ONE,
        deaths=2,
        sizes=WORD,
    ),
    "a waiter dies beside another": scene(
        waits(0, 1, 2, mortal=True),
        waits(1, 1, 2),
        changing(1, ("update", 1, 2)),
        hashes=SAME,
        entries=ONE,
        deaths=1,
        sizes=PAIR,
    ),
    "two write, and one waits for what comes last": scene(
        waits(0, 1, 3),
        changing(1, ("update", 1, 2)),
        changing(2, ("update", 1, 3)),
        hashes=SAME,
        entries=ONE,
        sizes=WORD,
    ),
    "one waits for what a slow store stores": scene(
        waits(0, 1, 2),
        changing(1, ("update", 1, 2)),
        hashes=SAME,
        entries=ONE,
        sizes=WORD | EARLY,
    ),
    "one waits for what a slow store inserts": scene(
        waits(0, 1, 2), changing(1, ("update", 1, 2)), hashes=SAME, sizes=WORD | EARLY
    ),
    "one waits for what a slow store deletes": scene(
        waits(0, 1, 0), changing(1, ("delete", 1)), hashes=SAME, entries=ONE, sizes=WORD | EARLY
    ),
    "two store slowly, and one waits for what comes last": scene(
        waits(0, 1, 3),
        changing(1, ("update", 1, 2)),
        changing(2, ("update", 1, 3)),
        hashes=SAME,
        entries=ONE,
        sizes=WORD | EARLY,
    ),
}
