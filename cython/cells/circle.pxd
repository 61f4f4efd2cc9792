# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# Circles: threads that wait for each other's locks, so that none of them will ever go on.
#
# A thread that waits for a Lock, RLock or RWLock has a context that says so (condition.pxd). The
# context names the thread, and the time at which the wait began. Where a condition's waiter has a
# ticket, it says how the thread waits:
#
#   LINK      the thread stands still until it has the lock, and no other thread releases a lock
#             that it took; so a wait for a lock with check=False is no link. A task of an event
#             loop, or a greenlet, counts as a thread, by its number, if it waits for a Lock or
#             RLock without a time limit. With a limit it is no link, since others of its thread go
#             on and may release locks. For an RWLock that a task has, HELD_THREAD is the loop's
#             thread, which lets no task go on while it waits itself.
#   ENDLESS   the wait has no time limit
#   WRITES    for an RWLock, as the writer
#
# A waiter looks at the owner of the lock that it waits for, at the lock for which that owner's
# thread waits, at the owner of that lock, and so on. If this leads back to its own thread, it is in
# a circle. It looks for the first time after 0.2 s, and then each second. So taking a lock costs no
# more than without this search; a look that misses a waiter between two slices only costs time.
#
# A single look proves nothing: while it goes from one lock to the next, the first one may be
# released. So a look that finds a circle is repeated. A wait is known by its process, its thread
# and its beginning. If both looks find the same waits, then each of these threads stood still from
# the one look to the other, and neither took a lock nor released one: so between the two looks all
# of them waited for each other at one moment. The caller checks whether their processes live.
#
# Which waiter is told: the one that began last among those that wait without a limit, since all
# waiters that look find the same one. A wait with a limit is a link of the circle, but ends by
# itself, as its caller wants it.
#
# Several spaces. A thread may hold a lock of one space and wait for one of another. So a look goes
# through all spaces that its process has open (Spaces), at most SPACES_MAX. A process has a
# different slot in each space, so it is known by its pid and PID namespace: no two processes that
# live at the same time share both. The caller asks, for each wait, whether the waiting process and
# the process for which it waits are alive. A circle through a space that the process of the waiter
# to be told does not have open is not found.
#
# An RWLock's writer waits for each reader. A reader waits for the writer or, if no writer has the
# lock, for the waiting writers, which keep it out. If a process has several readers, it is not
# known which of its threads read (rwlock.pxd), and the search ends there.
from libc.stdint cimport uint32_t, uint64_t
from machine.atomics cimport (
    fence_seq_cst, load_acquire_u32, load_acquire_u64, load_relaxed_u64, store_release_u64,
)
from segment.status cimport OK
from segment.layout cimport Context
from segment.words cimport word_locked, word_owner
from segment.geometry cimport Map, context_at, contexts_usable, processes_usable
from memory.operation cimport Op
from memory.pool cimport object_memory_ready
from cells.cell cimport (
    CELL_LOCK, CELL_RLOCK, CELL_RWLOCK, HELD_SHARES, HELD_SINCE, HELD_THREAD, Cell, cell_at,
    held_word,
)
from cells.condition cimport (
    WAITING, WAIT_CELL_SHIFT, WAIT_STATE, WAIT_WORD, wait_turn_of, wait_word, wait_word_of,
)
from cells.rwlock cimport WRITER, hint_counts
from cells.shares cimport word_count

cdef enum:
    WAIT_LINK = 1
    WAIT_ENDLESS = 2
    WAIT_WRITES = 4

    CIRCLE_MAX = 64                    # waits in a circle that is found
    CIRCLE_STEPS_MAX = 256             # of one look: each goes through the contexts at most twice
    CIRCLE_PATIENCE_NS = 200000000     # a wait that lasts so long is rarely for a lock in use
    CIRCLE_REST_TIMES = 5              # so much longer is the time to the next look
    SPACES_MAX = 16                    # through which a look goes

# The spaces of a look; the first is that of the wait that looks.
cdef struct Spaces:
    int count
    Map *maps[SPACES_MAX]

