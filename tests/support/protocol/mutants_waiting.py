"""Mutants of waiting.py, in the form of those in mutants.py."""

LOST = "sleeps although its condition holds"

OF_WAITERS = {
    "a waiter sets SLEEPING before it reads the key": (
        "a process waits for the value that a writer stores",
        LOST,
    ),
    "a waiter sets its tag together with SLEEPING": (
        "a process waits for the value that a writer stores",
        LOST,
    ),
    "a waiter keeps the tags of the sleepers": (
        "two processes wait for two keys of one bell",
        LOST,
    ),
    "a waiter does not sleep while the word is held": (
        "a process waits for a value; the writer looks for waiters at its lock",
        LOST,
    ),
    "a writer looks for waiters after it has its lock word": (
        "a process waits for the value that a writer stores",
        LOST,
    ),
    "a ring changes the bell's number": (
        "a process waits for the value that a writer stores",
        LOST,
    ),
    "the number and the wake are one call": ("a process waits, and the writer dies", LOST),
    "the key's bell is rung before the any bell": (
        "a loop waits for the last of two changes",
        LOST,
    ),
    "the thread arms the any bell before it looks at the key's bell": (
        "a loop waits for the last of two changes",
        LOST,
    ),
    "a loop arms the bell and notes its number in one section": (
        "a loop waits for the last of two changes",
        LOST,
    ),
    "a loop empties its descriptor before it looks at the bell": (
        "a loop waits for the last of two changes",
        LOST,
    ),
    "a recoverer rings the bells that the dead process did not": (
        "a process waits, and the writer dies",
        LOST,
    ),
    "the last waiter looks again after it has cleared the class": (
        "two processes wait, and the first one stops waiting",
        LOST,
    ),
    "the last waiter rings if another waiter has come": (
        "two processes wait, and the first one stops waiting",
        LOST,
    ),
}
