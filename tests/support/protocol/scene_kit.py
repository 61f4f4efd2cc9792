"""The vocabulary in which scenes are written.

Keys are small numbers on purpose, equal to those of elements and lines: a mistaken number should
look like a valid one. With two slots a bucket takes two entries, or one and a link; the third entry
stands in a line.
"""

from support.protocol.scene import Scene, reads, recovers, writes

SAME = {1: 0, 2: 0, 3: 0, 4: 0}  # one hash for all keys: tags tell nothing
APART = {1: 0, 2: 1, 3: 2, 4: 3}  # a split parts odd keys from even ones
ODD = {1: 1, 2: 3, 3: 5, 4: 7}  # a split moves all of them

ONE, TWO, THREE, FOUR = ({key: key for key in range(1, count + 1)} for count in range(1, 5))

LINES = {"lines": 2, "elements": 4}
TABLE = {"buckets": 2, "lines": 2, "elements": 4}
FEW_LINES = {"buckets": 2, "lines": 1, "elements": 3}
MEMORY = {"elements": 3, "block_capacity": 2}
SUPPLY = {"elements": 5, "block_capacity": 3, "depots": 2}
RECOVERERS = (recovers(1, mortal=True), recovers(1))  # the first may die, too


def scene(*programs, **facts):
    return Scene([*programs], **facts)


def reading(operation, *changes, **facts):
    """One reader, and one writer that makes these changes one after the other."""
    return scene(reads(operation), writes(1, *changes), **facts)


def dying(*changes, others=(), **facts):
    """A writer that may die at any step, and its recoverers, of which the first may die, too."""
    mortal = writes(1, *changes, mortal=True)
    return scene(*others, mortal, *RECOVERERS, deaths=2, **facts)