# One wait.
cdef struct Link:
    int space                  # in which it is
    uint64_t process           # the index of its slot there
    uint64_t name              # the process's, in all spaces
    uint64_t ahead             # the slot, in this space, of the process in the way
    uint64_t thread
    uint64_t began             # CLOCK_MONOTONIC
    uint64_t cell
    uint64_t how               # WAIT_LINK, ...
    uint64_t next_context      # of a look: where the search for the context in the way goes on

# Each of these waits for a lock that the next one has, and the last one for the first one's.
cdef struct Circle:
    int length
    Link links[CIRCLE_MAX]


cdef inline void link_say(Context *context, uint64_t index, uint64_t how) noexcept nogil:
    """Say that the context waits for a lock, and how; wait_say ends it."""
    # Release: thread and beginning of the wait; pairs with wait_word.
    store_release_u64(&context.owned_refs[WAIT_WORD], wait_word_of(index, how, WAITING))

cdef inline Cell *link_cell(Op *op, uint64_t index) noexcept nogil:
    """The lock of a wait; NULL: it is for something else, or the word is damaged."""
    cdef Cell *cell
    if index == 0 or index >= op.map.element_max or (
            object_memory_ready(op, &op.map.element_pool, index) != OK):
        return NULL
    cell = cell_at(op.map, index)
    if cell.kind == CELL_LOCK or cell.kind == CELL_RLOCK or cell.kind == CELL_RWLOCK:
        return cell
    return NULL

cdef inline uint64_t process_name(
        const Spaces *spaces, int space, uint64_t process) noexcept nogil:
    """The same for the slots of one process in several spaces, while it lives; of a process that
    does not know its PID namespace, another one in each space."""
    cdef Map *map = spaces.maps[space]
    cdef uint64_t pid, names
    if process >= processes_usable(map):
        return 0                               # damage
    pid = load_relaxed_u64(&map.processes[process].pid)
    names = load_relaxed_u64(&map.processes[process].namespace_inode)
    if pid == 0 or names == 0:
        return (<uint64_t> space + 1) << 16 | (process + 1)
    return names << 32 | (pid & 0xFFFFFFFFULL)

cdef inline bint link_of(Op *op, uint64_t at, Link *link) noexcept nogil:
    """The wait of a context. False: it is in none that could be a link. Its name and its space are
    not filled in."""
    cdef Context *context = context_at(op.map, at)
    cdef uint64_t word = wait_word(context)
    link.how = wait_turn_of(word)
    if word & WAIT_STATE != WAITING or not link.how & WAIT_LINK:
        return False
    link.cell = word >> WAIT_CELL_SHIFT
    link.process = load_acquire_u64(&context.owner) - 1
    link.thread = held_word(context, HELD_THREAD)
    link.began = held_word(context, HELD_SINCE)
    link.next_context = 0
    return link_cell(op, link.cell) != NULL

cdef inline bint link_of_thread(
        const Spaces *spaces, uint64_t name, uint64_t thread, Link *link) noexcept nogil:
    """The wait of a thread. False: it does not wait."""
    cdef Op op
    cdef uint64_t at
    cdef int space
    for space in range(spaces.count):          # at most SPACES_MAX
        op.map = spaces.maps[space]
        for at in range(contexts_usable(op.map)):      # at most CONTEXT_MAX
            if link_of(&op, at, link) and link.thread == thread and (
                    process_name(spaces, space, link.process) == name):
                link.space = space
                link.name = name
                return True
    return False

cdef inline bint context_in_the_way(
        Op *op, Cell *cell, Link *link, Context *context) noexcept nogil:
    """Whether a wait for an RWLock goes on until this context's thread has done something."""
    cdef uint64_t word, shares, how
    if load_relaxed_u64(&context.target) == link.cell:
        # Acquire: the thread that has the shares; pairs with shares_change.
        shares = load_acquire_u64(&context.owned_refs[HELD_SHARES])
        if shares & WRITER or (shares != 0 and link.how & WAIT_WRITES):
            return True
    word = wait_word(context)
    how = wait_turn_of(word)
    return (not link.how & WAIT_WRITES and how & WAIT_LINK and how & WAIT_WRITES
            and word == wait_word_of(link.cell, how, WAITING) and hint_counts(&cell.reserved_until)
            and not word_count(load_acquire_u64(&cell.word)) & WRITER)

