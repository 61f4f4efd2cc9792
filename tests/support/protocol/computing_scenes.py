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
    """Nobody who lives waits, the key has the latest result or none, and no result too many was
    computed. ending: the programs that have to come to their end."""
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
    """more: so many computations without a claim are right."""
    programs = ((idle,), *programs)
    ending = [me for me, program in enumerate(programs) if program[0] not in (idle, recover)]

    def law(m, memory, places):
        computed_once(m, memory, places, more, ending)

    return Scene(programs, law, frozenset(mortal), deaths, cell=Entries)


SCENES = {
    "two ask for a key": claims((ask, 0), (ask, 0)),
    "three ask for a key": claims((ask, 0), (ask, 0), (ask, 0)),
    "two ask, and something needs room": claims((ask, 0), (ask, 0), (evict, 0)),
    "two ask, and the key is deleted": claims((ask, 0), (ask, 0), (change_source, 0)),
    "the first one fails": claims((ask, 0, None, True), (ask, 0)),
    "the first one dies": claims((ask, 0), (ask, 0), (recover, 1, 0), mortal=[1], deaths=1),
    "the first one and its recovery die": claims(
        (ask, 0), (ask, 0), (recover, 1, 0), (recover, 1, 0, 3), mortal=[1, 3], deaths=2
    ),
    "two wait, and have no patience": claims(
        (ask, 0), (ask, 0, None, False, 1), (ask, 0, None, False, 1)
    ),
    "two need each other's result": claims((ask, 0, 1), (ask, 1, 0), more=1),
    "one needs what the other computes": claims((ask, 0, 1), (ask, 1)),
    "a computation asks for its own key": claims((ask, 0, 0), (ask, 0), more=1),
}

# Each step that can be left out, the scene that shows the mistake, and what then goes wrong.
MUTANTS = {
    "a key is claimed by a compare-and-swap": ("two ask for a key", TWICE),
    "a result is stored by a compare-and-swap": ("two ask, and the key is deleted", UNKNOWN),
    "a deletion takes a claimed entry away": ("two ask, and the key is deleted", STALE),
    "a deletion wakes those who wait for the claim": ("two ask, and the key is deleted", ASLEEP),
    "a claimed entry is not evicted": ("two ask, and something needs room", TWICE),
    "one that stores its result wakes the waiters": ("two ask for a key", ASLEEP),
    "one that gives its claim up wakes the waiters": ("the first one fails", ASLEEP),
    "recovery frees the claim of the dead": ("the first one dies", ASLEEP),
    "recovery wakes those who wait": ("the first one dies", ASLEEP),
    "what a claim waits for has a word of its own": ("one needs what the other computes", TWICE),
    "recovery completes a result that was stored": ("the first one dies", UNKNOWN),
    "only the claim that was waited for is cut off": ("two wait, and have no patience", TWICE),
    "a waiter follows who waits for whom": ("two need each other's result", ASLEEP),
    "a waiter says what it waits for before it follows the others": (
        "two need each other's result",
        ASLEEP,
    ),
    "a claim waits for nothing before it can be seen": ("one needs what the other computes", TWICE),
}
