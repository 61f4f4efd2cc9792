"""Mutants of waiting.py, as mutants.py has the others."""

LOST = "sleeps, and what it waits for is there"

OF_WAITERS = {
    "a waiter sets SLEEPING before it looks": ("one waits for what one stores", LOST),
    "a held word is not slept on": ("one waits for what a slow store stores", LOST),
    "a writer looks for waiters when it has its lock word": (
        "one waits for what one stores",
        LOST,
    ),
    "a ring changes the bell's number": ("one waits for what one stores", LOST),
    "the number and the wake are one call": ("one waits, and the writer dies", LOST),
    "a recoverer rings for the dead": ("one waits, and the writer dies", LOST),
    "the last waiter looks again when it has cleared the class": (
        "two wait, and the first leaves",
        LOST,
    ),
    "the last waiter rings if another has come": ("two wait, and the first leaves", LOST),
}
