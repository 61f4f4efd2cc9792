"""Scenes of circling.py, what must be so at the end, and the mutants."""

from support.protocol.circling import (
    Locks,
    hold,
    hold_and_try,
    hold_and_want,
    hold_then_want,
)
from support.protocol.meeting_scenes import Scene
from support.protocol.oracle import Violation

X, Y, Z = range(3)


def all_end(cell, memory, _places):
    """No thread waits for ever: of each circle, exactly one thread is told."""
    if not all(memory[ended] for ended in cell.ended):
        raise Violation("a circle is not found")
    if sum(memory[told] for told in cell.told) > 1:
        raise Violation("two threads are told of one circle")


def nobody_is_told(cell, memory, places):
    """There can be no circle, so no thread is told of one."""
    if any(memory[told] for told in cell.told):
        raise Violation("a thread is told of a circle that did not exist")
    all_end(cell, memory, places)


def circle(*programs):
    return Scene(programs, all_end, cell=Locks)


def no_circle(*programs):
    return Scene(programs, nobody_is_told, cell=Locks)


CROSSWISE = "two threads take two locks crosswise"
SCENES = {
    CROSSWISE: circle((hold_and_want, X, Y), (hold_and_want, Y, X)),
    "three threads take three locks in a ring": circle(
        (hold_and_want, X, Y), (hold_and_want, Y, Z), (hold_and_want, Z, X)
    ),
    "two threads take two locks crosswise, one with a timeout": circle(
        (hold_and_want, X, Y), (hold_and_try, Y, X)
    ),
    "two threads take two locks crosswise, and a third waits for one lock": circle(
        (hold_and_want, X, Y), (hold_and_want, Y, X), (hold_and_want, Z, X)
    ),
    "three threads wait in a line, without a circle": no_circle(
        (hold_and_want, X, Y), (hold_and_want, Y, Z), (hold, Z)
    ),
    "three threads take locks in one order": no_circle(
        (hold_and_want, X, Y), (hold_and_want, Y, Z), (hold_and_want, X, Z)
    ),
    "a thread releases a lock before it waits": no_circle(
        (hold_and_want, X, Y), (hold_then_want, Y, X, 1)
    ),
    "a thread releases a lock before it waits, twice": no_circle(
        (hold_and_want, X, Y), (hold_then_want, Y, X, 2)
    ),
}

# Each step that can be left out, the scene that shows the mistake, and what then goes wrong.
NEVER_WAS = "a thread is told of a circle that did not exist"
MUTANTS = {
    "a thread looks twice before it reports a circle": (
        "a thread releases a lock before it waits",
        NEVER_WAS,
    ),
    "a wait is recognized by its number": (
        "a thread releases a lock before it waits, twice",
        NEVER_WAS,
    ),
    "a waiter says what it waits for before it looks": (CROSSWISE, "a circle is not found"),
    "the thread whose wait began last is told": (CROSSWISE, "two threads are told of one circle"),
}
