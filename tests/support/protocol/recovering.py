"""Recovery: a dead context is resumed under its own name (C1, C2).

Models recover_memory.pxd and recover.pxd. Recovery reads what the dead context names, and the lock
word of each of these says whether the context owns it. Every step depends on shared memory alone,
and may be performed twice, because the recoverer may die, too, and the next recoverer goes on.
"""

from support.protocol.automaton import begin, cas, end, load, own, put, seize, store
from support.protocol.chains import (
    chain_bump,
    chain_clear,
    chain_links,
    chain_names,
    chain_remove,
    chain_repair,
    line_stash,
)
from support.protocol.forking import recover_pins
from support.protocol.holding import recover_cell
from support.protocol.journaling import member_committed
from support.protocol.reading import parent_of
from support.protocol.releasing import block_vacate
from support.protocol.resizing import merge_finish, merge_undo, split_finish
from support.protocol.segment_model import (
    ALLOC,
    DELETE,
    FREE,
    GIVEN,
    INSERT,
    JOURNAL_COMMITTED,
    JOURNAL_REMOVES,
    LIVE,
    LOCKED,
    MERGE,
    READY,
    SPLIT,
    ULOCK,
    UPD,
    block_parts,
    depot_parts,
    depot_word,
    level_plus1,
    owner_of,
    released,
    state_of,
    taken,
)
from support.protocol.supply import op_give_back, run_put
from support.protocol.sweeping import rest_begin
from support.protocol.waiting import bells_ring_all
from support.protocol.writing import bucket_release, deadline_stored, delete_held, redo_apply


def recover(m, subject, count=1):
    """process_recover of a process with this many contexts, as soon as the process is dead. seize()
    ensures that there is one recoverer at a time; claiming.py models how the core ensures it."""
    yield seize(subject, m.keeps("one process at a time recovers a context"))
    yield begin("recover")
    if count == 1:
        yield from context_recover(m, subject)
    else:
        yield from contexts_recover(m, subject, count)
    yield store(m.kernel_lock[subject], 0)
    yield end()


def contexts_recover(m, subject, count):
    """contexts_recover: the lead of a committed journal comes after its members."""
    for at in range(2 * count):
        context = subject + at % count
        owner = yield own(m.of(context, "owner"))
        word = yield own(m.of(context, "target"))
        leads = bool(word & JOURNAL_COMMITTED)
        if not m.keeps("recovery takes the lead last"):
            leads = not leads
        if owner and leads == (at >= count):
            yield from context_recover(m, context)


def context_recover(m, subject):
    """Bring the context of a dead process to rest, and free it."""
    activity = yield own(m.of(subject, "activity"))
    if not activity & 1:
        yield store(m.of(subject, "activity"), activity + 1)
    if m.keeps("recovery does more than unlock"):
        yield from recover_depot(m, subject)
        yield from recover_element(m, subject)
        yield from recover_bucket(m, subject)
        if m.journal and m.keeps("recovery deletes what a committed journal deletes"):
            yield from recover_removal(m, subject)
        yield from recover_give_back(m, subject)
        if m.pins:
            owner = yield own(m.of(subject, "owner"))
            yield from recover_pins(m, subject, owner)
        if m.timed and m.keeps("recovery ends the claim of a dead context"):
            yield from rest_begin(m, subject, 0)
        if m.cell:
            yield from recover_cell(m, subject)
        if (
            m.waiters
            and not m.cell
            and m.keeps("a recoverer rings the bells that the dead process did not")
        ):
            yield from bells_ring_all(m)
    else:
        yield from unlock_everything(m, subject)
    if m.journal:
        yield put(m.of(subject, "target"), 0)
    activity = yield own(m.of(subject, "activity"))
    yield store(m.of(subject, "activity"), activity + 1)
    yield store(m.of(subject, "owner"), 0)


def unlock_everything(m, me):
    """What a mutant does instead of recovery: release every lock word that the context holds."""
    words = (m.table, m.credits, m.line_block, *m.depot, *m.block, *m.bucket, *m.element[1:])
    for at in range(len(words)):
        word = yield load(words[at])
        if owner_of(word) == me:
            state = LIVE if words[at] in m.element else 0
            yield store(words[at], m.header_after(word, LIVE) if state else released(word))


# ---- depots, credits, blocks ----


def recover_depot(m, me):
    """Elements and credits on their way between the held depot and a block, the header or the
    context."""
    name = yield own(m.of(me, "depot"))
    held = 0
    if name:
        held = yield load(m.depot[name - 1])
    if owner_of(held) != me:
        yield from recover_block(m, me)
        return
    depot = m.depot[name - 1]
    yield from recover_list(m, me, depot)
    yield from recover_credits(m, me, depot)
    yield from recover_in_depot(m, me, depot)
    yield from recover_block(m, me)
    held = yield own(depot)
    yield store(depot, released(held))


