"""Mutants: the protocol without one of its steps, and the scene that shows the mistake.

Each key is the name of a step, as the programs pass it to ``keeps``; the mutant leaves the step
out, or performs it at the wrong time. Each value is the name of a scene (scenes.py) and a part of
the violation that must be found there. The mutants in EARLIER are what the core once did, before
the explorer found the counterexample.
"""

from support.protocol.mutants_claiming import OF_FORKS, OF_RECOVERERS
from support.protocol.mutants_holding import OF_CELLS
from support.protocol.mutants_journaling import OF_JOURNALS
from support.protocol.mutants_sweeping import OF_SWEEPS
from support.protocol.mutants_waiting import OF_WAITERS

EARLIER = {
    "a reader loads a link a second time": (
        "a line loses one of its two entries",
        "lookup says ABSENT",
    ),
    "an unlinked line is emptied": (
        "a line is unlinked under a reader",
        "lookup says 5",
    ),
    "a line is linked before it gets the new element": (
        "a line is unlinked and linked again under a reader",
        "lookup says 6",
    ),
    "recovery raises the version before it empties a line": (
        "a writer dies while it unlinks a line, and the survivor inserts",
        "lookup says ABSENT",
    ),
    "recovery stashes an unlinked line before it unlinks another": (
        "a writer dies in a split of a chain with lines",
        "lines lost",
    ),
    "contains loads the header a second time": (
        "an insert is undone after a death, and another key gets its element",
        "contains says 1",
    ),
    "an insert reports PRESENT after a second load of the header": (
        "an insert meets one of the same key that is undone after a death",
        "insert says PRESENT",
    ),
    "an undone merge raises the version before it clears slots": (
        "two contexts merge at the same time",
        "lookup says ABSENT",
    ),
    "a split only tries the child's lock": (
        "a bucket is merged and split while a writer waits for its lock",
        "two at once",
    ),
}

OF_READERS = {
    "a reader loads the slot a second time": (
        "a key is deleted, and inserted into the same element",
        "lookup says 5",
    ),
    "the value is validated by the element's header": (
        "a value of two words is replaced by two writers",
        "lookup says (",
    ),
    "readers of UPD copy the redo buffer": (
        "a value of two words is replaced by two writers",
        "lookup says",
    ),
    "a miss is validated by the bucket's version": (
        "the last entry of a chain fills a gap",
        "lookup says ABSENT",
    ),
    "a miss counts only in the bucket to which the levels lead": (
        "a split moves all entries of a chain",
        "lookup says ABSENT",
    ),
    "a bucket read at rest has the same header afterwards": (
        "a walk meets a merge and a split",
        "walk says ABSENT",
    ),
    "a bucket read in order has the same version afterwards": (
        "a walk meets a removal that moves the last entry",
        "walk says ABSENT",
    ),
    "a walk checks the level again": (
        "a walk meets a merge and a split",
        "walk says ABSENT",
    ),
    "an operation announces that it is under way": (
        "memory is given back under a reader",
        "touches memory",
    ),
}

OF_WRITERS = {
    "every change of state raises the version": (
        "a value of two words is replaced by two writers",
        "lookup says (",
    ),
    "an element's version continues in its next life": (
        "a key is deleted, and inserted into the same element",
        "lookup says (",
    ),
    "the redo buffer is written before UPD": (
        "a value of two words is replaced by two writers",
        "update made",
    ),
    "an element is owned before it is changed": (
        "a value of two words is replaced by two writers",
        "a mixture",
    ),
    "an element is named before it is owned": (
        "a writer dies in an update",
        "is held by no living context",
    ),
    "an element is DEAD before its slot is cleared": (
        "a writer dies in a delete or in the insert after it",
        "elements lost",
    ),
    "an element is named before it is DEAD": (
        "a writer dies in a delete or in the insert after it",
        "is held by no living context",
    ),
    "an element is LIVE before a slot names it": (
        "a writer dies in an insert under a reader",
        "not LIVE",
    ),
    "the tag is stored before the index": (
        "a writer dies in an insert under a reader",
        "lookup says ABSENT",
    ),
    "a section is committed by a compare-and-swap": (
        "a key is deleted and inserted during its section",
        "replace made 2 of 0",
    ),
    "an insert searches again when it has the lock": (
        "two writers insert the same key",
        "is in the map twice",
    ),
    "after a miss the bucket is locked only if it is unchanged": (
        "two writers insert the same key",
        "is in the map twice",
    ),
    "a writer locks a bucket only while the key belongs there": (
        "a merge while its keys are written",
        "delete says ABSENT",
    ),
    "the version is raised before the old place is cleared": (
        "the last entry of a chain fills a gap",
        "lookup says ABSENT",
    ),
    "the new place is stored before the old one is cleared": (
        "the last entry of a chain fills a gap",
        "in a step of another operation",
    ),
    "a line is filled before it is linked": (
        "a full bucket gets a line",
        "in a step of another operation",
    ),
    "a changed bucket is unlocked with another version": (
        "a walk meets a delete and an insert",
        "walk says 5",
    ),
    "a block that keeps its memory is no hole": (
        "a writer releases memory that the system keeps",
        "has memory",
    ),
    "memory is released when no operation can still use it": (
        "memory is given back under a reader",
        "touches memory",
    ),
}

