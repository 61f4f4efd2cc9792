"""Mutants: the protocol without one of its steps, and the scene that shows the mistake.

Each key is the name of a step, as the programs pass it to ``keeps``; the mutant leaves the step
out, or performs it at the wrong time. Each value is the name of a scene (scenes.py) and a part of
the violation that must be found there. The mutants in EARLIER are what the core once did, before
the explorer found the counterexample.
"""

from support.protocol.mutants_claiming import OF_FORKS, OF_RECOVERERS
from support.protocol.mutants_sweeping import OF_SWEEPS
from support.protocol.mutants_waiting import OF_WAITERS

EARLIER = {
    "a link is looked at again": (
        "a line loses one of two",
        "lookup says ABSENT",
    ),
    "an unlinked line names nothing": (
        "a line is unlinked under a reader",
        "lookup says 5",
    ),
    "a line is linked before the new element stands in it": (
        "a line is unlinked and linked again under a reader",
        "lookup says 6",
    ),
    "recovery raises the version before it empties a line": (
        "an unlinked line of the dead names nothing",
        "lookup says ABSENT",
    ),
    "recovery stashes an unlinked line before it unlinks another": (
        "a split of lines dies",
        "lines lost",
    ),
    "contains looks at the header again": (
        "an insertion that a death undoes leaves its element to another",
        "contains says 1",
    ),
    "PRESENT is said after a second look at the header": (
        "an insertion that a death undoes is taken for the key's",
        "insert says PRESENT",
    ),
    "an undone merge raises the version before it clears": (
        "two merge",
        "lookup says ABSENT",
    ),
    "a split takes the child's lock by trying": (
        "a bucket goes and comes while a writer wants its lock",
        "two at once",
    ),
}

OF_READERS = {
    "the slot is loaded a second time": (
        "a key is deleted and comes back in the same element",
        "lookup says 5",
    ),
    "the value is validated by the element's header": (
        "a value of two words is replaced by two writers",
        "lookup says (",
    ),
    "readers of UPD take the redo buffer": (
        "a value of two words is replaced by two writers",
        "lookup says",
    ),
    "a miss is validated by the bucket's version": (
        "the last of a chain fills a gap",
        "lookup says ABSENT",
    ),
    "a miss counts where the levels lead": (
        "a split moves all of a chain",
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
    "a walk looks at the level again": (
        "a walk meets a merge and a split",
        "",
    ),
    "an operation says that it is under way": (
        "memory is given back under a reader",
        "touches memory",
    ),
}

OF_WRITERS = {
    "every change of state raises the version": (
        "a value of two words is replaced by two writers",
        "lookup says (",
    ),
    "an element's version goes on in its next life": (
        "a key is deleted and comes back in the same element",
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
        "an update dies",
        "is held by nobody alive",
    ),
    "an element is DEAD before its slot is cleared": (
        "a delete and an insert die",
        "elements lost",
    ),
    "an element is named before it is DEAD": (
        "a delete and an insert die",
        "is held by nobody alive",
    ),
    "an element is LIVE before a slot names it": (
        "an insert dies under a reader",
        "not LIVE",
    ),
    "the tag is stored before the index": (
        "an insert dies under a reader",
        "lookup says ABSENT",
    ),
    "a section is committed by a compare-and-swap": (
        "a delete and an insert cut a section off",
        "",
    ),
    "an inserter looks again when it has the lock": (
        "two insert the same key",
        "is there twice",
    ),
    "the bucket of a miss is taken only as it was seen": (
        "two insert the same key",
        "is there twice",
    ),
    "a writer takes a bucket only while it has the key": (
        "a merge while its keys are written",
        "",
    ),
    "the version is raised before the old place is cleared": (
        "the last of a chain fills a gap",
        "lookup says ABSENT",
    ),
    "the new place is stored before the old one is cleared": (
        "the last of a chain fills a gap",
        "by somebody else's work",
    ),
    "a line is filled before it is linked": (
        "a full bucket gets a line",
        "by somebody else's work",
    ),
    "a changed bucket is unlocked with another version": (
        "a walk meets a delete and an insert",
        "walk says 5",
    ),
    "a block whose memory stays is no hole": (
        "memory that is given back stays",
        "has memory",
    ),
    "memory goes when nobody is inside an operation": (
        "memory is given back under a reader",
        "touches memory",
    ),
}

OF_RESIZES = {
    "a split fills the child before it gives it a level": (
        "a split moves all of a chain",
        "two buckets differ",
    ),
    "a split raises the parent's level before it clears": (
        "a split moves all of a chain",
        "two buckets differ",
    ),
    "a merge fills the parent before it lowers the level": (
        "a merge while its keys are written",
        "two buckets differ",
    ),
    "a merge lowers the child's level before it clears": (
        "a merge while its keys are written",
        "two buckets differ",
    ),
}

OF_NUMBERS = {
    "no bucket is born at the number or above": (
        "the number goes down below a split",
        "is there, of",
    ),
    "the number is lowered under the lock of who has the entries": (
        "a split is passed, and the number goes down again",
        "is there, of 2",
    ),
    "a split looks at the parent's level when it has the lock": (
        "two make up for a gap",
        "",
    ),
    "a merge looks at both levels when it has the locks": (
        "a split goes on beyond a merge",
        "",
    ),
    "a cleaner begins anew after a split": (
        "a map is cleared while a bucket is split",
        "was never empty",
    ),
    "a cleaner counts splits before it reads the number": (
        "a map is cleared while a bucket is split",
        "was never empty",
    ),
    "a split is counted before its parent is let go": (
        "a map is cleared while a bucket is split",
        "was never empty",
    ),
    "recovery knows a parent that is deeper still": (
        "a merge dies, and others split beyond",
        "no bucket answers",
    ),
}

OF_SUPPLY = {
    "an element is named before it leaves its depot": (
        "who fetches and gives back dies",
        "elements lost",
    ),
    "a detached chain is named before its block is unlocked": (
        "who fetches and gives back dies",
        "elements lost",
    ),
    "credits are named before they move": (
        "who fetches and gives back dies",
        "credits",
    ),
}

OF_RECOVERY = {
    "recovery does more than unlock": (
        "a delete and an insert die",
        "",
    ),
    "recovery copies the redo buffer": (
        "an update dies",
        "by somebody else's work",
    ),
    "recovery lets go of an element by a compare-and-swap": (
        "a section dies while another deletes",
        "",
    ),
    "recovery keeps an element that a slot names": (
        "a delete and an insert die",
        "by somebody else's work",
    ),
    "recovery frees only what the context owns": (
        "a delete and an insert die",
        "by somebody else's work",
    ),
    "recovery finishes a removal": (
        "a removal that moves the last entry dies",
        "",
    ),
    "recovery clears the slot of a DEAD element": (
        "a delete and an insert die",
        "",
    ),
    "recovery finishes a resize after its commit": (
        "a split dies",
        "",
    ),
    "recovery completes credits that have left the header": (
        "who fetches and gives back dies",
        "credits",
    ),
    "one at a time recovers a context": (
        "a delete and an insert die",
        "",
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
)
