# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# The budget: counting the pages that max_bytes limits.
#
# The budget is one lock word. It has the exact number of pages that are committed for blocks and
# runs of objects, which max_bytes limits. Where max_bytes limits the whole segment (counts_all), it
# has those of blocks of elements and lines, too, and the regions count by their word allocated,
# which rises only while the budget is held: so both together never exceed pages_most. What is
# committed otherwise is counted once for all (pages_fixed). Blocks of elements and objects leave
# pages_spare to the others, so that a table can grow in a full cache: what it takes is missing
# when the next block is wanted, for which entries are evicted then.
#
#   charge   hold the word; store context.budget_after, then context.charged, to record what is
#            about to happen; the store that unlocks the word commits. Next, the context that
#            charged the pages makes them part of a block or a run by one store, and charged
#            becomes 0.
#   give up  charged has the pages of the block again, while the context holds the block; once the
#            memory has gone, they become a debt, and the store that unlocks the hole commits.
#   refund   context.debt has the pages that were given up, until the budget has them: hold the
#            word; store budget_after; unlock the word; clear the debt. If the word cannot be had,
#            the debt stays, and op_give_back tries again.
#
# A debt is of no block any more, so only a refund clears it. A context with a debt charges nothing
# and gives nothing up.
#
# After a death, budget_after decides what is done with the word (budget_recover), and the block or
# run that the context holds decides what is done with charged (recover_memory.pxd).
from libc.stdint cimport uint32_t, uint64_t
from machine.atomics cimport load_relaxed_u64, store_relaxed_u64, compiler_fence
from segment.status cimport Status, OK, OUT_OF_BYTES
from segment.layout cimport PAGE_BYTES, PAYLOAD_SHIFT, REGION_ELEMENT_WORDS, Region, Context
from segment.classes cimport POOL_OBJECTS, PoolView
from segment.geometry cimport Map, region_at
from memory.operation cimport Op, lock_acquire, lock_release, op_holds

cdef inline uint64_t budget_word(uint64_t *word) noexcept nogil:
    return load_relaxed_u64(word) >> PAYLOAD_SHIFT

cdef inline bint pool_is_charged(const Map *map, const PoolView *pool) noexcept nogil:
    """Whether the budget counts the blocks of a pool."""
    return pool.kind >= POOL_OBJECTS or map.counts_all

cdef inline uint64_t regions_pages(Map *map) noexcept nogil:
    """Pages that regions may have, where they count. Exact while the budget is held, but for a
    release under way, which counts as not begun."""
    cdef uint64_t pages = 0
    cdef uint64_t allocated
    cdef uint32_t which
    if map.counts_all:
        for which in range(REGION_ELEMENT_WORDS, map.region_count):
            allocated = load_relaxed_u64(&region_at(map, which).allocated)
            if allocated > map.region_bytes[which]:    # only in a damaged segment
                allocated = map.region_bytes[which]
            pages += allocated // PAGE_BYTES
    return pages

cdef inline bint budget_allows(
        Map *map, uint64_t taken, uint64_t pages, uint64_t spare) noexcept nogil:
    """Whether max_bytes allows so many pages more, when blocks have taken so many."""
    return taken + regions_pages(map) + pages + spare <= map.pages_most

cdef inline bint bytes_are_free(Map *map, uint64_t pages) noexcept nogil:
    """Whether blocks can have so many pages more, as far as one look says."""
    return budget_allows(map, budget_word(&map.objects.budget), pages, map.pages_spare)

