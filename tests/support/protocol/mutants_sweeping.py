"""Mutants of sweeping.py, in the form of those in mutants.py."""

OF_SWEEPS = {
    "a sweeper removes only what it saw expired": (
        "an entry is renewed under a sweeper",
        "by somebody else's work",
    ),
    "a sweeper looks for the slot when it has the lock": (
        "a removal moves what a sweeper has seen",
        "",
    ),
    "a bucket that changed is read again": (
        "a split meets a sweeper",
        "it had expired before",
    ),
    "a sweep goes on behind the bucket as it was read": (
        "a merge meets a sweeper",
        "it had expired before",
    ),
    "a sweep comes before a refusal": (
        "entries expire one after another",
        "it had expired before",
    ),
    "a rest is claimed before the turn": (
        "a deadline comes nearer beside a turn in vain",
        "it had expired before",
    ),
    "an earlier deadline ends the rest": (
        "a deadline comes nearer beside a turn in vain",
        "it had expired before",
    ),
    "who stores a deadline looks at the rest when it holds the entry": (
        "a deadline comes nearer beside a turn in vain",
        "it had expired before",
    ),
    "recovery ends a rest, too": (
        "who stores a nearer deadline dies beside a turn in vain",
        "it had expired before",
    ),
    "an entry in motion may expire at any time": (
        "a deadline comes nearer beside a turn in vain",
        "it had expired before",
    ),
    "a held bucket may get any entry": (
        "an entry that lives shortly comes beside a turn in vain",
        "it had expired before",
    ),
}
