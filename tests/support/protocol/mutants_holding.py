"""Mutants of holding.py, in the form of those in mutants.py."""

SLEEPS = "a waiter sleeps although"
DIES = "the owner of a lock dies, and so does its recoverer"
PERMIT_DIES = "a context with the only permit dies"

OF_CELLS = {
    "a waiter that has slept takes the lock with CONTENDED": (
        "three contexts take a lock in turn",
        SLEEPS,
    ),
    "a waiter that gives up passes the wake-up on": (
        "a waiter for a lock gives up, and another one waits",
        SLEEPS,
    ),
    "a thread that frees a lock wakes a sleeper": ("three contexts take a lock in turn", SLEEPS),
    "an owner frees no lock but its own": (
        "a lock is taken away from its owner, which is in its release",
        "was told 0 times",
    ),
    "a release clears ORPHAN": (DIES, "was told"),
    "recovery passes on the wake-up of a dead waiter": (
        "a waiter for a lock dies, and two others wait",
        SLEEPS,
    ),
    "recovery says that the owner died": (DIES, "was told"),
    "recovery frees only a lock that the context holds": (
        "a waiter for a lock dies, and two others wait",
        SLEEPS,
    ),
    "a context names the cell before it changes it": (PERMIT_DIES, "never unlocked"),
    "a change of permits begins with its intent": (PERMIT_DIES, "permits are lost"),
    "recovery finishes a change that was committed": (PERMIT_DIES, "permits are lost"),
    "recovery gives back the permits of a dead context": (PERMIT_DIES, "permits are lost"),
    "recovery rings the bell of the permits": (PERMIT_DIES, SLEEPS),
    "recovery reports a dead writer before it frees its lock": (
        "a writer dies, and others read and write",
        "a writer at work",
    ),
    "a thread that leaves the lock free rings": ("two readers and a writer", SLEEPS),
    "setting an event raises its generation": (
        "an event is set and cleared while a context waits",
        SLEEPS,
    ),
    "a waiter for an event arms the bell before it looks": (
        "an event is set while two contexts wait",
        SLEEPS,
    ),
}
