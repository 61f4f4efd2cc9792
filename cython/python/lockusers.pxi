# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# Part of _core.pyx: who uses the cells of a space, and taking a lock away from its owner.


def cell_waiters(Space cells not None, uint64_t index):
    """Who waits for a lock, or at a condition or barrier: the tuples of context_user."""
    cdef Map *map = &cells.handle.map
    cdef uint64_t at
    found = []
    expect_open(cells.handle)
    for at in range(contexts_usable(map)):     # at most CONTEXT_MAX
        if waits_for(wait_word(context_at(map, at)), index, WAITING):
            user = context_user(map, context_at(map, at))
            if user is not None:
                found.append(user)
    return found


def permit_holders(Space cells not None, uint64_t index):
    """Who has permits of a semaphore: the tuples of context_user, each with its number."""
    cdef Map *map = &cells.handle.map
    cdef uint64_t at
    cdef Context *context
    found = []
    expect_open(cells.handle)
    for at in range(contexts_usable(map)):     # at most CONTEXT_MAX
        context = context_at(map, at)
        if load_relaxed_u64(&context.target) == index and held_word(context, HELD_SHARES) != 0:
            user = context_user(map, context)
            if user is not None:
                found.append((user, held_word(context, HELD_SHARES)))
    return found


def holds_lock(MutexCore lock not None):
    """Whether this process holds the lock."""
    expect_open(lock.handle)
    return lock._mine() != NULL


def renew_lock(MutexCore lock not None):
    """Say that the owner, this process, has the lock since now. False: it is not the owner."""
    cdef Context *mine
    expect_open(lock.handle)
    mine = lock._mine()
    if mine == NULL:
        return False
    held_set(mine, HELD_SINCE, <uint64_t> clock_ns(CLOCK_MONOTONIC))
    return lock._mine() == mine


def depose(MutexCore lock not None, int64_t age_ns):
    """Take the lock away from its owner, if that has had it for so long, or renewed it so long ago;
    returns whether it was taken away. The next owner is told as of a death."""
    cdef Map *map = &lock.handle.map
    cdef Context *owner
    cdef uint64_t process
    cdef uint32_t seen
    expect_open(lock.handle)
    seen = load_acquire_u32(&lock.cell.state)
    if not word_locked(seen) or word_owner(seen) >= contexts_usable(map):
        return False
    owner = context_at(map, word_owner(seen))
    process = load_acquire_u64(&owner.owner) - 1
    if process >= processes_usable(map) or (
            clock_ns(CLOCK_MONOTONIC) - <int64_t> held_word(owner, HELD_SINCE) < age_ns):
        return False
    return mutex_take_away(map, lock.cell, seen, owner, map.processes + process)
