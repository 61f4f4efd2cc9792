# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# Recovery: finishing or undoing the operations that a dead process left under way (C1, C2).
#
# Recovery resumes each context of the dead process under that context's own identity: its fields
# name the things that the operation worked on, the lock words of those things name the context as
# their owner, and most of the work is done by the functions that the dead process would have
# called. So a recovering process that dies leaves a state that the dead process itself could have
# left, and the next one continues from it. One process at a time recovers process i: the word
# `recoverer` of slot i names it (liveness.pxd). A process that attaches and finds no free slot
# locks byte i instead (attach.pxd).
#
# Order: the innermost locks first (operation.pxd has the lock order): region, budget, depot with
# credits and block, element, bucket with child; then the context gives back the objects that it
# still owns. Each step looks at shared state only, and repeating a step changes nothing.
#
# The context names the things to look at. It owns a thing if the thing's own lock word says so:
#   region held          unlock: its watermarks are right at every moment
#   depot held           hang in a list taken from a block; complete moved credits; decide whether
#                        an object on its way belongs to the depot or the context; unlock
#   block held           HOLE, RELEASING: remove its memory; READY: see pool.pxd
#   budget held          unlock, as context.budget_after says (region.pxd)
#   element UPD          redo -> value, LIVE         ULOCK, LOCKED   LIVE
#   ULOCK in a journal   if its lead is committed: UPD, or the key is deleted (journal.pxd)
#   bucket, INSERT       if a slot names the element, the insert is done; else the element is freed
#   bucket, DELETE       if the element is DEAD, its slot is cleared; else nothing has happened
#   a cell (a space)     what the context holds of it is released (recover_cells.pxd)
#   bucket, SPLIT/MERGE  undone if it was not committed, else finished (resize.pxd)
# The cost depends on the length of one chain, not on the number of entries.
from libc.stdint cimport int64_t, uint32_t, uint64_t, uint8_t
from machine.atomics cimport (
    load_relaxed_u64, load_acquire_u64, store_relaxed_u64, store_release_u64, add_relaxed_u64,
    cas_acq_rel_u64, fence_release, compiler_fence, count_leading_zeros, copy_words,
)
from machine.hashing cimport hash_key
from machine.system cimport CLOCK_MONOTONIC, clock_ns
from segment.status cimport Status, OK, ABSENT, BUSY, RETRY
from segment.layout cimport (
    PROCESS_MAX, BUCKET_COUNT_MIN, ELEMENT_ALLOC, ELEMENT_LIVE, ELEMENT_UPD, ELEMENT_ULOCK,
    ELEMENT_LOCKED, OPERATION_NONE, OPERATION_INSERT, OPERATION_DELETE, OPERATION_SPLIT,
    OPERATION_MERGE, JOURNAL_REMOVES, Context, Bucket, Element,
)
from segment.words cimport (
    word_locked, word_owner, word_held_by, bucket_level_plus1, element_state, element_header,
    lock_bits, target_index, target_lead,
)
from segment.geometry cimport (
    Map, bucket_at, line_at, element_at, element_value, context_at, context_redo, contexts_usable,
    processes_usable, checked_index,
)
from memory.operation cimport Op, lock_release, op_holds, header_set, context_begin
from memory.budget cimport budget_recover
from memory.pool cimport object_memory_ready
from map.rest cimport rest_forget, rest_shorten
from map.ring cimport ring_recover
from map.bell cimport waiting_recover
from map.chain cimport (
    Found, chain_bump, chain_links, chain_names, line_stash, chain_remove, chain_repair,
    chain_clear,
)
from map.reference cimport refs_exchange
from map.table cimport bucket_parent, bucket_release
from map.resize cimport split_finish, merge_finish, merge_undo
from map.hold cimport line_is_held, op_give_back
from map.remove cimport map_clear, map_delete_held
from map.journal cimport context_leads, journal_is_committed
from processes.liveness cimport process_is_dead, recoverer_enter, recoverer_leave, recoverers_forget
from processes.recover_cells cimport recover_cell
from processes.recover_memory cimport (
    recover_regions, bucket_there, recover_depot, recover_growth, recover_pins,
)

