"""Scenes of keeping.py, what must be so at the end, and the mutants."""

from support.protocol.computing_scenes import ASLEEP, idle
from support.protocol.keeping import (
    STALE,
    Memory,
    get_often,
    insert,
    recover,
    release,
    remove,
)
from support.protocol.meeting_scenes import GONE, Scene
from support.protocol.oracle import Violation
from support.protocol.outdating import then

READER = 2


def kept(*programs, mortal=(), deaths=0):
    """A value is stored, and a handle gets it often, while these programs run, from number 3."""
    programs = ((idle,), (insert, 1), (then, 1, get_often, 2), *programs)
    ending = [me for me, (function, *_) in enumerate(programs) if function not in (idle, recover)]

    def law(m, memory, places):
        for me in ending:
            if places[me] != GONE and not memory[m.ended[me]]:
                raise Violation(ASLEEP)

    return Scene(programs, law, frozenset(mortal), deaths, cell=Memory)


SCENES = {
    "another value is stored in the same memory": kept((then, 1, remove), (then, 1, insert, 2)),
    "memory goes back between two values": kept(
        (then, 1, remove), (then, 3, release, READER), (then, 3, insert, 2)
    ),
    "memory goes back twice": kept(
        (then, 1, remove),
        (then, 3, release, READER),
        (then, 4, insert, 2),
        (then, 5, remove),
        (then, 6, release, READER),
        (then, 7, insert, 3),
    ),
    "the process that gives memory back dies": kept(
        (then, 1, remove),
        (then, 3, release, READER),
        (then, 3, insert, 2),
        (recover, 4),
        mortal=[4],
        deaths=1,
    ),
}

# Each step that can be left out, the scene that shows the mistake, and what then goes wrong.
MUTANTS = {
    "each store of a value raises the version": (
        "another value is stored in the same memory",
        STALE,
    ),
    "a hit looks at the count": ("memory goes back between two values", STALE),
    "a value is kept with the count from before it was found": (
        "memory goes back between two values",
        STALE,
    ),
    "a releaser counts before the memory can be used again": (
        "memory goes back between two values",
        STALE,
    ),
    "a releaser counts before the block's word says that the memory goes": (
        "the process that gives memory back dies",
        STALE,
    ),
}
