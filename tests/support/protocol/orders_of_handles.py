"""Litmus tests: the threads of one process share a handle, on a Python without the GIL (gil.h).

An operation counts itself, and then checks whether the handle is closed; close() marks the handle
as closed, and then checks the count.
"""

from support.protocol.litmus import Litmus, fence, load, store
from support.protocol.orders import litmus

CLOSED = "close: the fence"
COUNTED = "count_add: the fence"


@litmus
def an_operation_or_the_end_of_its_handle_sees_the_other(o):
    """Without this order the handle's slot and contexts are given back during an operation."""
    operation = [*store("in flight", 1), *fence(o.full(COUNTED)), *load("closed", "closed")]
    closing = [*store("closed", 1), *fence(o.full(CLOSED)), *load("in flight", "count")]
    return Litmus([operation, closing], lambda r: r["closed"] == 0 and r["count"] == 0)
