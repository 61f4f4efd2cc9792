"""Elements, lines and credits: taking them and giving them back (W2, C1).

Models depot.pxd and the parts of pool.pxd that move one block of memory or a chain of them. Each
depot, the header's credits and each block is one lock word; the store that unlocks it commits the
taking of an element with its credit, or the giving back. While an element or line moves, a field of
the taker's context names it, and its header names its owner.
"""

from support.protocol.automaton import begin, end, load, lock, lock_try, own, put, store
from support.protocol.segment_model import (
    ALLOC,
    FREE,
    GIVEN,
    PAYLOAD_SHIFT,
    READY,
    block_parts,
    block_word,
    depot_parts,
    depot_word,
    owner_of,
    released,
    taken,
)

NEED = "NEED"  # no block has a free element
FULL = "FULL"
BUSY = "BUSY"
OK = "OK"


# ---- depots ----


def depot_hold(m, me, depot, take):
    """Name a depot in the context and lock it; take is lock or lock_try."""
    yield put(m.of(me, "depot"), depot + 1)
    held = yield take(m.depot[depot], me)
    return held


def element_take(m, me):
    """Take an element and a credit into context.element: OK, FULL or NEED."""
    outcome = FULL
    for turn in range(m.depots):
        depot = (me + turn) % m.depots
        spent = yield from depot_is_spent(m, depot)
        if spent:
            continue
        status = yield from depot_take(m, me, depot)
        if status == OK:
            return OK
        if status != FULL:
            outcome = status
    return outcome


def depot_is_spent(m, depot):
    """Whether neither a depot nor the header has a credit; takes no lock."""
    header = yield load(m.credits)
    if header >> PAYLOAD_SHIFT:
        return False
    word = yield load(m.depot[depot])
    return owner_of(word) == 0 and depot_parts(word)[2] == 0


def depot_take(m, me, depot):
    """Take an element and a credit from one depot into context.element."""
    held = yield from depot_hold(m, me, depot, lock)
    status = OK
    if depot_parts(held)[2] == 0:
        status, held = yield from credits_move(m, me, depot, held, True)
    if status == OK and depot_parts(held)[1] == 0:
        status, held = yield from depot_refill(m, me, depot, held)
    if status != OK:
        yield store(m.depot[depot], released(held))
        return status
    head, count, credit = depot_parts(held)
    following = yield own(m.next_free(head))
    named = m.keeps("an element is named before it leaves its depot")
    if named:
        yield put(m.of(me, "element"), head)
    header = yield own(m.element[head])
    yield store(m.element[head], m.header_after(header, ALLOC, me))
    yield store(m.depot[depot], depot_word(following, count - 1, credit - 1))
    if not named:
        yield put(m.of(me, "element"), head)
    return OK


def element_give(m, me):
    """Give back the element that context.element names, ALLOC or DEAD, and its credit."""
    element = yield own(m.of(me, "element"))
    depot = me % m.depots
    held = yield from depot_hold(m, me, depot, lock)
    head, count, credit = depot_parts(held)
    header = yield own(m.element[element])
    if not m.keeps("an element's version continues in its next life"):
        header = 0
    yield store(m.next_free(element), head)
    yield store(m.element[element], m.header_after(header, FREE))
    yield store(m.depot[depot], depot_word(element, count + 1, credit + 1))
    yield put(m.of(me, "element"), 0)


def depot_refill(m, me, depot, held):
    """Fetch elements from a block into the held depot."""
    status, first, tail, count = yield from pool_detach(m, me)
    if status != OK:
        return status, held
    head, parked, credit = depot_parts(held)
    yield store(m.next_free(tail), head)
    held = taken(depot_word(first, parked + count, credit), me)
    yield store(m.depot[depot], held)
    yield put(m.of(me, "list_count"), 0)
    return OK, held


def credits_move(m, me, depot, held, fetch):
    """Fetch up to two credits from the header into the held depot, or return up to two."""
    if fetch:
        word = yield load(m.credits)
        if word >> PAYLOAD_SHIFT == 0:
            return FULL, held
    word = yield lock(m.credits, me)
    available = word >> PAYLOAD_SHIFT
    head, count, credit = depot_parts(held)
    moving = min(2, available) if fetch else -min(2, credit)
    yield put(m.of(me, "credit_after"), credit + moving)
    if m.keeps("credits are named before they move"):
        yield put(m.of(me, "credit_moving"), 1)
    yield store(m.credits, (available - moving) << PAYLOAD_SHIFT)
    held = taken(depot_word(head, count, credit + moving), me)
    yield store(m.depot[depot], held)
    yield put(m.of(me, "credit_moving"), 0)
    return (OK if moving else FULL), held


def depot_trim(m, me):
    """Return credits, and move the first run of a depot into its block."""
    yield begin("settle")
    depot = me % m.depots
    held = yield from depot_hold(m, me, depot, lock_try)
    if held is not None:
        _, held = yield from credits_move(m, me, depot, held, False)
        if depot_parts(held)[1]:
            held = yield from depot_push_down(m, me, depot, held)
        yield store(m.depot[depot], released(held))
    yield end()


