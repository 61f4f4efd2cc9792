"""Scenes of processes: recoverers and heirs of process slots, and children born with views."""

from support.protocol.scene import comes_as, is_process, reads
from support.protocol.scene_kit import ONE, SAME, scene

WORD = {"elements": 1, "value_words": 1}
VIEWS = WORD | {"processes": 4, "pins": 2}


def adding(number, **facts):
    """A process that adds to a word, and may die."""
    return is_process(number, ("add", 1, 2), context=1, mortal=True, **facts)


def parent(*, fails):
    """A process that has a view, forks process 2, which program 1 plays, and ends its view."""
    return is_process(1, ("fork", 2, 1, fails), ("look",), ("let go", 0), context=1, mortal=True)


def forking(*, fails=False, deaths=2):
    """A parent, a child, a process that replaces the object, and one that recovers the dead."""
    return scene(
        parent(fails=fails),
        comes_as(2, ("grow up", 1), ("let go", 1), context=2, mortal=True),
        is_process(3, ("take away",), context=3),
        is_process(4, ("rescue", 1, 2)),
        hashes=SAME,
        deaths=deaths,
        sizes=VIEWS,
    )


RECOVERERS = {
    "a recoverer dies, and another replaces it": scene(
        adding(1),
        is_process(2, ("rescue", 1), mortal=True),
        is_process(3, ("rescue", 1, 2)),
        hashes=SAME,
        entries=ONE,
        deaths=2,
        sizes=WORD | {"processes": 3},
    ),
    "recoverers and a reader: the reader waits for none of them": scene(
        reads(("lookup", 1)),
        adding(1),
        is_process(2, ("rescue", 1)),
        is_process(3, ("rescue", 1)),
        hashes=SAME,
        entries=ONE,
        deaths=1,
        sizes=WORD | {"processes": 3},
    ),
    "the slot of a dead recoverer is used again": scene(
        adding(1),
        is_process(3, ("rescue", 1)),
        is_process(4, ("rescue", 2)),
        comes_as(2, ("join",), ("rescue", 1)),
        hashes=SAME,
        entries=ONE,
        deaths=1,
        fallen={2: 1},
        sizes=WORD | {"processes": 4},
    ),
    "a recoverer's name is cleared while its slot is used again": scene(
        is_process(4, ("rescue", 2)),
        is_process(5, ("rescue", 1)),
        comes_as(2, ("join",), ("rescue", 1)),
        hashes=SAME,
        fallen={1: 0, 2: 0, 3: 1},
        sizes=WORD | {"processes": 5},
    ),
    "an heir takes over a slot that another process recovers": scene(
        adding(1),
        is_process(2, ("rescue", 1)),
        comes_as(1, ("inherit",), mortal=True),
        hashes=SAME,
        entries=ONE,
        deaths=2,
        sizes=WORD | {"processes": 2},
    ),
}

FORKS = {
    "a parent that has a view forks a child": forking(),
    "a fork fails": forking(fails=True, deaths=1),
}

CLAIMING = RECOVERERS | FORKS

CLAIMING_LARGE = {
    "three recoverers die one after another": scene(
        adding(1),
        is_process(2, ("rescue", 1), mortal=True),
        is_process(3, ("rescue", 1, 2), mortal=True),
        is_process(4, ("rescue", 1, 2, 3)),
        hashes=SAME,
        entries=ONE,
        deaths=3,
        sizes=WORD | {"processes": 4},
    ),
}
