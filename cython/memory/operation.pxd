# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# One operation of one thread, and the taking of lock words that name their owner.
#
# Nothing here waits for long: a lock that stays taken is reported as BUSY, with the word to watch
# in the Op. The operation then releases everything that it holds, and wait.pxd watches the word,
# asks the kernel whether the lock's owner lives, and recovers the owner if it is dead. Then the
# operation starts again.
#
# Lock order: clearing -> bucket -> child bucket -> depot -> credits -> block -> budget. At most one
# of each. An element's header is taken by one CAS; no operation waits for a header while it holds
# anything else. While a lock is held there is no system call, no allocation and no Python, except
# under the locks of regions and of holes (region.pxd).
from libc.stdint cimport uint32_t, uint64_t, uint8_t
from machine.atomics cimport (
    load_relaxed_u64, store_relaxed_u64, store_release_u64, cas_acquire_u64, compiler_fence, pause,
)
from segment.status cimport Status, OK, BUSY
from segment.layout cimport Context
from segment.words cimport word_locked, word_taken, word_released, word_held_by, element_header
from segment.geometry cimport Map

cdef enum:
    SPIN_PAUSES_MAX = 128      # about 4 us: an owner that runs, and makes no system call, is faster

cdef enum:
    OP_RAW_FIELDS = 1          # values are copied in and out with their special fields
    OP_KEEP_ELEMENT = 2        # a deletion leaves the element in context.element
    OP_NO_SWEEP = 4            # an insertion sweeps nothing: its own entry has expired already
    OP_PLAIN = 8               # no other code changes the caller's key and value, and the value is
    #                            stored as it is: it has no references
    OP_KEEP_SHIFT = 8

cdef struct Op:
    Map *map
    Context *context
    const uint8_t *key
    uint64_t *wait_word        # after BUSY: the lock word that was taken,
    uint64_t wait_seen         # and the value it had
    uint64_t bytes_wanted      # after NO_MEMORY and OUT_OF_BYTES
    uint32_t self_index        # of context
    uint32_t hash
    uint64_t starving          # what this operation stored in header.starving, or 0
    int error_number           # after SYSTEM_ERROR and NO_MEMORY
    bint element_filled        # context.element holds this operation's key and value already
    uint32_t made              # which owned_refs name objects that this operation made for a store
    uint32_t options           # OP_*; from bit 8 on, which references an update leaves unchanged
    bint f_lock                # BPF_F_LOCK: wait for the end of sections, where others need not
    uint64_t generation        # of the process that began it: a child of fork does not end it


cdef inline Status lock_busy(Op *op, uint64_t *word, uint64_t seen) noexcept nogil:
    op.wait_word = word
    op.wait_seen = seen
    return BUSY

cdef inline Status lock_try(Op *op, uint64_t *word, uint64_t *held) noexcept nogil:
    """Take word, if it is free, by one CAS. held: the word as taken, lock bits included."""
    cdef uint64_t seen = load_relaxed_u64(word)
    if not word_locked(seen):
        held[0] = word_taken(seen, op.self_index)
        # Acquire: what earlier owners wrote; pairs with the release in lock_release.
        if cas_acquire_u64(word, seen, held[0]):
            return OK
    return lock_busy(op, word, seen)

cdef inline Status lock_acquire(Op *op, uint64_t *word, uint64_t *held) noexcept nogil:
    """Take word, spinning for as long as a running owner would need."""
    cdef Status status = OK
    cdef int _
    for _ in range(SPIN_PAUSES_MAX):
        status = lock_try(op, word, held)
        if status == OK:
            return OK
        pause()
    return status

cdef inline void lock_release(uint64_t *word, uint64_t payload) noexcept nogil:
    """Store payload, unlocked: commit and release at once."""
    # Release: everything written under the lock; pairs with the acquire in lock_try.
    store_release_u64(word, word_released(payload))

cdef inline bint op_holds(Op *op, const uint64_t *word) noexcept nogil:
    """Whether this context holds a lock word: then no other context stores to it."""
    return word_held_by(load_relaxed_u64(word), op.self_index)

cdef inline void header_set(
        uint64_t *header, uint32_t state, uint64_t lock_bits) noexcept nogil:
    """Store the next version and another state in the header of an element or line that is this
    context's. A late CAS on the old header fails."""
    store_relaxed_u64(header, element_header(load_relaxed_u64(header), state, lock_bits))

cdef inline void context_begin(Context *context) noexcept nogil:
    """From here on this context may hold indices, and their memory must stay (region.pxd)."""
    store_relaxed_u64(&context.activity, context.activity + 1)
    compiler_fence()

cdef inline void context_end(Context *context) noexcept nogil:
    # Release: all reads of the operation come before it; pairs with the acquire in
    # context_is_quiet.
    store_release_u64(&context.activity, context.activity + 1)

cdef inline void context_cancel(Context *context) noexcept nogil:
    """Undo context_begin, as if the operation had never begun. A releaser that waits for its end
    may mistake the next operation for it, and then waits for that one as well."""
    store_release_u64(&context.activity, context.activity - 1)

cdef inline void op_begin(Op *op) noexcept nogil:
    context_begin(op.context)

cdef inline void op_end(Op *op) noexcept nogil:
    context_end(op.context)

cdef enum:
    WRITE_TRIES_MAX = 64
    REGION_SLACK_BYTES = 65536     # an unused end of the bucket array up to this size is kept
    RELEASE_MASK = 15              # one deletion in 16 checks whether a release was missed
