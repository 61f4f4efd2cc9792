"""Scenes of outdating.py, what must be so at the end, and the mutants."""

from support.protocol import computing_scenes
from support.protocol.computing import LIVE, state_of
from support.protocol.computing_scenes import ASLEEP, TWICE, idle
from support.protocol.meeting_scenes import GONE, Scene
from support.protocol.oracle import Violation
from support.protocol.outdating import (
    LOST,
    OUTDATED,
    Births,
    ask,
    invalidate,
    put,
    read,
    recover,
    then,
)


class Explorer(computing_scenes.Explorer):
    """An explorer in which a program may begin when another one has ended."""

    def holds(self, condition, subject, memory, places):
        if condition == "ended":
            return memory[self.cell.ended[subject]] == 1
        return super().holds(condition, subject, memory, places)


def outdated(*programs, mortal=(), deaths=0, ending=None, computations=None, stays=False):
    """ending: the programs that have to end; unless given, all that ask or store. computations: the
    largest number that is right. stays: a lookup at the end has to find the value that is there."""
    programs = ((idle,), *programs)
    if ending is None:
        ending = [me for me, one in enumerate(programs) if one[0] not in (idle, recover)]

    def law(m, memory, places):
        for me in ending:
            if places[me] != GONE and not memory[m.ended[me]]:
                raise Violation(ASLEEP)
        counts = memory[m.value[0]] and memory[m.birth] >= memory[m.cleared]
        live = state_of(memory[m.header[0]]) == LIVE
        if live and counts and memory[m.value[0]] <= memory[m.acknowledged]:
            raise Violation(OUTDATED)
        if stays and not (live and counts):
            raise Violation(LOST)
        made = sum(memory[word] for word in m.computed[0])
        if computations is not None and made > computations:
            raise Violation(f"a value {TWICE}")

    return Scene(programs, law, frozenset(mortal), deaths, cell=Births)


SCENES = {
    "two processes ask, and everything is invalidated": outdated((ask,), (ask,), (invalidate,)),
    "one process stores, another asks, and everything is invalidated": outdated(
        (put,), (then, 1, ask), (invalidate,)
    ),
    "a process asks after two invalidations": outdated(
        (put,), (invalidate,), (invalidate,), (then, 2, ask)
    ),
    "a process stores after an invalidation": outdated(
        (put,), (then, 1, invalidate), (then, 2, put), stays=True
    ),
    "two processes ask for an outdated value": outdated(
        (put,), (then, 1, invalidate), (then, 2, ask), (then, 2, ask), computations=1
    ),
    "a computation hangs, and everything is invalidated": outdated(
        (ask, True), (then, 1, invalidate), (then, 2, ask), ending=[2, 3]
    ),
    "two processes store, and everything is invalidated between": outdated(
        (put,), (then, 1, invalidate), (put,), (then, 2, read)
    ),
    "the process that computes dies": outdated(
        (ask,), (then, 2, ask), (invalidate,), (recover, 1), mortal=[1], deaths=1, ending=[]
    ),
    "the process that stores dies": outdated(
        (put,), (put,), (invalidate,), (recover, 2), mortal=[2], deaths=1, ending=[]
    ),
    "the process that invalidates dies": outdated(
        (ask,), (ask,), (invalidate,), mortal=[3], deaths=1
    ),
}

# Each step that can be left out, the scene that shows the mistake, and what then goes wrong.
MUTANTS = {
    "the birth is loaded before the computation begins": (
        "two processes ask, and everything is invalidated",
        OUTDATED,
    ),
    "a reader compares the birth": (
        "one process stores, another asks, and everything is invalidated",
        OUTDATED,
    ),
    "an invalidation takes a number": ("a process stores after an invalidation", LOST),
    "the number of the last invalidation never falls": (
        "a process asks after two invalidations",
        OUTDATED,
    ),
    "the birth changes by the commit of its value": (
        "two processes store, and everything is invalidated between",
        OUTDATED,
    ),
    "an outdated value is deleted before its key is claimed": (
        "two processes ask for an outdated value",
        TWICE,
    ),
    "a claim from before an invalidation is cut off": (
        "a computation hangs, and everything is invalidated",
        ASLEEP,
    ),
    "recovery completes the birth with the value": ("the process that stores dies", OUTDATED),
}
