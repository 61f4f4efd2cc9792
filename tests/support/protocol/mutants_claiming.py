"""Mutants of claiming.py and forking.py, in the form of those in mutants.py."""

OF_RECOVERERS = {
    "a recoverer asks for the death again when it is named": (
        "an heir takes the slot that another recovers",
        "two at once",
    ),
    "an heir looks for a recoverer when it has the byte": (
        "an heir takes the slot that another recovers",
        "two at once",
    ),
    "a recoverer that lives is not replaced": (
        "a recoverer dies, and another comes",
        "two at once",
    ),
    "a recoverer is named by a compare-and-swap": (
        "a recoverer dies, and another comes",
        "two at once",
    ),
    "the word recoverer counts": (
        "the slot of a dead recoverer is used again",
        "two at once",
    ),
    "whoever recovers a process clears the words that name it": (
        "the slot of a dead recoverer is used again",
        "is left to nobody",
    ),
    "words that name a process are cleared before its slot is free": (
        "a name is cleared while the slot is used again",
        "two at once",
    ),
}

OF_FORKS = {
    "a child's slot is claimed when its byte is locked": (
        "a child is born with a view",
        "",
    ),
    "a child's view is pinned before it is born": (
        "a child is born with a view",
        "touches memory",
    ),
    "a child's pin is in the child's name": (
        "a child is born with a view",
        "touches memory",
    ),
    "a parent closes the open file after the fork": (
        "a child is born with a view",
        "touches memory",
    ),
    "a child keeps the open file that has the lock": (
        "a child is born with a view",
        "touches memory",
    ),
    "a retired object is looked for among the pins": (
        "a child is born with a view",
        "touches memory",
    ),
    "who takes an object away looks for pins": (
        "a child is born with a view",
        "touches memory",
    ),
    "who retires an object looks for pins once more": (
        "a fork fails",
        "an object is lost",
    ),
    "what a pin pinned is named before the pin ends": (
        "a fork fails",
        "an object is lost",
    ),
}
