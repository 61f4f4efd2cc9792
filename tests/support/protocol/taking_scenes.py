"""Scenes of taking.py, what must be so at the end, and the mutants."""

from support.protocol import computing_scenes
from support.protocol.meeting_scenes import GONE, Scene
from support.protocol.oracle import Violation
from support.protocol.taking import (
    FREE,
    LISTED,
    LIVE,
    Objects,
    holder_of,
    insert,
    look,
    recover,
)

LOST = "an object is lost (C1)"
STUCK = "a program has not ended"
LEFT = "a word is held"
WRONG = "a free object is in no list, or one in use is"


class Explorer(computing_scenes.Explorer):
    def first_memory(self):
        memory = list(super().first_memory())
        for word in self.cell.word:
            memory[word] = LISTED
        return tuple(memory)


def takes(*programs, mortal=(), deaths=0):
    def law(m, memory, places):
        for me, (function, *arguments) in enumerate(programs):
            waits = function is recover and any(places[one] != GONE for one in arguments)
            if places[me] != GONE and not memory[m.ended[me]] and not waits:
                raise Violation(STUCK)
        for thing, word in enumerate(m.word):
            header = memory[m.header[thing]]
            if holder_of(memory[word]):
                raise Violation(LEFT)
            if (header == FREE) != (memory[word] == LISTED):
                raise Violation(WRONG)
            if header not in (FREE, LIVE) and thing + 1 not in (
                memory[name] for name in m.named[header - 1]
            ):
                raise Violation(LOST)

    return Scene(programs, law, frozenset(mortal), deaths, Objects)


SCENES = {
    "a run cannot grow": takes((insert,)),
    "a run cannot grow while another looks at its block": takes((insert,), (look,)),
    "a run cannot grow, and two look": takes((insert,), (look,), (look,)),
    "the one who looks dies": takes((insert,), (look,), (recover, 1), mortal=[1], deaths=1),
    "the one who stores dies": takes((insert,), (look,), (recover, 0), mortal=[0], deaths=1),
    "both die": takes((insert,), (look,), (recover, 0), (recover, 1), mortal=[0, 1], deaths=2),
}

LOOKS = "a run cannot grow while another looks at its block"
DIES = "the one who stores dies"
MUTANTS = {
    "a run that is still named makes the attempt wait": (LOOKS, LOST),
    "what a slot still names is given back before it names another": (LOOKS, LOST),
    "an object is named before it is this context's": (DIES, WRONG),
    "the name of an object goes after the object": (DIES, LOST),
}