cdef inline bint bytes_can_be_free(Map *map, uint64_t size) noexcept nogil:
    """Whether blocks could have so many bytes if all others were empty."""
    return budget_allows(map, 0, size // PAGE_BYTES, map.pages_spare)

cdef inline Status budget_charge(Op *op, uint64_t pages, uint64_t spare) noexcept nogil:
    """Add pages to the budget and to context.charged. OUT_OF_BYTES if max_bytes forbids it, or
    leaves less than spare pages."""
    cdef uint64_t *word = &op.map.objects.budget
    cdef uint64_t held = 0
    cdef uint64_t after
    cdef Status status = lock_acquire(op, word, &held)
    if status != OK:
        return status
    after = (held >> PAYLOAD_SHIFT) + pages
    if not budget_allows(op.map, held >> PAYLOAD_SHIFT, pages, spare):
        lock_release(word, held)
        op.bytes_wanted = pages * PAGE_BYTES
        return OUT_OF_BYTES
    op.context.budget_after = (after + 1) * 2
    compiler_fence()
    op.context.charged = pages
    compiler_fence()
    lock_release(word, after << PAYLOAD_SHIFT)
    compiler_fence()
    op.context.budget_after = 0
    compiler_fence()
    return OK

cdef inline void budget_used(Op *op) noexcept nogil:
    """Clear context.charged: the pages belong to a block or a run now."""
    compiler_fence()
    op.context.charged = 0
    compiler_fence()

cdef inline void debt_add(Op *op, uint64_t pages) noexcept nogil:
    """From here on this context owes pages to the budget; before, it must owe none."""
    op.context.debt = pages * 2 + 1
    compiler_fence()

cdef inline uint64_t pages_owed(const Context *context) noexcept nogil:
    return context.debt >> 1

cdef inline void budget_owe_none(Op *op) noexcept nogil:
    op.context.debt &= 1
    compiler_fence()

cdef inline Status budget_refund(Op *op) noexcept nogil:
    """Refund the pages that the context owes. BUSY: it still owes them."""
    cdef uint64_t *word = &op.map.objects.budget
    cdef uint64_t held = 0
    cdef uint64_t after
    cdef Status status
    if pages_owed(op.context) == 0:
        return OK
    status = lock_acquire(op, word, &held)
    if status != OK:
        return status
    after = held >> PAYLOAD_SHIFT
    after = after - pages_owed(op.context) if after > pages_owed(op.context) else 0
    op.context.budget_after = (after + 1) * 2 + 1
    compiler_fence()
    lock_release(word, after << PAYLOAD_SHIFT)
    compiler_fence()
    budget_owe_none(op)
    op.context.budget_after = 0
    compiler_fence()
    return OK

cdef inline void budget_recover(Op *op) noexcept nogil:
    """Recover the budget word, and the fields about it in this context, whose owner has died."""
    cdef Context *context = op.context
    cdef uint64_t *word = &op.map.objects.budget
    cdef uint64_t after = context.budget_after // 2 - 1
    if op_holds(op, word):
        if context.budget_after == 0:          # the owner had not begun to change the word
            lock_release(word, load_relaxed_u64(word))
            return
        if not context.budget_after & 1:
            context.charged = after - (load_relaxed_u64(word) >> PAYLOAD_SHIFT)
            compiler_fence()
        lock_release(word, after << PAYLOAD_SHIFT)
        compiler_fence()
    if context.budget_after & 1:
        budget_owe_none(op)
    context.budget_after = 0
    compiler_fence()

cdef inline Status region_charge(Op *op, Region *region, uint64_t upto) noexcept nogil:
    """Raise the word allocated of a held region to upto. Where regions count, the budget is held
    for it; that store is the charge, so recovery only has to unlock. OUT_OF_BYTES, BUSY: it stays.
    """
    cdef uint64_t held = 0
    cdef uint64_t pages
    cdef Status status = OK
    if region.allocated >= upto:
        return OK
    if not op.map.counts_all:
        region.allocated = upto
        return OK
    pages = (upto - region.allocated) // PAGE_BYTES
    status = lock_acquire(op, &op.map.objects.budget, &held)
    if status != OK:
        return status
    if budget_allows(op.map, held >> PAYLOAD_SHIFT, pages, 0):
        # Released with the budget's word; pairs with the lock of who sums the regions up.
        store_relaxed_u64(&region.allocated, upto)
    else:
        op.bytes_wanted = pages * PAGE_BYTES
        status = OUT_OF_BYTES
    lock_release(&op.map.objects.budget, held)
    return status
