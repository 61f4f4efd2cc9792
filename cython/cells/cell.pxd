# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# A cell: the shared state of one lock primitive. A space is a map whose values are cells.
#
# A cell is made by an insertion that stores its kind and its limit. It is never deleted, so it
# never moves and its memory is never given back: a process finds it once, by its key, and then uses
# its address, and the memory of a futex in it is always committed. A cell to which the program gave
# no key may be used again for another primitive, once no process can use it (python/privates.pxi).
#
#      0        4        8                16       20       24               32               40
#     +--------+--------+----------------+--------+--------+----------------+----------------+
#     | state  | bell   | word           | kind   | -      | limit          | grants         |
#     +--------+--------+----------------+--------+--------+----------------+----------------+
#     | reserved_until  | of an RWLock                      | line 2: who died, for people    |
#     +-----------------+-----------------------------------+---------------------------------+
#
#   state   of a Lock or RLock, a futex word (mutex.pxd)
#   bell    of the other kinds: number : 31, SLEEPING : 1 (bell.pxd)
#           A task of an event loop waits for a change of state or bell as a thread does, but sleeps
#           elsewhere: so a thread that wakes sleepers of these words rings BELL_ANY, too
#           (listener.pxd).
#   word    of the other kinds, a lock word (layout.pxd): count : 48, or generation : 47 and SET : 1
#
# A process holds its part of a cell by a context of its own, from the moment when it begins to take
# it. context.target names the cell, by the index of its element, before the cell's word can name
# the context; so recovery finds what a dead process held without a search. A space has no objects,
# so the context's words for references (owned_refs) hold the other facts about the hold (HELD_*).
# They are stored before the CAS that takes the cell, so a process that finds the context named in a
# cell finds the right facts.
from libc.stdint cimport uint32_t, uint64_t
from machine.atomics cimport (
    load_relaxed_u64, store_relaxed_u64, compiler_fence, static_assert, unlikely,
)
from segment.status cimport Status
from segment.layout cimport CELL_BYTES, CELL_KEY_BYTES, LINE_BYTES, Context, ProcessSlot
from segment.geometry cimport Map, element_at, element_value
from memory.operation cimport Op
from map.bell cimport listeners_ring, lock_bell_ring, lock_bell_wake

cdef enum:
    CELL_LOCK = 1
    CELL_RLOCK = 2
    CELL_SEMAPHORE = 3         # the permits of a dead process come back
    CELL_COUNTER = 4           # a semaphore whose permits do not
    CELL_EVENT = 5
    CELL_RWLOCK = 6
    CELL_CONDITION = 8
    CELL_BARRIER = 9
    CELL_SPARE = 10            # it has no user, and its keeper may use it again

# Which word of context.owned_refs says what, in a space.
cdef enum:
    HELD_THREAD = 0            # of a lock: the thread that took it
    HELD_DEPTH = 1             # of an RLock: how often. Only that thread stores it.
    HELD_SINCE = 2             # of a lock: CLOCK_MONOTONIC, some ms exact; for people
    HELD_SHARES = 3            # permits of the process; or its readers and writer (rwlock.pxd)
    HELD_SHARES_NEXT = 4       # what that is after the commit, plus 1; 0: no change under way

cdef struct Cell:
    uint32_t state
    uint32_t bell
    uint64_t word
    uint32_t kind              # CELL_*, as long as there is an object for the cell
    uint32_t _reserved_a
    uint64_t limit             # likewise; of a bounded semaphore
    uint64_t grants            # how often a lock was taken. Only its owner stores it.
    uint64_t reserved_until    # a hint: until then only one waiter takes the lock (mutex.pxd)
    uint64_t _reserved_b[2]    # of an RWLock, see there
    uint64_t orphan_pid        # of the last owner that died: by its recovery, for people
    uint64_t orphan_since      # since when that had the lock
    char orphan_command[16]
    uint64_t deaths            # how many owners died, or one more if a recoverer died; for people
    uint64_t keeper            # the process that alone has objects for it (python/privates.pxi)
    uint64_t _reserved_c[2]

cdef inline void cell_is_pinned() noexcept nogil:
    static_assert(sizeof(Cell) == CELL_BYTES)
    static_assert(CELL_KEY_BYTES + 8 == LINE_BYTES)
    static_assert(<uint64_t> &(<Cell *> NULL).word == 8)
    static_assert(<uint64_t> &(<Cell *> NULL).kind == 16)
    static_assert(<uint64_t> &(<Cell *> NULL).limit == 24)
    static_assert(<uint64_t> &(<Cell *> NULL).grants == 32)
    static_assert(<uint64_t> &(<Cell *> NULL).reserved_until == 40)
    static_assert(<uint64_t> &(<Cell *> NULL).orphan_pid == LINE_BYTES)

cdef inline Cell *cell_at(Map *map, uint64_t index) noexcept nogil:
    """The cell of element index, which must have been found in the space."""
    return <Cell *> element_value(map, element_at(map, index))

cdef inline uint64_t held_word(Context *context, uint32_t which) noexcept nogil:
    return load_relaxed_u64(&context.owned_refs[which])

cdef inline void held_set(Context *context, uint32_t which, uint64_t value) noexcept nogil:
    store_relaxed_u64(&context.owned_refs[which], value)

cdef inline void held_name(Context *context, uint64_t index) noexcept nogil:
    """Name the cell that the context is about to hold something of. The HELD_* words are right."""
    compiler_fence()
    store_relaxed_u64(&context.target, index)
    compiler_fence()

cdef inline void cell_ring(Map *map, Cell *cell) noexcept nogil:
    """Wake all sleepers of the cell's bell, and the event loops that wait for it."""
    if unlikely(lock_bell_ring(&cell.bell)):
        listeners_ring(map)

cdef inline void cell_wake(Map *map, Cell *cell, int count) noexcept nogil:
    """Wake up to count sleepers of the cell's bell, and the event loops that wait for it."""
    if unlikely(lock_bell_wake(&cell.bell, count) >= 0):
        listeners_ring(map)

cdef inline void cell_orphan(Cell *cell, const ProcessSlot *owner, uint64_t since) noexcept nogil:
    """Say, for people, which process lost what the cell stands for, and since when it had it."""
    cdef int at
    store_relaxed_u64(&cell.orphan_pid, owner.pid)
    store_relaxed_u64(&cell.orphan_since, since)
    for at in range(16):
        cell.orphan_command[at] = owner.command[at]
