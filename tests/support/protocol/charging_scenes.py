"""Scenes of charging.py, what must be so in every state and at the end, and the mutants."""

from dataclasses import dataclass
from functools import partial

from support.protocol import computing_scenes
from support.protocol.charging import (
    EMPTY,
    FIRST_PAGES,
    HOLE,
    LARGE,
    RUN,
    SMALL,
    USED,
    Budget,
    extend,
    holder_of,
    pages_of,
    put,
    recover,
    recover_refused,
    remove,
    remove_refused,
    replace,
    shrink,
    state_of,
    word_of,
)
from support.protocol.meeting_scenes import GONE, Scene
from support.protocol.oracle import Violation

UNCOUNTED = "memory is committed that the budget does not count"
TOO_MUCH = "more is counted than the limit allows"
WRONG = "the budget counts other pages than blocks have"
STUCK = "a program has not ended"
BARE = "a block is ready whose memory is not there"


@dataclass(frozen=True)
class Charges(Scene):
    """used: the blocks that have an entry's object at the start; the run then has three pages."""

    used: tuple = ()
    region: int = 0  # pages of the first region


class Explorer(computing_scenes.Explorer):
    def first_memory(self):
        memory = list(super().first_memory())
        for block in self.scene.used:
            pages = 3 if block == RUN else FIRST_PAGES[block]
            memory[self.cell.block[block]] = word_of(USED)
            memory[self.cell.memory[block]] = pages
            memory[self.cell.budget] += pages * 10
            if block == RUN:
                memory[self.cell.run_pages] = pages
        memory[self.cell.allocated[0]] = memory[self.cell.region_memory[0]] = self.scene.region
        return tuple(memory)

    def followers(self, memory, places):
        for after, on in super().followers(memory, places):
            m = self.cell
            if sum(after[word] for word in m.memory) > pages_of(after[m.budget]):
                raise Violation(UNCOUNTED)
            if any(
                after[pages] > after[mark]
                for pages, mark in zip(m.region_memory, m.allocated, strict=True)
            ):
                raise Violation(UNCOUNTED)
            marks = sum(after[mark] for mark in m.allocated)
            if pages_of(after[m.budget]) + marks > m.pages_most:
                raise Violation(TOO_MUCH)
            yield after, on


def pages_right(m, memory, contexts):
    """The budget counts the pages of the blocks, and those that contexts owe; nothing is held."""
    pages = sum(memory[m.debt[me]] for me in contexts)
    for block, word in enumerate(m.block):
        if holder_of(memory[word]) or state_of(memory[word]) not in (HOLE, EMPTY, USED):
            raise Violation(STUCK)
        if state_of(memory[word]) != HOLE:
            says = memory[m.run_pages] if block == RUN else FIRST_PAGES[block]
            needed = says if memory[word] == word_of(USED) else FIRST_PAGES[block]
            if memory[m.memory[block]] < needed:
                raise Violation(BARE)
            pages += says
    if holder_of(memory[m.budget]) or any(memory[word] for word in m.region):
        raise Violation(STUCK)
    if pages_of(memory[m.budget]) != pages:
        raise Violation(WRONG)


def charges(*programs, used=(), region=0, pages_most=6, mortal=(), deaths=0):
    def law(m, memory, places):
        for me, (function, *arguments) in enumerate(programs):
            waits = function in (recover, recover_refused) and any(
                places[one] != GONE for one in arguments
            )
            if places[me] != GONE and not memory[m.ended[me]] and not waits:
                raise Violation(STUCK)
        pages_right(m, memory, range(len(programs)))

    cell = partial(Budget, pages_most=pages_most)
    return Charges(programs, law, frozenset(mortal), deaths, cell, used, region)