cdef inline bint link_next(
        const Spaces *spaces, Link *link, uint64_t *name, uint64_t *thread) noexcept nogil:
    """The next thread for which a wait waits. False: there is no other."""
    cdef Op op
    cdef Cell *cell
    cdef uint64_t count, at
    cdef uint32_t state
    cdef Context *context = NULL
    op.map = spaces.maps[link.space]
    cell = link_cell(&op, link.cell)
    count = contexts_usable(op.map)
    at = link.next_context
    if cell == NULL:
        return False
    if cell.kind != CELL_RWLOCK:
        # Acquire: the owner's thread; pairs with the CAS that took the lock.
        state = load_acquire_u32(&cell.state)
        link.next_context = count              # it has one owner
        if at == 0 and word_locked(state) and word_owner(state) < count:
            context = context_at(op.map, word_owner(state))
    else:
        while at < count and context == NULL:  # at most CONTEXT_MAX
            if context_in_the_way(&op, cell, link, context_at(op.map, at)):
                context = context_at(op.map, at)
            at += 1
        link.next_context = at
    if context == NULL:
        return False
    link.ahead = load_acquire_u64(&context.owner) - 1
    name[0] = process_name(spaces, link.space, link.ahead)
    thread[0] = held_word(context, HELD_THREAD)
    return True

cdef inline bint circle_has(const Circle *circle, uint64_t name, uint64_t thread) noexcept nogil:
    cdef int at
    for at in range(circle.length):            # at most CIRCLE_MAX
        if circle.links[at].name == name and circle.links[at].thread == thread:
            return True
    return False

cdef inline bint circle_look(
        const Spaces *spaces, const Link *mine, Circle *circle) noexcept nogil:
    """Look once, from a wait, for a way back to it."""
    cdef uint64_t name = 0
    cdef uint64_t thread = 0
    cdef int last
    cdef int _
    circle.length = 1
    circle.links[0] = mine[0]
    for _ in range(CIRCLE_STEPS_MAX):
        last = circle.length - 1
        if not link_next(spaces, &circle.links[last], &name, &thread):
            circle.length = last               # a dead end: go back
            if last == 0:
                return False
        elif name == mine.name and thread == mine.thread:
            return True
        elif last + 1 < CIRCLE_MAX and not circle_has(circle, name, thread) and (
                link_of_thread(spaces, name, thread, &circle.links[last + 1])):
            circle.length += 1
    return False

cdef inline bint circle_same(const Circle *one, const Circle *other) noexcept nogil:
    """Whether two looks found the same waits."""
    cdef int at
    if one.length != other.length:
        return False
    for at in range(one.length):               # at most CIRCLE_MAX
        if one.links[at].name != other.links[at].name or (
                one.links[at].thread != other.links[at].thread) or (
                one.links[at].began != other.links[at].began) or (
                one.links[at].space != other.links[at].space) or (
                one.links[at].ahead != other.links[at].ahead) or (
                one.links[at].cell != other.links[at].cell):
            return False
    return True

cdef inline bint link_began_before(const Link *one, const Link *other) noexcept nogil:
    """The order of the waits; those that began in the same ns have one, too."""
    if one.began != other.began:
        return one.began < other.began
    if one.name != other.name:
        return one.name < other.name
    return one.thread < other.thread

cdef inline bint circle_find(
        const Spaces *spaces, const Link *mine, Circle *circle) noexcept nogil:
    """Whether a wait without limit is in a circle, and is the one to be told. The caller asks
    whether the processes of the circle live."""
    cdef Circle first
    cdef int at
    if not circle_look(spaces, mine, &first):
        return False
    # The loads of the first look come before those of the second.
    fence_seq_cst()
    if not circle_look(spaces, mine, circle) or not circle_same(&first, circle):
        return False
    for at in range(1, circle.length):         # at most CIRCLE_MAX
        if circle.links[at].how & WAIT_ENDLESS and link_began_before(mine, &circle.links[at]):
            return False
    return True
