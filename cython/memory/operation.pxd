# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# One operation of one thread, and the taking of owner-naming lock words.
#
# Nothing here waits for long: a lock that stays taken is reported as BUSY, with the word to watch
# in the Op; the operation gives up everything it holds, and wait.pxd watches the word, asks the
# kernel whether its owner lives, and recovers it if not. Then the operation starts again.
#
# Lock order: clearing -> bucket -> child bucket -> depot -> credits -> block -> budget. At
# most one of each. An
# element's header is taken by one CAS that is never waited for while anything else is held. While a
# bit is held: no system call, no allocation, no Python (regions and holes apart: region.pxd).
from libc.stdint cimport uint32_t, uint64_t, uint8_t
from machine.atomics cimport (
    load_relaxed_u64, store_relaxed_u64, store_release_u64, cas_acquire_u64, compiler_fence, pause,
)
from segment.status cimport Status, OK, BUSY
from segment.layout cimport Context
from segment.words cimport word_locked, word_taken, word_released, word_held_by, element_header
from segment.geometry cimport Map

cdef enum:
    SPIN_PAUSES_MAX = 128      # about 4 us: longer than any section here lasts when its owner runs

cdef enum:
    OP_RAW_FIELDS = 1               # values come with their special fields, and go with them
    OP_KEEP_ELEMENT = 2                # a deletion leaves the element in context.element
    OP_KEEP_SHIFT = 8

cdef struct Op:
    Map *map
    Context *context
    const uint8_t *key
    uint64_t *wait_word        # after BUSY: the word in the way,
    uint64_t wait_seen         # and what it said
    uint64_t bytes_wanted      # after NO_MEMORY
    uint32_t self_index        # of context
    uint32_t hash
    uint64_t starving          # what this operation has in header.starving, or 0
    int error_number           # after SYSTEM_ERROR and NO_MEMORY
    bint element_filled        # context.element holds this operation's key and value already
    uint32_t options           # OP_*, and from bit 8 on which references an update leaves alone
    bint f_lock                # BPF_F_LOCK: wait for sections, also where none is in the way
    uint64_t generation        # of the process that began it: a child of fork does not end it


cdef inline Status lock_busy(Op *op, uint64_t *word, uint64_t seen) noexcept nogil:
    op.wait_word = word
    op.wait_seen = seen
    return BUSY

cdef inline Status lock_try(Op *op, uint64_t *word, uint64_t *held) noexcept nogil:
    """Take word if it is free now. held is the word as taken, lock bits included."""
    cdef uint64_t seen = load_relaxed_u64(word)
    if not word_locked(seen):
        held[0] = word_taken(seen, op.self_index)
        # Acquire: what earlier holders wrote; pairs with the release in lock_release.
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
    """Whether a lock word is this context's: then nobody else stores to it."""
    return word_held_by(load_relaxed_u64(word), op.self_index)

cdef inline void header_set(
        uint64_t *header, uint32_t state, uint64_t lock_bits) noexcept nogil:
    """Next version, another state, for the header of an element or line that is this context's.
    Somebody late may still try to take it; that compares, and fails."""
    store_relaxed_u64(header, element_header(load_relaxed_u64(header), state, lock_bits))

cdef inline void context_begin(Context *context) noexcept nogil:
    """From here on this context may hold indices: memory it might look at stays (region.pxd)."""
    store_relaxed_u64(&context.activity, context.activity + 1)
    compiler_fence()

cdef inline void context_end(Context *context) noexcept nogil:
    # Release: ends everything read before; pairs with the acquire in context_is_quiet.
    store_release_u64(&context.activity, context.activity + 1)

cdef inline void context_cancel(Context *context) noexcept nogil:
    """As if context_begin had not been. Who waits for that operation's end may take the next one
    for it, and waits for that as well."""
    store_release_u64(&context.activity, context.activity - 1)

cdef inline void op_begin(Op *op) noexcept nogil:
    context_begin(op.context)

cdef inline void op_end(Op *op) noexcept nogil:
    context_end(op.context)

cdef enum:
    WRITE_TRIES_MAX = 64
    REGION_SLACK_BYTES = 65536     # unused end of the bucket array that is worth keeping
    RELEASE_MASK = 15              # one deletion in 16 looks whether a release was missed