cdef inline Status recover_element(Op *op) noexcept nogil:
    """Settle an element that was being changed in place, or that a section held. BUSY: its block
    is held."""
    cdef uint64_t index = target_index(load_relaxed_u64(&op.context.target))
    cdef Element *element
    cdef uint64_t header
    cdef Status status
    if index == 0 or index >= op.map.element_max:
        return OK
    element = element_at(op.map, index)
    status = object_memory_ready(op, &op.map.element_pool, index)   # target may be old
    if status != OK:
        return OK if status == ABSENT else BUSY
    # Acquire: the redo buffer and the value are as the dead process left them. The header is loaded
    # once: another process may delete an element that a section holds while this function runs.
    header = load_acquire_u64(&element.header)
    if not word_held_by(header, op.self_index):
        return OK
    if element_state(header) == ELEMENT_ULOCK and journal_is_committed(op.map, op.context):
        if load_relaxed_u64(&op.context.target) & JOURNAL_REMOVES:
            # It is not DEAD yet, so it is not what context.element stands for. recover_removal
            # begins the deletion again.
            if op.context.element == index:
                store_relaxed_u64(&op.context.element, 0)
            return OK
        header = element_header(header, ELEMENT_UPD, lock_bits(op.self_index))
        # Release: the redo buffer, for readers that meet UPD; pairs with the acquire of the header
        # in chain_find.
        store_release_u64(&element.header, header)
        fence_release()                        # as in element_redo
    if element_state(header) == ELEMENT_UPD:
        if op.map.ref_count != 0:
            refs_exchange(op, element)
        else:
            copy_words(element_value(op.map, element), context_redo(op.context), op.map.value_words)
        if op.map.timer_word != 0:             # the dead process may not have reached this step
            rest_shorten(op.map, load_relaxed_u64(
                element_value(op.map, element) + op.map.timer_word - 1))
        add_relaxed_u64(&op.map.header.statistics.operations_finished, 1)
    elif element_state(header) == ELEMENT_ULOCK or element_state(header) == ELEMENT_LOCKED:
        add_relaxed_u64(&op.map.header.statistics.operations_undone, 1)
    else:
        return OK
    # Release: the value's words; pairs with the acquire of the header in chain_find.
    cas_acq_rel_u64(&element.header, header, element_header(header, ELEMENT_LIVE, 0))
    return OK

cdef inline void recover_line(Op *op, Bucket *bucket, Bucket *other) noexcept nogil:
    """Settle the line that was on its way into or out of a chain. If a held chain links it, it
    belongs to that chain; else it is stashed, before context.line has to name the next line."""
    cdef uint64_t index = load_relaxed_u64(&op.context.line)
    cdef Bucket *line
    if not line_is_held(op, index):
        return
    if chain_links(op.map, bucket, index) or (
            other != NULL and chain_links(op.map, other, index)):
        line = line_at(op.map, index)
        header_set(&line.header, ELEMENT_LIVE, 0)
        compiler_fence()
        op.context.line = 0
        compiler_fence()
    elif op.context.line_stash != index:
        # The line may have been unlinked just before the death. A reader that still stands on it
        # must not take the emptied line for a miss: raise the version, then empty the line.
        chain_bump(bucket)
        if other != NULL:
            chain_bump(other)
        line_stash(op)

cdef inline void recover_insert(Op *op, Bucket *bucket) noexcept nogil:
    cdef Found found
    cdef Element *element
    recover_line(op, bucket, NULL)
    chain_repair(op, bucket)
    if op.context.element != 0:
        element = element_at(
            op.map, checked_index(&op.map.element_pool, load_relaxed_u64(&op.context.element)))
        if chain_names(op.map, bucket, <uint32_t> op.context.element, NULL, 0, &found):
            store_relaxed_u64(&op.context.element, 0)
            add_relaxed_u64(&op.map.header.statistics.operations_finished, 1)
        elif element_state(load_relaxed_u64(&element.header)) == ELEMENT_LIVE:
            header_set(&element.header, ELEMENT_ALLOC, lock_bits(op.self_index))
        compiler_fence()
    bucket_release(bucket)

