# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# The budget: how many pages objects have taken, of those that max_bytes allows (M1).
#
# One lock word counts the pages of all blocks and runs of objects that are committed, exactly:
#
#   charge   hold the word; context.budget_after, then context.charged say what is about to happen;
#            the store that unlocks the word commits. Whoever charged goes on to use the pages: the
#            store that makes them a block's, or a run's, comes next, and charged becomes 0.
#   refund   pages given up stand in context.owing until the word says so: hold it, budget_after,
#            unlock, none are owed. It may wait: op_settle tries again.
#
# After a death, budget_after decides what became of the word (budget_recover), and the block or run
# that charged was for what becomes of charged (salvage.pxd).
from libc.stdint cimport uint64_t
from atomics cimport compiler_fence, load_relaxed_u64
from status cimport Status, OK, OUT_OF_BYTES
from layout cimport Context, PAGE_BYTES, PAYLOAD_SHIFT
from lock cimport Op, lock_acquire, lock_release, op_holds

cdef inline uint64_t budget_word(uint64_t *word) noexcept nogil:
    return load_relaxed_u64(word) >> PAYLOAD_SHIFT

cdef inline Status budget_charge(Op *op, uint64_t pages) noexcept nogil:
    """Take pages, into context.charged. OUT_OF_BYTES if max_bytes does not allow them."""
    cdef uint64_t *word = &op.map.objects.budget
    cdef uint64_t held = 0
    cdef uint64_t after
    cdef Status status = lock_acquire(op, word, &held)
    if status != OK:
        return status
    after = (held >> PAYLOAD_SHIFT) + pages
    if after > op.map.max_bytes // PAGE_BYTES:
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
    """The pages charged belong to a block or a run now."""
    compiler_fence()
    op.context.charged = 0
    compiler_fence()

cdef inline void budget_owe(Op *op, uint64_t pages) noexcept nogil:
    """From here on this context has pages to give back; it must owe none so far."""
    op.context.owing = pages * 2 + 1
    compiler_fence()

cdef inline uint64_t pages_owed(const Context *context) noexcept nogil:
    return context.owing >> 1

cdef inline void budget_owe_none(Op *op) noexcept nogil:
    op.context.owing &= 1
    compiler_fence()

cdef inline Status budget_refund(Op *op) noexcept nogil:
    """Give back what the context owes. BUSY: it goes on owing it."""
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
    """The word, and what the context says of it, after its owner's death."""
    cdef Context *context = op.context
    cdef uint64_t *word = &op.map.objects.budget
    cdef uint64_t after = context.budget_after // 2 - 1
    if op_holds(op, word):
        if context.budget_after == 0:          # nothing had been decided
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
