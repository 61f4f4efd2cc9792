"""Scenes of computing.py, what must be so at the end, and the mutants."""

from support.protocol import meeting_scenes
from support.protocol.computing import (
    AHEAD,
    LIVE,
    STALE,
    Entries,
    ask,
    change_source,
    evict,
    recover,
    state_of,
)
from support.protocol.meeting_scenes import GONE, Scene
from support.protocol.oracle import Violation

ASLEEP = "a waiter sleeps although nobody computes"
UNKNOWN = "a value was found that nobody computed"
TWICE = "was computed too often"


class Explorer(meeting_scenes.Explorer):
    """Program 0 does nothing: a header without an owner has a 0 in its place."""

    def holds(self, condition, subject, memory, places):
        if condition == "changed":
            address, seen = subject
            return memory[address] != seen
        return super().holds(condition, subject, memory, places)


def idle(m, me):
    return
    yield


def computed_once(m, memory, places, more, ending):
    """No living program waits, the key has the latest result or none, and no program computed a
    result without need. ending: the programs that have to end."""
    for me in ending:
        if places[me] != GONE and not memory[m.ended[me]]:
            raise Violation(ASLEEP)
    for key in range(m.keys):
        if state_of(memory[m.header[key]]) not in (0, LIVE) and GONE not in places:
            raise Violation("a claim is left")
        stored = state_of(memory[m.header[key]]) == LIVE and memory[m.deadline[key]] == AHEAD
        if stored and memory[m.value[key]] != memory[m.source[key]] + 1:
            raise Violation(STALE)
        reasons = 1 + places.count(GONE) + sum(memory[word] for word in m.reasons)
        if sum(memory[word] for word in m.computed[key]) > reasons + more:
            raise Violation(f"a value {TWICE}")


def claims(*programs, mortal=(), deaths=0, more=0):
    """more: how many computations without a claim are right."""
    programs = ((idle,), *programs)
    ending = [me for me, program in enumerate(programs) if program[0] not in (idle, recover)]

    def law(m, memory, places):
        computed_once(m, memory, places, more, ending)

    return Scene(programs, law, frozenset(mortal), deaths, cell=Entries)


SCENES = {
    "two processes ask for a key": claims((ask, 0), (ask, 0)),
    "three processes ask for a key": claims((ask, 0), (ask, 0), (ask, 0)),
    "two processes ask, and an entry is evicted": claims((ask, 0), (ask, 0), (evict, 0)),
    "two processes ask, and the key is deleted": claims((ask, 0), (ask, 0), (change_source, 0)),
    "the first computation fails": claims((ask, 0, None, True), (ask, 0)),
    "the first process dies": claims((ask, 0), (ask, 0), (recover, 1, 0), mortal=[1], deaths=1),
    "the first process and its recoverer die": claims(
        (ask, 0), (ask, 0), (recover, 1, 0), (recover, 1, 0, 3), mortal=[1, 3], deaths=2
    ),
    "two processes wait, and their timeouts end": claims(
        (ask, 0), (ask, 0, None, False, 1), (ask, 0, None, False, 1)
    ),
    "two computations need each other's result": claims((ask, 0, 1), (ask, 1, 0), more=1),
    "one computation needs the other's result": claims((ask, 0, 1), (ask, 1)),
    "a computation asks for its own key": claims((ask, 0, 0), (ask, 0), more=1),
}

# Each step that can be left out, the scene that shows the mistake, and what then goes wrong.
MUTANTS = {
    "a key is claimed by a compare-and-swap": ("two processes ask for a key", TWICE),
    "a result is stored by a compare-and-swap": (
        "two processes ask, and the key is deleted",
        UNKNOWN,
    ),
    "a deletion takes a claimed entry away": ("two processes ask, and the key is deleted", STALE),
    "a deletion wakes the waiters for a claim": (
        "two processes ask, and the key is deleted",
        ASLEEP,
    ),
    "a claimed entry is not evicted": ("two processes ask, and an entry is evicted", TWICE),
    "a process that stores its result wakes the waiters": ("two processes ask for a key", ASLEEP),
    "a process that gives up its claim wakes the waiters": ("the first computation fails", ASLEEP),
    "recovery frees the claim of a dead process": ("the first process dies", ASLEEP),
    "recovery wakes the waiters": ("the first process dies", ASLEEP),
    "a separate word says what a claim waits for": (
        "one computation needs the other's result",
        TWICE,
    ),
    "recovery completes a result that was stored": ("the first process dies", UNKNOWN),
    "a waiter cuts off only the claim that it waited for": (
        "two processes wait, and their timeouts end",
        TWICE,
    ),
    "a waiter checks whether the claim's owner waits for it": (
        "two computations need each other's result",
        ASLEEP,
    ),
    "a waiter says what it waits for before it checks the owner": (
        "two computations need each other's result",
        ASLEEP,
    ),
    "a context clears what it waited for before it claims": (
        "one computation needs the other's result",
        TWICE,
    ),
}
