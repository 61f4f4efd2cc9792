"""Mutants of journaling.py, in the form of those in mutants.py."""

DYING = "a writer dies while two keys change in one step"
HALF = "are not stored in one step"
OTHERS = "in a step of another operation"

OF_JOURNALS = {
    "a journal is committed after its redo buffers are filled": (DYING, HALF),
    "a journal is committed after its elements are held": (DYING, HALF),
    "a member is noted before the commit": (DYING, HALF),
    "a journal holds its elements, so that no deletion cuts them off": (
        "two keys change in one step while one is deleted",
        HALF,
    ),
    "the lead's word stands until every member is applied": (DYING, HALF),
    "recovery asks the lead whether the journal is committed": (DYING, OTHERS),
    "recovery takes the lead last": (DYING, OTHERS),
    "recovery stores what a committed journal stores": (DYING, OTHERS),
    "recovery deletes what a committed journal deletes": (
        "a writer dies while it deletes two keys in one step",
        OTHERS,
    ),
    "recovery clears the name of an element that is not DEAD yet": (
        "a writer dies while it deletes two keys in one step",
        "which is free",
    ),
}
