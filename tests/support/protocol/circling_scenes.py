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
    """No thread waits for ever: exactly one of each circle is told."""
    if not all(memory[ended] for ended in cell.ended):
        raise Violation("a circle is not found")
    if sum(memory[told] for told in cell.told) > 1:
        raise Violation("two are told of one circle")


def nobody_is_told(cell, memory, places):
    """There can be no circle, so no thread is told of one."""
    if any(memory[told] for told in cell.told):
        raise Violation("one is told of a circle that never was")
    all_end(cell, memory, places)


def circle(*programs):
    return Scene(programs, all_end, cell=Locks)


def no_circle(*programs):
    return Scene(programs, nobody_is_told, cell=Locks)


CROSSWISE = "two take two locks crosswise"
SCENES = {
    CROSSWISE: circle((hold_and_want, X, Y), (hold_and_want, Y, X)),
    "three take three locks in a ring": circle(
        (hold_and_want, X, Y), (hold_and_want, Y, Z), (hold_and_want, Z, X)
    ),
    "two take two locks crosswise, one with a limit": circle(
        (hold_and_want, X, Y), (hold_and_try, Y, X)
    ),
    "two take two locks crosswise, and a third one waits behind them": circle(
        (hold_and_want, X, Y), (hold_and_want, Y, X), (hold_and_want, Z, X)
    ),
    "a chain of three": no_circle((hold_and_want, X, Y), (hold_and_want, Y, Z), (hold, Z)),
    "three take locks in one order": no_circle(
        (hold_and_want, X, Y), (hold_and_want, Y, Z), (hold_and_want, X, Z)
    ),
    "one releases a lock before it waits": no_circle(
        (hold_and_want, X, Y), (hold_then_want, Y, X, 1)
    ),
    "one releases a lock before it waits, again and again": no_circle(
        (hold_and_want, X, Y), (hold_then_want, Y, X, 2)
    ),
}

# Each step that can be left out, the scene that shows the mistake, and what then goes wrong.
NEVER_WAS = "one is told of a circle that never was"
MUTANTS = {
    "a circle is looked at twice": ("one releases a lock before it waits", NEVER_WAS),
    "a wait is known by its beginning": (
        "one releases a lock before it waits, again and again",
        NEVER_WAS,
    ),
    "a waiter says what it waits for before it looks": (CROSSWISE, "a circle is not found"),
    "the one that came last is told": (CROSSWISE, "two are told of one circle"),
}
