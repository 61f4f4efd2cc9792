"""RHashMap.check(): repeats its walk until no other process interferes, and words its findings."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from shmrhash._errors import SegmentCorrupt

_TRIES_MAX = 20

# By the numbers of Problem in check.pxd. {0} is where: an index, or a count.
PROBLEMS = {
    1: "bucket {0} has a level that does not fit the number of buckets",
    2: "bucket {0}, beyond the last, is not empty",
    3: "the chain of bucket {0} has a gap or a line that is nearly empty",
    4: "a reference names {0}, which was never allocated",
    5: "element {0} is named by a bucket but is not live",
    6: "the tag of element {0} is not the hash of its key",
    7: "element {0} is in a bucket to which its hash does not belong",
    8: "the key of element {0} is in the map twice",
    9: "element or line {0} is named twice",
    10: "depot {0} lists an element that is not free",
    11: "block {0} has a damaged word or free list",
    12: "element or line {0} is lost: nothing names it",
    13: "the credits do not add up: there are {0} besides the entries",
    14: "a lock is held although no process is inside an operation (at {0})",
    15: "the table word is damaged: {0} buckets",
    16: "no private memory for the walk",
    17: "object {0} (index * 128 + class) is lost, or named twice",
    18: "the budget of objects counts {0} pages too many (if negative, too few)",
    19: "context {0} names a journal of which it is no member",
    20: "entry {0} (0: a clear() or a tag) has the number of an invalidation that never was",
}

_BUDGET = 18


def _signed(problem: int, where: int) -> int:
    """The number in a message: a difference of the budget has a sign, in 64 bits."""
    return where - (1 << 64) if problem == _BUDGET and where >> 63 else where


def check(
    name: str,
    recover: Callable[[], int],
    walk: Callable[[], tuple[int, int, bool, dict[str, int]]],
) -> dict[str, Any]:
    """Walk until no other process was inside an operation; return the figures of the last walk.

    name: the map's. recover: recovers dead processes, before each walk. walk: returns the number
    of the first problem or 0, where it is, whether the walk was exact, and figures.

    Raises SegmentCorrupt if an exact walk found a problem.
    """
    problem = where = 0
    exact = False
    figures: dict[str, int] = {}
    for attempt in range(_TRIES_MAX):
        recover()
        time.sleep(0.001 * attempt)
        problem, where, exact, figures = walk()
        if exact:
            break
    if problem and exact:
        raise SegmentCorrupt(
            f"map {name!r}: {PROBLEMS[problem].format(_signed(problem, where))}; entries already "
            f"read are good, but do not write to it: copy what you need, unlink and recreate it"
        )
    return {"exact": exact, **figures}
