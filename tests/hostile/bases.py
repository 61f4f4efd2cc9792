"""The images of a campaign, where this machine can make them."""

import sys
import tempfile
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1] / "crash"))

import stepping
from images import AT_REST, OPERATIONS, at_rest, in_the_middle


def can_step():
    try:
        with tempfile.TemporaryDirectory() as folder:
            stepping.load(stepping.build(folder))
    except stepping.CannotStep:
        return False
    return stepping.why_not() is None


def all_images(stepped, seed):
    """Images at rest and, if stepped, so many of each operation in its middle."""
    images = [at_rest(state, "base") for state in AT_REST]
    if stepped and can_step():
        for what in OPERATIONS:
            images += in_the_middle(what, "base", stepped, seed)
    return images
