"""The images of a campaign; those of stopped operations only if this machine permits stepping."""

import tempfile

from support import stepping
from support.hostile.images import AT_REST, OPERATIONS, at_rest, in_the_middle
from support.hostile.object_images import (
    OBJECT_OPERATIONS,
    OBJECTS_AT_REST,
    object_at_rest,
    objects_in_the_middle,
)


def can_step():
    try:
        with tempfile.TemporaryDirectory() as folder:
            stepping.load(stepping.build(folder))
    except stepping.CannotStep:
        return False
    return stepping.why_not() is None


def resting_images(bases="all"):
    """Images of maps at rest: "plain" ones, those with "objects", or "all"."""
    images = [at_rest(state, "base") for state in AT_REST] if bases != "objects" else []
    if bases != "plain":
        images += [object_at_rest(state, "base") for state in OBJECTS_AT_REST]
    return images


def all_images(stepped, seed, bases="all"):
    """Images at rest and, if stepped is not 0, that many from the middle of each operation."""
    images = resting_images(bases)
    if not stepped or not can_step():
        return images
    if bases != "objects":
        for what in OPERATIONS:
            images += in_the_middle(what, "base", stepped, seed)
    if bases != "plain":
        for what in OBJECT_OPERATIONS:
            images += objects_in_the_middle(what, "base", stepped, seed)
    return images
