"""Giving memory back while readers may be using it (M1).

Models block_release, block_vacate, memory_is_quiet, op_begin and op_end. Every operation makes its
context's activity odd before its first load; a context that gives memory back first makes the
memory unreachable, and then loads every activity. (orders_of_buckets.py shows that each of the two
sees the other's store. Here all stores are seen at once.)
"""

from support.protocol.automaton import begin, end, load, lock_try, own, put, store
from support.protocol.segment_model import (
    HOLE,
    READY,
    RELEASING,
    block_parts,
    block_word,
    released,
    taken,
)


def announce(m, me):
    """op_begin and op_end: raise the activity, which is odd inside an operation."""
    before = yield own(m.of(me, "activity"))
    yield store(m.of(me, "activity"), before + 1)


def block_release(m, me, block):
    """Give back the memory of a block in which nothing is in use."""
    yield begin("settle")
    yield put(m.of(me, "block"), block * 2 + 1)
    held = yield lock_try(m.block[block], me)
    if held is not None:
        quiet = False
        if block_is_empty(m, block, held):
            quiet = yield from memory_is_quiet(m, me)
        if quiet:
            yield store(m.block[block], taken(block_word(RELEASING, 0, 0, 0), me))
            yield from block_vacate(m, me, block)
        else:
            yield store(m.block[block], released(held))
    yield end()


def block_vacate(m, me, block):
    """Give back the memory of a held RELEASING block; if the memory stays, keep the block."""
    if not m.keeps_memory:
        yield store(m.present[block], 0)
    elif m.keeps("a block that keeps its memory is no hole"):
        empty = block_word(READY, int(block == 0), 0, 0)
        yield store(m.block[block], taken(empty, me))
        yield store(m.block[block], empty)
        return
    yield store(m.block[block], block_word(HOLE, 0, 0, 0))


def block_is_empty(m, block, held):
    state, fresh, free, _ = block_parts(held)
    unused = free + m.block_capacity - fresh
    return state == READY and unused == m.block_capacity - (block == 0)


def memory_is_quiet(m, me):
    """Whether every operation that began before this call has ended."""
    if not m.keeps("memory is released when no operation can still use it"):
        return True
    for context in range(1, m.contexts + 1):
        if context != me:
            seen = yield load(m.of(context, "activity"))
            if seen & 1:
                again = yield load(m.of(context, "activity"))
                if again == seen:
                    return False
    return True