OF_RESIZES = {
    "a split fills the child before it gives it a level": (
        "a split moves all entries of a chain",
        "two buckets differ",
    ),
    "a split raises the parent's level before it clears slots": (
        "a split moves all entries of a chain",
        "two buckets differ",
    ),
    "a merge fills the parent before it lowers the level": (
        "a merge while its keys are written",
        "two buckets differ",
    ),
    "a merge lowers the child's level before it clears slots": (
        "a merge while its keys are written",
        "two buckets differ",
    ),
}

OF_NUMBERS = {
    "no split makes a bucket at or above the number of buckets": (
        "the number of buckets falls below a split",
        "exists beyond the number",
    ),
    "the number is lowered under the lock of the bucket with the entries": (
        "a split is passed, and the number of buckets falls again",
        "exists beyond the number, 2",
    ),
    "a split checks the parent's level when it has the lock": (
        "two contexts make up for a gap",
        "two buckets differ about it",
    ),
    "a merge checks both levels when it has the locks": (
        "buckets beyond a merge are split",
        "in a table of",
    ),
    "a clear begins anew after a split": (
        "a map is cleared while a bucket is split",
        "was never empty",
    ),
    "a clear reads the count of splits before that of buckets": (
        "a map is cleared while a bucket is split",
        "was never empty",
    ),
    "a split is counted before its parent is unlocked": (
        "a map is cleared while a bucket is split",
        "was never empty",
    ),
    "recovery accepts a parent that was split once more": (
        "a writer dies in a merge, and others split beyond it",
        "no bucket answers",
    ),
}

OF_SUPPLY = {
    "an element is named before it leaves its depot": (
        "a writer that fetches an element and gives it back dies",
        "elements lost",
    ),
    "a detached chain is named before its block is unlocked": (
        "a writer that fetches an element and gives it back dies",
        "elements lost",
    ),
    "a run is named before it leaves its depot": (
        "a writer that gives runs of elements to their blocks dies",
        "elements lost",
    ),
    "the name of a run says where it goes": (
        "a writer that gives runs of elements to their blocks dies",
        "elements lost",
    ),
    "a run is linked to its block's list after it has left its depot": (
        "a writer that gives runs of elements to their blocks dies",
        "a free list leads to",
    ),
    "the name of a run ends before its depot is unlocked": (
        "a writer that gives runs of elements to their blocks dies",
        "elements lost",
    ),
    "recovery completes a run that has left its depot": (
        "a writer that gives runs of elements to their blocks dies",
        "elements lost",
    ),
    "recovery leaves a run that has not left its depot": (
        "a writer that gives runs of elements to their blocks dies",
        "a free list leads to",
    ),
    "credits are named before they move": (
        "a writer that fetches an element and gives it back dies",
        "credits",
    ),
}

OF_RECOVERY = {
    "recovery does more than unlock": (
        "a writer dies in a delete or in the insert after it",
        "in a step of another operation",
    ),
    "recovery copies the redo buffer": (
        "a writer dies in an update",
        "in a step of another operation",
    ),
    "recovery releases an element by a compare-and-swap": (
        "a writer dies in a section while another deletes the key",
        "in a step of another operation",
    ),
    "recovery keeps an element that a slot names": (
        "a writer dies in a delete or in the insert after it",
        "in a step of another operation",
    ),
    "recovery frees only what the context owns": (
        "a writer dies in a delete or in the insert after it",
        "in a step of another operation",
    ),
    "recovery finishes a removal": (
        "a writer dies in a removal that moves the last entry",
        "elements lost or in two places",
    ),
    "recovery clears the slot of a DEAD element": (
        "a writer dies in a delete or in the insert after it",
        "is in the map but not LIVE",
    ),
    "recovery finishes a resize after its commit": (
        "a writer dies in a split",
        "no bucket answers for it",
    ),
    "recovery completes credits that have left the header": (
        "a writer that fetches an element and gives it back dies",
        "credits",
    ),
    "one process at a time recovers a context": (
        "a writer dies in a delete or in the insert after it",
        "two at once",
    ),
}

MUTANTS = (
    EARLIER
    | OF_READERS
    | OF_WRITERS
    | OF_RESIZES
    | OF_NUMBERS
    | OF_SUPPLY
    | OF_RECOVERY
    | OF_RECOVERERS
    | OF_FORKS
    | OF_SWEEPS
    | OF_WAITERS
    | OF_JOURNALS
    | OF_CELLS
)