def recover_list(m, me, depot):
    """Elements on their way from a block to the held depot, or from the depot to a block."""
    word = yield own(depot)
    count = yield own(m.of(me, "list_count"))
    first = yield own(m.of(me, "list_head"))
    block = yield from block_named(m, me)
    head, parked, credit = depot_parts(word)
    if count & GIVEN:
        left = head != first or not m.keeps("recovery leaves a run that has not left its depot")
        completes = m.keeps("recovery completes a run that has left its depot")
        if block is not None and left and completes:
            tail = yield own(m.of(me, "list_tail"))
            yield from run_put(m, block[0], first, tail, count - GIVEN)
    elif count and block is None and head != first:
        tail = yield own(m.of(me, "list_tail"))
        yield store(m.next_free(tail), head)
        yield store(depot, taken(depot_word(first, parked + count, credit), me))
    yield put(m.of(me, "list_count"), 0)


def recover_credits(m, me, depot):
    """Credits on their way between the header and the held depot."""
    header = yield load(m.credits)
    moving = yield own(m.of(me, "credit_moving"))
    if owner_of(header) == me:
        yield put(m.of(me, "credit_moving"), 0)
        yield store(m.credits, released(header))
    elif moving and m.keeps("recovery completes credits that have left the header"):
        word = yield own(depot)
        after = yield own(m.of(me, "credit_after"))
        head, count, _ = depot_parts(word)
        yield store(depot, taken(depot_word(head, count, after), me))
        yield put(m.of(me, "credit_moving"), 0)


def recover_in_depot(m, me, depot):
    """An element and its credit on their way between the held depot and the context."""
    word = yield own(depot)
    head, _, _ = depot_parts(word)
    element = yield own(m.of(me, "element"))
    if element == 0:
        return
    header = yield load(m.element[element])
    if element == head:
        yield from set_state(m, m.element[element], FREE)
        yield put(m.of(me, "element"), 0)
    elif state_of(header) == FREE:
        yield from set_state(m, m.element[element], ALLOC, me)


def set_state(m, address, state, me=0):
    header = yield own(address)
    yield store(address, m.header_after(header, state, me))