cdef inline void recover_delete(Op *op, Bucket *bucket) noexcept nogil:
    cdef Found found
    cdef uint64_t index = checked_index(
        &op.map.element_pool, load_relaxed_u64(&op.context.element))
    recover_line(op, bucket, NULL)
    chain_repair(op, bucket)
    if index != 0 and op_holds(op, &element_at(op.map, index).header):
        if chain_names(op.map, bucket, <uint32_t> index, NULL, 0, &found):
            chain_remove(op, bucket, found.line, found.slot)
        add_relaxed_u64(&op.map.header.statistics.operations_finished, 1)
    bucket_release(bucket)

cdef inline void recover_resize(
        Op *op, Bucket *parent, uint64_t child_index, bint split) noexcept nogil:
    """Finish or undo a split or merge whose parent is held. The number of buckets needs no repair:
    a bucket below it that does not exist is a gap."""
    cdef uint32_t level = 63 - count_leading_zeros(child_index)
    cdef Bucket *child = bucket_at(op.map, child_index)
    cdef bint parent_is_deep
    # A child that is not held was not locked yet, or was released already; another context may hold
    # it now.
    cdef bint child_held = op_holds(op, &child.header)
    recover_line(op, parent, child if child_held else NULL)
    chain_repair(op, parent)
    parent_is_deep = bucket_level_plus1(load_relaxed_u64(&parent.header)) >= level + 2
    if child_held and split and bucket_level_plus1(load_relaxed_u64(&child.header)) != 0:
        split_finish(op, parent, child, level)
    elif child_held and split:
        chain_clear(op, child)
    elif child_held and not parent_is_deep:
        merge_finish(op, child)
    elif not split and parent_is_deep:
        merge_undo(op, parent, level)
    if child_held:
        bucket_release(child)
    bucket_release(parent)

cdef inline Status recover_bucket(Op *op) noexcept nogil:
    cdef Context *context = op.context
    cdef uint64_t index = load_relaxed_u64(&context.bucket)
    cdef uint64_t child = load_relaxed_u64(&context.child)
    cdef Bucket *bucket
    cdef Status status = bucket_there(op, index)
    if status != OK:
        return OK if status == ABSENT else BUSY
    bucket = bucket_at(op.map, index)
    if not op_holds(op, &bucket.header):
        return OK
    if context.operation == OPERATION_INSERT:
        recover_insert(op, bucket)
    elif context.operation == OPERATION_DELETE:
        recover_delete(op, bucket)
    elif (context.operation == OPERATION_SPLIT or context.operation == OPERATION_MERGE) and (
            child >= BUCKET_COUNT_MIN and bucket_parent(child) == index):
        status = bucket_there(op, child)
        if status == OK:
            recover_resize(op, bucket, child, context.operation == OPERATION_SPLIT)
    else:
        status = ABSENT
    if status == ABSENT:
        lock_release(&bucket.header, load_relaxed_u64(&bucket.header))
    return BUSY if status == BUSY else OK

cdef inline Status recover_give_back(Op *op) noexcept nogil:
    """Give back the objects that the context still owns."""
    cdef Context *context = op.context
    if line_is_held(op, op.context.line) and context.line_stash != context.line:
        line_stash(op)
    context.line = 0
    if context.element != 0 and not op_holds(
            op, &element_at(op.map, checked_index(&op.map.element_pool, context.element)).header):
        store_relaxed_u64(&context.element, 0)     # it was inserted, or given back
    if context.element != 0:
        add_relaxed_u64(&op.map.header.statistics.operations_undone, 1)
    op_give_back(op)
    if context.element != 0 or context.line_stash != 0 or context.debt != 0:
        return BUSY
    return OK

