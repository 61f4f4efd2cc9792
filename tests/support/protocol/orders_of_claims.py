"""A litmus test: threads that compute wait for each other's results (claiming.pxi).

Each thread says in its claim what it waits for, and then looks what the owner of that waits for.
"""

from support.protocol.litmus import Litmus, fence, load, store
from support.protocol.orders import litmus

FENCE = "claim_leads_here: the fence"


@litmus
def one_of_a_circle_sees_it(o):
    """L1: otherwise both sleep, each until the next slice of its wait."""

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
