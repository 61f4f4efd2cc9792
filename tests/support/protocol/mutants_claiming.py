"""Mutants of claiming.py and forking.py, in the form of those in mutants.py."""

OF_RECOVERERS = {
    "a recoverer checks the death again after it is named": (
        "an heir takes over a slot that another process recovers",
        "two at once",
    ),
    "an heir looks for a recoverer after it has locked the byte": (
        "an heir takes over a slot that another process recovers",
        "two at once",
    ),
    "a living recoverer is not replaced": (
        "a recoverer dies, and another replaces it",
        "two at once",
    ),
    "a recoverer is named by a compare-and-swap": (
        "a recoverer dies, and another replaces it",
        "two at once",
    ),
    "the word recoverer counts recoveries": (
        "the slot of a dead recoverer is used again",
        "two at once",
    ),
    "the recovery of a process clears the words that name it": (
        "the slot of a dead recoverer is used again",
        "is never recovered",
    ),
    "words that name a process are cleared before its slot is free": (
        "a recoverer's name is cleared while its slot is used again",
        "two at once",
    ),
}

OF_FORKS = {
    "a child's slot is claimed after its byte is locked": (
        "a parent that has a view forks a child",
        "touches memory that was given back",
    ),
    "a child's view is pinned before the fork": (
        "a parent that has a view forks a child",
        "touches memory",
    ),
    "a child's pin is in the child's name": (
        "a parent that has a view forks a child",
        "touches memory",
    ),
    "a parent closes the open file after the fork": (
        "a parent that has a view forks a child",
        "touches memory",
    ),
    "a child keeps the open file that has the lock": (
        "a parent that has a view forks a child",
        "touches memory",
    ),
    "a retired object is taken only if no pin names it": (
        "a parent that has a view forks a child",
        "touches memory",
    ),
    "a context that owns an object searches the pins": (
        "a parent that has a view forks a child",
        "touches memory",
    ),
    "a context that retires an object searches the pins again": (
        "a fork fails",
        "an object is lost",
    ),
    "a context names the pinned object before the pin ends": (
        "a fork fails",
        "an object is lost",
    ),
}