PUT, PUT_LARGE, PUT_RUN = (put, SMALL), (put, LARGE), (put, RUN, 3)
SCENES = {
    "two store, and there is room for one": charges(PUT, PUT_LARGE, pages_most=2),
    "one stores while another deletes": charges(PUT, (remove, LARGE), used=[LARGE], pages_most=3),
    "one stores while a run goes": charges(PUT_LARGE, (remove, RUN), used=[RUN], pages_most=4),
    "one stores while a region grows": charges(PUT_LARGE, (extend, 0, 2), pages_most=3),
    "one stores while a region shrinks": charges(PUT_LARGE, (shrink, 0, 1), region=3, pages_most=4),
    "two regions grow": charges((extend, 0, 2), (extend, 1, 2), PUT, pages_most=3),
    "a region grows, and the block is there again": charges(
        (extend, 0, 2), (remove, LARGE), PUT_LARGE, used=[LARGE], pages_most=4
    ),
    "one whose region grows dies": charges(
        (extend, 0, 2), (extend, 0, 3), PUT_LARGE, (recover, 0), pages_most=4, mortal=[0], deaths=1
    ),
    "one whose region shrinks dies": charges(
        (shrink, 0, 1),
        (extend, 0, 2),
        PUT_LARGE,
        (recover, 0),
        region=3,
        pages_most=4,
        mortal=[0],
        deaths=1,
    ),
    "one who stores dies": charges(PUT_LARGE, PUT, (recover, 0), mortal=[0], deaths=1),
    "one who stores a run dies": charges(PUT_RUN, PUT, (recover, 0), mortal=[0], deaths=1),
    "one who deletes dies": charges(
        (remove, LARGE), PUT, (recover, 0), used=[LARGE], mortal=[0], deaths=1
    ),
    "one who deletes a run dies": charges(
        (remove, RUN), PUT, (recover, 0), used=[RUN], mortal=[0], deaths=1
    ),
    "one who deletes two dies": charges(
        (remove, LARGE, RUN), PUT, (recover, 0), used=[LARGE, RUN], mortal=[0], deaths=1
    ),
    "one who deletes one, and stores, dies": charges(
        (replace, LARGE, RUN), PUT, (recover, 0), used=[LARGE], mortal=[0], deaths=1
    ),
    "one who deletes one, and stores, dies, and the kernel refuses": charges(
        (replace, LARGE, RUN), PUT, (recover_refused, 0), used=[LARGE], mortal=[0], deaths=1
    ),
    "one to whom the kernel refuses dies": charges(
        (remove_refused, LARGE, RUN), PUT, (recover, 0), used=[LARGE, RUN], mortal=[0], deaths=1
    ),
    "one who stores a run, and the recovery, die": charges(
        PUT_RUN, (recover, 0), (recover, 0, 1), mortal=[0, 1], deaths=2
    ),
    "one who deletes two, and the recovery, die": charges(
        (remove, LARGE, RUN),
        PUT,
        (recover, 0),
        (recover, 0, 2),
        used=[LARGE, RUN],
        mortal=[0, 2],
        deaths=2,
    ),
    "one to whom the kernel refuses, and the recovery, die": charges(
        (remove_refused, LARGE, RUN),
        (recover_refused, 0),
        (recover, 0, 1),
        used=[LARGE, RUN],
        mortal=[0, 1],
        deaths=2,
    ),
}

# Each step that can be left out, the scene that shows the mistake, and what then goes wrong.
STORES, STORES_RUN = "one who stores dies", "one who stores a run dies"
DELETES, DELETES_TWO = "one who deletes dies", "one who deletes two dies"
MUTANTS = {
    "the budget's next value is noted before the charge": (STORES, UNCOUNTED),
    "the budget's next value is noted before the refund": (DELETES, UNCOUNTED),
    "a charge is noted before the budget has it": (STORES, WRONG),
    "recovery completes a charge that was noted": (STORES, WRONG),
    "memory is committed after it is charged": (
        "two store, and there is room for one",
        UNCOUNTED,
    ),
    "the pages that a run wants are noted before they are charged": (STORES_RUN, WRONG),
    "a context refunds what it owes before it charges": (
        "one who deletes one, and stores, dies",
        WRONG,
    ),
    "a context that owes pages gives no memory back": (DELETES_TWO, WRONG),
    "the pages of a block are noted before it is given up": (DELETES, WRONG),
    "the pages of a held block have a note of their own": (DELETES_TWO, WRONG),
    "a debt is noted after the memory has gone": (
        "one stores while another deletes",
        UNCOUNTED,
    ),
    "a debt is noted before the block is free": (DELETES, WRONG),
    "pages that are owed already are not the block's": (
        "one who deletes one, and stores, dies, and the kernel refuses",
        UNCOUNTED,
    ),
    "regions are added up while the budget is held": ("one stores while a region grows", TOO_MUCH),
    "a mark rises while the budget is held": ("two regions grow", TOO_MUCH),
    "a mark rises before the memory is committed": ("one stores while a region grows", UNCOUNTED),
    "a mark falls after the memory has gone": ("one stores while a region shrinks", UNCOUNTED),
    "recovery tells a run again which pages it has": ("one who deletes a run dies", WRONG),
}
