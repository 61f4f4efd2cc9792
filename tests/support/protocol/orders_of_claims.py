"""Litmus tests: threads that compute wait for each other's results (claiming.pxi), and results are
invalidated (births.pxd).

Each thread says in its claim which key it waits for, and then checks what the owner of that key's
claim waits for. An invalidation takes its number after the change that is its reason; a computation
loads the number of invalidations before it reads the data for its result.
"""

from support.protocol.litmus import Litmus, cas, fence, load, store
from support.protocol.orders import litmus

FENCE = "claim_leads_here: the fence"


@litmus
def one_of_a_circle_sees_it(o):
    """L1: without this order both threads sleep, each until the next slice of its wait."""

    def waiter(mine, other, register):
        return [
            *store(f"{mine} waits", 1),
            *fence(o.full(FENCE)),
            *load(f"{other} waits", register),
        ]

    return Litmus(
        [waiter("first", "second", "x"), waiter("second", "first", "y")],
        lambda r: r["x"] == 0 and r["y"] == 0,
    )


@litmus
def a_result_with_a_birth_after_an_invalidation_is_made_of_what_was_changed(o):
    """C1: without this order a stale result counts as fresh."""
    invalidation = [
        *store("source", 1),
        *cas("invalidations", 0, 1, release=o.release("invalidate: the number")),
    ]
    computation = [
        *load("invalidations", "birth", o.acquire("birth_now")),
        *load("source", "result"),
    ]
    return Litmus([invalidation, computation], lambda r: r["birth"] == 1 and r["result"] == 0)
