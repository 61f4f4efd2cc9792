"""Scenes of ringing.py, what must be so at the end, and the mutants. meeting_scenes.py explores."""

from functools import partial

from support.protocol.meeting_scenes import GONE, Scene
from support.protocol.oracle import Violation
from support.protocol.ringing import RingCell, leaver, recover, watcher, writer


def copies(cell, memory, places):
    """The watcher has been told of every change. After a death it may sleep although it has not
    been told: in the core it looks by itself at the end of its slice."""
    if memory[cell.torn]:
        raise Violation("a torn key was read")
    for lock in cell.lock:
        if memory[lock] and GONE not in places:
            raise Violation("a lock is left")
    behind = memory[cell.place] != memory[cell.next] or memory[cell.told] != memory[cell.losses]
    if GONE in places and behind:
        return
    for value, view in zip(cell.value, cell.view, strict=True):
        if memory[value] != memory[view]:
            raise Violation("a change is hidden")


def scene(*programs, keys=2, entries=1, mortal=(), deaths=0):
    return Scene(
        programs,
        copies,
        frozenset(mortal),
        deaths,
        cell=partial(RingCell, keys=keys, entries=entries),
    )


WATCH = (watcher,)
SCENES = {
    "a writer, and a watcher that begins": scene(WATCH, (writer, 0, 0), keys=1),
    "a watcher is overrun": scene(WATCH, (writer, 0, 1)),
    "two writers lap each other": scene(WATCH, (writer, 0), (writer, 1, 1)),
    "two writers, and two entries": scene(WATCH, (writer, 0), (writer, 1), entries=2),
    "a writer dies": scene(
        WATCH, (writer, 0), (recover, 1), keys=1, entries=2, mortal=[1], deaths=1
    ),
    "a writer dies, and another laps it": scene(
        WATCH, (writer, 0), (recover, 1), (writer, 1), mortal=[1], deaths=1
    ),
    "a writer and its recoverer die": scene(
        WATCH,
        (writer, 0),
        (recover, 1),
        (recover, 1, 2),
        keys=1,
        mortal=[1, 2],
        deaths=2,
    ),
    "a watcher ends while another begins": scene(WATCH, (writer, 0), (leaver, (0,)), keys=1),
    "a watcher dies while it ends": scene(
        WATCH, (writer, 0), (leaver, (0,)), (recover, 2), keys=1, mortal=[2], deaths=1
    ),
}
LONG = {  # seconds each
    "two writers lap each other",
    "a writer dies, and another laps it",
    "two writers, and two entries",
    "a watcher dies while it ends",
}

# Each step that can be left out, the scene that shows the mistake, and what then goes wrong.
HIDDEN = "a change is hidden"
TORN = "a torn key was read"
BEGINS, LAPS, DIES = (
    "a writer, and a watcher that begins",
    "two writers lap each other",
    "a writer dies",
)
GOES = "a watcher ends while another begins"
MUTANTS = {
    "a writer loads the word waited inside its operation": (BEGINS, HIDDEN),
    "a writer notes its key after its commit": (BEGINS, HIDDEN),
    "a writer rings the bell after the note": (BEGINS, HIDDEN),
    "a writer does not touch an entry that another holds": (LAPS, TORN),
    "an entry is held before its key is stored": (LAPS, TORN),
    "a watcher waits for the operations under way": (BEGINS, HIDDEN),
    "a watcher reads the bell before it looks": (BEGINS, HIDDEN),
    "a watcher begins again at a loss": (GOES, HIDDEN),
    "the losses are read before the bit is set": ("a watcher dies while it ends", HIDDEN),
    "a watcher sees that the bit is set": ("a watcher dies while it ends", HIDDEN),
    "a watcher takes its place in the ring before it reads the map": (
        "a watcher is overrun",
        HIDDEN,
    ),
    "a watcher compares the number in the stamp": (LAPS, TORN),
    "a watcher loads the stamp again": (LAPS, TORN),
    "an entry that is not whole is a loss": (LAPS, HIDDEN),
    "a process that clears the bit looks again": (GOES, HIDDEN),
    "a process that sets the bit again counts a loss": (GOES, HIDDEN),
    "a loss is counted before the context is free": ("a writer and its recoverer die", HIDDEN),
    "recovery counts a loss": (DIES, HIDDEN),
}
MUTANTS_LONG = {  # seconds each: the mistake shows only after a death, in the largest scene
    "the losses are read before the bit is set",
    "a watcher sees that the bit is set",
    "a loss is counted before the context is free",
}