def depot_push_down(m, me, depot, held):
    """Move the held depot's first run, here up to two elements of one block, into that block,
    unless the block is held."""
    head, count, credit = depot_parts(held)
    block = head // m.block_capacity
    yield put(m.of(me, "block"), block * 2 + 1)
    block_held = yield lock_try(m.block[block], me)
    if block_held is None:
        return held
    run = (head,)
    rest = yield own(m.next_free(head))
    if count > 1 and rest // m.block_capacity == block:
        run = (head, rest)
        rest = yield own(m.next_free(rest))
    yield put(m.of(me, "list_head"), run[0])
    yield put(m.of(me, "list_tail"), run[-1])
    if m.keeps("a run is named before it leaves its depot"):
        given = GIVEN if m.keeps("the name of a run says where it goes") else 0
        yield put(m.of(me, "list_count"), len(run) | given)
    if not m.keeps("a run is linked to its block's list after it has left its depot"):
        yield store(m.next_free(run[-1]), block * m.block_capacity + block_parts(block_held)[3])
    held = taken(depot_word(rest, count - len(run), credit), me)
    yield store(m.depot[depot], held)
    yield from run_put(m, m.block[block], run[0], run[-1], len(run))
    if m.keeps("the name of a run ends before its depot is unlocked"):
        yield put(m.of(me, "list_count"), 0)
    return held


# ---- blocks ----


def pool_detach(m, me):
    """Take up to two FREE elements, as a list that context.list_head and list_tail name."""
    for block in range(m.block_count):
        word = yield load(m.block[block])
        if owner_of(word) == 0 and block_offers(m, block, word):
            yield put(m.of(me, "block"), block * 2 + 1)
            held = yield lock_try(m.block[block], me)
            if held is None:
                continue
            if block_offers(m, block, held):
                return (yield from block_detach(m, me, block, held))
            yield store(m.block[block], released(held))
    return NEED, 0, 0, 0


def block_limit(m, block):
    """How many elements a block has, used or not."""
    return min(m.block_capacity, m.elements + 1 - block * m.block_capacity)


def block_offers(m, block, word):
    state, fresh, free, _ = block_parts(word)
    return state == READY and (free > 0 or fresh < block_limit(m, block))


def block_detach(m, me, block, held):
    _, fresh, free, place = block_parts(held)
    base = block * m.block_capacity
    chain = ()
    while len(chain) < 2 and (free or fresh < block_limit(m, block)):
        if free:
            following = yield own(m.next_free(base + place))
            chain = (*chain, base + place)
            place, free = following - base, free - 1
            del following
        else:
            if chain:
                yield store(m.next_free(chain[-1]), base + fresh)
            chain = (*chain, base + fresh)
            fresh += 1
    yield put(m.of(me, "list_head"), chain[0])
    yield put(m.of(me, "list_tail"), chain[-1])
    if m.keeps("a detached chain is named before its block is unlocked"):
        yield put(m.of(me, "list_count"), len(chain))
    yield store(m.block[block], block_word(READY, fresh, free, place & 15 if free else 0))
    return OK, chain[0], chain[-1], len(chain)


def run_put(m, word, first, last, count):
    """Put a run of FREE elements, linked already, before the list of its held block; one store
    commits. Recovery repeats this."""
    held = yield own(word)
    state, fresh, free, head = block_parts(held)
    base = m.block.index(word) * m.block_capacity
    yield store(m.next_free(last), base + head)
    yield store(word, block_word(state, fresh, free + count, first - base))


def line_put_locked(m, held, line):
    """Put an owned ALLOC line into its block, whose word is held; one store commits."""
    state, fresh, free, head = block_parts(held)
    yield store(m.line_next(line), head)
    header = yield own(m.line[line])
    yield store(m.line[line], m.header_after(header, FREE))
    yield store(m.line_block, block_word(state, fresh, free + 1, line))


# ---- lines ----


def line_take(m, me):
    """Take a line into context.line, ALLOC: from the context's stash, else from the block; 0 if
    neither has one."""
    stash = yield own(m.of(me, "line_stash"))
    if stash:
        yield put(m.of(me, "line"), stash)
        following = yield own(m.line_next(stash))
        yield put(m.of(me, "line_stash"), following)
        return stash
    yield put(m.of(me, "block"), 2)
    held = yield lock(m.line_block, me)
    _, fresh, free, head = block_parts(held)
    line = head if free else fresh
    if line > m.lines:
        yield store(m.line_block, released(held))
        return 0
    following = 0
    if free:
        following = yield own(m.line_next(line))
    yield put(m.of(me, "line"), line)
    header = yield own(m.line[line])
    yield store(m.line[line], m.header_after(header, ALLOC, me))
    after = (
        block_word(READY, fresh, free - 1, following & 15)
        if free
        else block_word(READY, fresh + 1, 0, 0)
    )
    yield store(m.line_block, after)
    return line


def lines_give(m, me):
    """The part of op_give_back that gives back the lines of the stash, one by one."""
    while True:
        line = yield own(m.of(me, "line_stash"))
        if line == 0:
            return
        yield put(m.of(me, "line"), line)
        following = yield own(m.line_next(line))
        yield put(m.of(me, "line_stash"), following)
        yield put(m.of(me, "block"), 2)
        held = yield lock(m.line_block, me)
        yield from line_put_locked(m, held, line)
        yield put(m.of(me, "line"), 0)


def op_give_back(m, me):
    """Give back the element and the lines that the context still has."""
    element = yield own(m.of(me, "element"))
    if element:
        yield from element_give(m, me)
    yield from lines_give(m, me)