cdef inline Status recover_removal(Op *op) noexcept nogil:
    """Delete the key of a journal's member, if the journal is committed and its element is still
    held. The context owns nothing else by now."""
    cdef uint64_t word = load_relaxed_u64(&op.context.target)
    cdef uint64_t index = target_index(word)
    cdef Element *element
    cdef uint64_t header
    cdef Status status
    if not word & JOURNAL_REMOVES or index == 0 or index >= op.map.element_max or (
            not journal_is_committed(op.map, op.context)):
        return OK
    element = element_at(op.map, index)
    status = object_memory_ready(op, &op.map.element_pool, index)
    if status != OK:
        return OK if status == ABSENT else BUSY
    header = load_acquire_u64(&element.header)     # acquire: as in recover_element
    if not word_held_by(header, op.self_index) or element_state(header) != ELEMENT_ULOCK:
        return OK
    op.key = <const uint8_t *> &element.words[0]
    op.hash = hash_key(op.map.seeds, op.key, op.map.key_size)
    status = map_delete_held(op, header, NULL)
    if status == ABSENT:                       # only in a damaged segment
        # Release: nothing was written; the order is that of element_release.
        cas_acq_rel_u64(&element.header, header, element_header(header, ELEMENT_LIVE, 0))
    if status == BUSY or status == RETRY or op.context.element != 0 or op.context.debt != 0:
        return BUSY
    add_relaxed_u64(&op.map.header.statistics.operations_finished, 1)
    return OK

cdef inline void context_mend(Map *map, Context *context) noexcept nogil:
    """Clear indices that only a damaged segment can hold."""
    if context.element >= map.element_max:
        context.element = 0
    if context.line >= map.line_max:
        context.line = 0

cdef inline Status context_recover(Map *map, uint64_t index) noexcept nogil:
    """Bring one context of a dead process to rest, and free it. BUSY: another context's lock is in
    the way (the caller does not learn which word, and tries again)."""
    cdef Op op
    cdef Status status
    cdef bint inside
    op.map = map
    op.context = context_at(map, index)
    op.self_index = <uint32_t> index
    op.wait_word = NULL
    op.starving = 0
    op.options = 0
    op.f_lock = False
    op.element_filled = False
    op.made = 0
    context_mend(map, op.context)
    inside = op.context.activity & 1
    if not inside:                             # it died between operations: begin one for it
        context_begin(op.context)
    recover_regions(&op)
    if map.objects != NULL:
        budget_recover(&op)
    recover_depot(&op)
    if map.objects != NULL:
        recover_growth(&op)
    status = recover_element(&op)
    if status != OK:
        return status
    status = recover_bucket(&op)
    if status == OK:
        status = recover_give_back(&op)
    if status == OK:
        status = recover_removal(&op)
    if status == OK and map.objects != NULL:
        status = recover_pins(&op, op.context.owner)
    if status == OK and map.is_space:
        status = recover_cell(&op, map.processes + (op.context.owner - 1))
    if status == OK and op_holds(&op, &map.header.clearing):
        status = map_clear(&op)
        if status == OK:
            lock_release(&map.header.clearing, 0)
    if status != OK:
        return status
    rest_forget(map, <uint32_t> index)
    if inside:
        ring_recover(&op)
    op.context.operation = OPERATION_NONE
    store_relaxed_u64(&op.context.target, 0)   # so it leads no journal, and is a member of none
    if op.context.activity & 1:
        store_release_u64(&op.context.activity, op.context.activity + 1)
    # Release: the context is at rest; pairs with the CAS in context_claim_for.
    store_release_u64(&op.context.owner, 0)
    return OK

cdef inline bint journal_has_members(Map *map, uint64_t lead, uint64_t count) noexcept nogil:
    """Whether any other context of the lead's process is still a member of its journal."""
    cdef uint64_t owner = load_relaxed_u64(&context_at(map, lead).owner)
    cdef uint64_t at
    for at in range(count):                    # at most CONTEXT_MAX
        if at != lead and load_relaxed_u64(&context_at(map, at).owner) == owner and (
                target_lead(load_relaxed_u64(&context_at(map, at).target)) == lead + 1):
            return True
    return False

