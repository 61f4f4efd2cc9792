"""Mutants of sweeping.py, in the form of those in mutants.py."""

OF_SWEEPS = {
    "a sweeper removes only the entry that it saw expired": (
        "an entry is renewed under a sweeper",
        "in a step of another operation",
    ),
    "a sweeper searches for the slot when it has the lock": (
        "a removal moves an entry that a sweeper has seen",
        "is in the map but not LIVE",
    ),
    "a bucket that changed is read again": (
        "a split meets a sweeper",
        "had expired before",
    ),
    "a sweep continues after the bucket as it was read": (
        "a merge meets a sweeper",
        "had expired before",
    ),
    "a sweep comes before a refusal": (
        "entries expire one after another",
        "had expired before",
    ),
    "a rest is claimed before the turn": (
        "a deadline becomes earlier during a turn that removes nothing",
        "had expired before",
    ),
    "an earlier deadline shortens the rest": (
        "a deadline becomes earlier during a turn that removes nothing",
        "had expired before",
    ),
    "a writer of a deadline checks the rest when it holds the entry": (
        "a deadline becomes earlier during a turn that removes nothing",
        "had expired before",
    ),
    "recovery ends a rest, too": (
        "a writer of an earlier deadline dies during a turn that removes nothing",
        "had expired before",
    ),
    "an entry that is changing may expire at any time": (
        "a deadline becomes earlier during a turn that removes nothing",
        "had expired before",
    ),
    "a held bucket may get any entry": (
        "an entry with an early deadline is inserted during a turn that removes nothing",
        "had expired before",
    ),
    "a rest ends when its claim does": (
        "a deadline becomes earlier during a turn that removes nothing",
        "had expired before",
    ),
    "a claim whose end is shortened stays a claim": (
        "a deadline becomes earlier during a turn that finds an expired entry",
        "had expired before",
    ),
    "a rest is shortened by a compare-and-swap": (
        "two deadlines become earlier during a rest",
        "had expired before",
    ),
    "a turn ends its claim although that was shortened": (
        "a deadline becomes earlier during a turn that removes nothing",
        "rest is held by no living context",
    ),
    "recovery ends the claim of a dead context": (
        "an insertion dies during its turn",
        "rest is held by no living context",
    ),
}
