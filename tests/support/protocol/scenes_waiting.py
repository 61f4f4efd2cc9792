"""Scenes of waiting: processes that sleep until a key has a value, and writers that wake them."""

from support.protocol.scene import awaits_in_loop, waits, writes
from support.protocol.scene_kit import ONE, RECOVERERS, SAME, TWO, scene

EARLY = {"looks_early": True}
WORD = {"elements": 1, "value_words": 1, "waiters": 1}
PAIR = WORD | {"waiters": 2}
LOOP = WORD | {"listens": True}


def changing(context, *changes, mortal=False):
    return writes(context, *(("change", *one) for one in changes), mortal=mortal)


WAITING = {
    "a process waits for the value that a writer stores": scene(
        waits(0, 1, 2), changing(1, ("update", 1, 2)), hashes=SAME, entries=ONE, sizes=WORD
    ),
    "a process waits for a key to be inserted": scene(
        waits(0, 1, 2), changing(1, ("update", 1, 2)), hashes=SAME, sizes=WORD
    ),
    "a process waits for a key to be deleted": scene(
        waits(0, 1, 0), changing(1, ("delete", 1)), hashes=SAME, entries=ONE, sizes=WORD
    ),
    "a process waits for the last of two changes": scene(
        waits(0, 1, 3),
        changing(1, ("update", 1, 2), ("update", 1, 3)),
        hashes=SAME,
        entries=ONE,
        sizes=WORD,
    ),
    "two processes wait, and the first one stops waiting": scene(
        waits(0, 1, 2),
        waits(1, 1, 3),
        changing(1, ("update", 1, 2), ("update", 1, 3)),
        hashes=SAME,
        entries=ONE,
        sizes=PAIR,
    ),
    "two processes wait for two keys of one bell": scene(
        waits(0, 1, 2),
        waits(1, 2, 3),
        changing(1, ("update", 1, 2), ("update", 2, 3)),
        hashes=SAME,
        entries=TWO,
        sizes=PAIR | {"elements": 2},
    ),
    "a process waits, and the writer dies": scene(
        waits(0, 1, 2),
        changing(1, ("update", 1, 2), mortal=True),
        *RECOVERERS,
        hashes=SAME,
        entries=ONE,
        deaths=2,
        sizes=WORD,
    ),
    "one of two waiting processes dies": scene(
        waits(0, 1, 2, mortal=True),
        waits(1, 1, 2),
        changing(1, ("update", 1, 2)),
        hashes=SAME,
        entries=ONE,
        deaths=1,
        sizes=PAIR,
    ),
    "a process waits for the last value of two writers": scene(
        waits(0, 1, 3),
        changing(1, ("update", 1, 2)),
        changing(2, ("update", 1, 3)),
        hashes=SAME,
        entries=ONE,
        sizes=WORD,
    ),
    "a process waits for a value; the writer looks for waiters at its lock": scene(
        waits(0, 1, 2),
        changing(1, ("update", 1, 2)),
        hashes=SAME,
        entries=ONE,
        sizes=WORD | EARLY,
    ),
    "a process waits for a new key; the writer looks for waiters at its lock": scene(
        waits(0, 1, 2), changing(1, ("update", 1, 2)), hashes=SAME, sizes=WORD | EARLY
    ),
    "a process waits for a deletion; the writer looks for waiters at its lock": scene(
        waits(0, 1, 0), changing(1, ("delete", 1)), hashes=SAME, entries=ONE, sizes=WORD | EARLY
    ),
    "a process waits for the last value; two writers look for waiters at their locks": scene(
        waits(0, 1, 3),
        changing(1, ("update", 1, 2)),
        changing(2, ("update", 1, 3)),
        hashes=SAME,
        entries=ONE,
        sizes=WORD | EARLY,
    ),
    "a loop waits for the value that a writer stores": scene(
        *awaits_in_loop(0, 1, 2),
        changing(1, ("update", 1, 2)),
        hashes=SAME,
        entries=ONE,
        sizes=LOOP,
    ),
    "a loop waits for the last of two changes": scene(
        *awaits_in_loop(0, 1, 3),
        changing(1, ("update", 1, 2), ("update", 1, 3)),
        hashes=SAME,
        entries=ONE,
        sizes=LOOP,
    ),
    "a loop waits for the last value of two writers": scene(
        *awaits_in_loop(0, 1, 3),
        changing(1, ("update", 1, 2)),
        changing(2, ("update", 1, 3)),
        hashes=SAME,
        entries=ONE,
        sizes=LOOP,
    ),
    "a loop waits for a deletion; the writer looks for waiters at its lock": scene(
        *awaits_in_loop(0, 1, 0),
        changing(1, ("delete", 1)),
        hashes=SAME,
        entries=ONE,
        sizes=LOOP | EARLY,
    ),
    "a loop waits, and the writer dies": scene(
        *awaits_in_loop(0, 1, 2),
        changing(1, ("update", 1, 2), mortal=True),
        *RECOVERERS,
        hashes=SAME,
        entries=ONE,
        deaths=2,
        sizes=LOOP,
    ),
}

WAITING_LARGE = {
    "two processes wait for two keys of one bell; each has a writer": scene(
        waits(0, 1, 2),
        waits(1, 2, 3),
        changing(1, ("update", 1, 2)),
        changing(2, ("update", 2, 3)),
        hashes=SAME,
        entries=TWO,
        sizes=PAIR | {"elements": 2},
    ),
}