def block_named(m, me):
    """(address of the word, whether it is the lines' block) of the held block, or None."""
    name = yield own(m.of(me, "block"))
    if name == 0:
        return None
    lines = name % 2 == 0
    word_at = m.line_block if lines else m.block[(name - 1) // 2]
    word = yield load(word_at)
    return (word_at, lines) if owner_of(word) == me else None


def recover_block(m, me):
    """A line on its way between the held block and the context."""
    block = yield from block_named(m, me)
    if block is None:
        return
    word_at, lines = block
    word = yield own(word_at)
    state, fresh, free, head = block_parts(word)
    if state != READY:
        yield from block_vacate(m, me, m.block.index(word_at))
        return
    name = yield own(m.of(me, "line"))
    if lines and name:
        header = yield own(m.line[name])
        if (free and name == head) or name >= fresh:
            yield from set_state(m, m.line[name], FREE)
            yield put(m.of(me, "line"), 0)
        elif state_of(header) == FREE:
            yield from set_state(m, m.line[name], ALLOC, me)
    yield store(word_at, released(word))


# ---- elements ----


def recover_element(m, me):
    """An element that the context was changing in place, or that a section holds: UPD is finished;
    in the other states the value is unchanged. One load of the header decides, and a CAS compares
    with it: another context may delete the element that a section holds."""
    word = yield own(m.of(me, "target"))
    index = word & 15
    if index == 0:
        return
    header = yield load(m.element[index])
    if owner_of(header) != me or state_of(header) not in (UPD, ULOCK, LOCKED):
        return
    committed = False
    if m.journal and state_of(header) == ULOCK:
        committed = yield from member_committed(m, me)
    if committed and word & JOURNAL_REMOVES:
        if m.keeps("recovery clears the name of an element that is not DEAD yet"):
            yield put(m.of(me, "element"), 0)
        return
    if committed and m.keeps("recovery stores what a committed journal stores"):
        header = m.header_after(header, UPD, me)
        yield store(m.element[index], header)
    if state_of(header) == UPD and m.keeps("recovery copies the redo buffer"):
        yield from redo_apply(m, me, index)
    if state_of(header) == UPD and m.keeps("recovery ends a rest, too"):
        value = yield own(m.redo(me, 0))
        yield from deadline_stored(m, value, True)
    if m.keeps("recovery releases an element by a compare-and-swap"):
        yield cas(m.element[index], header, m.header_after(header, LIVE))
    else:
        yield store(m.element[index], m.header_after(header, LIVE))


def recover_removal(m, me):
    """Delete the key of a committed member that deletes. Its bucket is not held by now."""
    word = yield own(m.of(me, "target"))
    if not word & JOURNAL_REMOVES:
        return
    header = yield load(m.element[word & 15])
    if owner_of(header) != me or state_of(header) != ULOCK:
        return
    committed = yield from member_committed(m, me)
    if committed:
        key = yield own(m.key(word & 15))
        yield from delete_held(m, me, key, header)


# ---- buckets ----


def recover_bucket(m, me):
    """The operation that the dead context was performing in the bucket that it holds."""
    operation = yield own(m.of(me, "operation"))
    at = yield own(m.of(me, "bucket"))
    header = yield load(m.bucket[at])
    if owner_of(header) != me:
        return
    if operation == INSERT:
        yield from recover_insert(m, me, m.bucket[at])
    elif operation == DELETE:
        yield from recover_delete(m, me, m.bucket[at])
    elif operation in (SPLIT, MERGE):
        yield from recover_resize(m, me, operation == SPLIT)
    else:
        yield store(m.bucket[at], released(header))


def recover_lines(m, me, buckets):
    """A line that a held chain links belongs to it; another line of the context is stashed."""
    line = yield own(m.of(me, "line"))
    if line == 0:
        return
    header = yield load(m.line[line])
    if owner_of(header) != me:
        return
    for at in range(len(buckets)):
        linked = yield from chain_links(m, buckets[at], m.line[line])
        if linked:
            yield store(m.line[line], m.header_after(header, LIVE))
            yield put(m.of(me, "line"), 0)
            return
    if m.keeps("recovery stashes an unlinked line before it unlinks another"):
        yield from line_keep(m, me, line, buckets)


def line_keep(m, me, line, buckets=()):
    """Stash context.line, unless it is stashed; it may have been unlinked from these buckets."""
    stash = yield own(m.of(me, "line_stash"))
    if stash != line and m.keeps("recovery raises the version before it empties a line"):
        for at in range(len(buckets)):
            yield from chain_bump(m, buckets[at])
    if stash != line:
        yield from line_stash(m, me)
    yield put(m.of(me, "line"), 0)


def recover_insert(m, me, bucket):
    """An element that a slot names is inserted. Else undo the insertion, even of a LIVE one."""
    yield from recover_lines(m, me, (bucket,))
    yield from chain_repair(m, me, bucket)
    index = yield own(m.of(me, "element"))
    if index:
        named = None
        if m.keeps("recovery keeps an element that a slot names"):
            named = yield from chain_names(m, bucket, index)
        header = yield load(m.element[index])
        if named:
            yield put(m.of(me, "element"), 0)
        elif state_of(header) == LIVE:
            yield store(m.element[index], m.header_after(header, ALLOC, me))
    yield from bucket_release(m, bucket)


def recover_delete(m, me, bucket):
    """If the element is DEAD, clear its slot. Otherwise the deletion has not taken effect."""
    yield from recover_lines(m, me, (bucket,))
    if m.keeps("recovery finishes a removal"):
        yield from chain_repair(m, me, bucket)
    index = yield own(m.of(me, "element"))
    header = 0
    if index:
        header = yield load(m.element[index])
    if owner_of(header) == me and m.keeps("recovery clears the slot of a DEAD element"):
        named = yield from chain_names(m, bucket, index)
        if named:
            line, slot = named
            yield from chain_remove(m, me, bucket, line, slot)
    yield from bucket_release(m, bucket)


def recover_resize(m, me, is_split):
    """A split or merge whose parent is held: undo it before its commit, finish it after. The number
    of buckets needs no repair: a bucket below it that is not there is a gap."""
    child_at = yield own(m.of(me, "child"))
    level = child_at.bit_length() - 1
    parent, child = m.bucket[parent_of(child_at)], m.bucket[child_at]
    parent_header = yield own(parent)
    child_header = yield load(child)
    mine = owner_of(child_header) == me  # else it was not locked yet, or is unlocked again
    yield from recover_lines(m, me, (parent, child) if mine else (parent,))
    yield from chain_repair(m, me, parent)
    deep = level_plus1(parent_header) >= level + 2
    if not m.keeps("recovery accepts a parent that was split once more"):
        deep = level_plus1(parent_header) == level + 2
    committed = level_plus1(child_header) if is_split else not deep
    if not m.keeps("recovery finishes a resize after its commit"):
        committed = not committed
    if mine and is_split and committed:
        yield from split_finish(m, me, parent, level)
    elif not is_split and not committed:
        yield from merge_undo(m, me, parent, 1 << level)
    if mine:
        if is_split and not committed:
            yield from chain_clear(m, me, child)
        elif not is_split and committed:
            yield from merge_finish(m, me, child)
        yield from bucket_release(m, child)
    yield from bucket_release(m, parent)


# ---- the rest ----


def recover_give_back(m, me):
    """Give back the elements and lines that the context still owns."""
    line = yield own(m.of(me, "line"))
    header = 0
    if line:
        header = yield load(m.line[line])
    if owner_of(header) == me:
        yield from line_keep(m, me, line)
    yield put(m.of(me, "line"), 0)
    element = yield own(m.of(me, "element"))
    if element:
        header = yield load(m.element[element])
        if owner_of(header) != me and m.keeps("recovery frees only what the context owns"):
            yield put(m.of(me, "element"), 0)
    yield from op_give_back(m, me)