cdef inline Status contexts_recover(Map *map, uint64_t index) noexcept nogil:
    """Recover all contexts of a dead process, and clear the words that name it as the recoverer of
    others. The lead of a journal comes after its members, which ask it whether it is committed. OK:
    no context is in its name any more."""
    cdef uint64_t at, turn
    cdef uint64_t count = contexts_usable(map)
    cdef Status status = OK
    cdef Status one
    add_relaxed_u64(&map.header.statistics.owners_found_dead, 1)
    for turn in range(2 * count):              # at most 2 * CONTEXT_MAX
        at = turn if turn < count else turn - count
        if load_acquire_u64(&context_at(map, at).owner) == index + 1 and (
                context_leads(map, at) == (turn >= count)):
            one = BUSY
            if turn < count or not journal_has_members(map, at, count):
                one = context_recover(map, at)
            if one != OK:
                status = one
    recoverers_forget(map, index)
    if status == OK:
        waiting_recover(map, index)
    return status

cdef inline void recovery_note(Map *map, int64_t began) noexcept nogil:
    cdef uint64_t spent = <uint64_t> (clock_ns(CLOCK_MONOTONIC) - began)
    add_relaxed_u64(&map.header.statistics.recoveries, 1)
    if spent > load_relaxed_u64(&map.header.statistics.recovery_ns_max):
        store_relaxed_u64(&map.header.statistics.recovery_ns_max, spent)

cdef inline Status process_recover(Map *map, uint64_t index) noexcept nogil:
    """Recover a dead process. OK: it is recovered, or it is not dead. BUSY: another process is
    recovering it, a lock is in the way, or this process cannot be a recoverer."""
    cdef int64_t began = clock_ns(CLOCK_MONOTONIC)
    cdef Status status = OK
    if not recoverer_enter(map, index):
        return BUSY
    if process_is_dead(map, index):            # it may have been recovered before recoverer_enter
        status = contexts_recover(map, index)
        if status == OK:
            # Release: its contexts are free; pairs with the CAS in slot_claim.
            store_release_u64(&(map.processes + index).used, 0)
            recovery_note(map, began)
    recoverer_leave(map, index)
    return status

cdef inline uint64_t recover_all(Map *map) noexcept nogil:
    """Recover every dead process, and return how many were recovered. A read-only handle recovers
    none."""
    cdef uint64_t index, _turn
    cdef uint64_t found = 0
    cdef bint again = not map.read_only
    for _turn in range(4):                     # one may need a lock that another dead process holds
        if not again:
            break
        again = False
        for index in range(PROCESS_MAX):
            if index >= processes_usable(map):
                break
            if process_is_dead(map, index):
                if process_recover(map, index) == OK:
                    found += 1
                else:
                    again = True
    return found

cdef inline bint owner_recover(Op *op) noexcept nogil:
    """After BUSY: if the owner of the word in the way is dead, recover it. Returns whether any
    process was recovered."""
    cdef uint64_t owner = word_owner(op.wait_seen)
    cdef uint64_t process
    if not word_locked(op.wait_seen) or owner >= contexts_usable(op.map):
        return False
    process = load_acquire_u64(&context_at(op.map, owner).owner) - 1
    if not process_is_dead(op.map, process):
        return False
    # Recovering it may need a lock that another dead process holds.
    return process_recover(op.map, process) == OK or recover_all(op.map) != 0

cdef inline bint owner_recover_called(void *op) noexcept nogil:
    """owner_recover, as Map.owner_recover calls it."""
    return owner_recover(<Op *> op)

cdef inline uint64_t recover_those_inside(Map *map) noexcept nogil:
    """Recover the processes that died inside an operation, or whose operation was waiting with an
    element in its context; return how many were recovered. Call this before reporting that the map
    or the memory is full: a dead process may hold the last of it."""
    cdef uint64_t count = contexts_usable(map)
    cdef uint64_t index, process
    cdef uint64_t found = 0
    cdef Context *context
    for index in range(count):                 # at most CONTEXT_MAX
        context = context_at(map, index)
        if load_acquire_u64(&context.activity) & 1 or (
                load_relaxed_u64(&context.element) != 0 or load_relaxed_u64(&context.debt) != 0):
            process = load_acquire_u64(&context.owner) - 1
            if process_is_dead(map, process) and process_recover(map, process) == OK:
                found += 1
    return found
