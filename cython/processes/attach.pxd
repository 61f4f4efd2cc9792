# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# What a process has while it is attached to a segment: the mapping, a process slot, and contexts.
#
# A context is taken for each operation and put back after it, so a process has as many contexts as
# it has had threads inside operations at once. One idle context is kept in Local.idle_context,
# where the next operation finds it with one load; the others are in Local.more. Local is in a page
# that fork wipes: a child finds no context and no slot there, and attach_claim gives it its own.
#
# A process that finds all slots in use, or no memory for more, could not recover the dead processes
# that have them, since a recoverer is named by its process slot. So it locks the byte of a dead
# process: then that process counts as alive for all others, until the newcomer has recovered it and
# claimed its slot. If the newcomer dies before that, the slot is a dead process's as before.
#
# The caller serialises these functions among the threads of the process: by the GIL, or the state
# lock (gil.h).
from libc.stdint cimport int64_t, uint32_t, uint64_t, uint8_t
from machine.atomics cimport (
    load_relaxed_u64, load_acquire_u64, store_release_u64, local_take_u64, local_put_u64,
)
from machine.system cimport (
    F_WRLCK, F_UNLCK, F_OFD_GETLK, F_OFD_SETLK, close, PROT_READ, PROT_WRITE, MAP_SHARED,
    MADV_DONTFORK, mmap, munmap, madvise, mprotect, MAP_FAILED, fork_guard_begin, fork_guard_end,
    CLOCK_MONOTONIC, clock_ns,
)
from segment.status cimport Status, OK, NO_MEMORY, NO_CONTEXT
from segment.layout cimport REGION_PROCESSES, ProcessSlot, Context
from segment.geometry cimport (
    Local, Map, geometry_bind, context_at, contexts_usable, processes_usable,
)
from segment.file cimport REMOVAL_BYTE, segment_open, byte_lock
from memory.operation cimport Op
from memory.region cimport HUGE_BYTES
from map.ring cimport ring_note_called
from map.hold cimport op_give_back
from processes.claim cimport CLAIM_LOCKED, CLAIM_BY_PID, CLAIM_KIND_MASK
from processes.liveness cimport (
    Standing, process_is_dead, recoverer_lives, slot_claim, process_keep, process_register,
    context_note_time, context_claim, process_leave,
)
from processes.recover cimport contexts_recover, recovery_note, recover_all, owner_recover_called

cdef inline bint slot_inherit(Map *map, Standing *standing, int fd, uint64_t index) noexcept nogil:
    """Recover a dead process and claim its slot, for a process that found no free slot and so
    cannot be named as the recoverer: it locks the dead process's own byte instead."""
    cdef ProcessSlot *slot = map.processes + index
    cdef uint64_t claim = load_acquire_u64(&slot.used)
    cdef int64_t began = clock_ns(CLOCK_MONOTONIC)
    if claim == 0 or claim & CLAIM_KIND_MASK == CLAIM_BY_PID or byte_lock(
            fd, F_OFD_SETLK, F_WRLCK, index) != 0:
        return False
    # A recoverer that entered before the byte was locked is seen here; a later one sees that the
    # byte is locked.
    if (load_acquire_u64(&slot.used) == claim
            and not recoverer_lives(map, load_acquire_u64(&slot.recoverer))
            and contexts_recover(map, index) == OK and slot_claim(slot, CLAIM_LOCKED, claim)):
        recovery_note(map, began)
        return process_keep(map, standing, fd, index) == OK
    byte_lock(fd, F_OFD_SETLK, F_UNLCK, index)
    return False

cdef inline Status process_inherit(Map *map, Standing *standing, Status why) noexcept nogil:
    """Give this process the slot of a dead one. If there is none, return why, the status of
    process_register."""
    cdef uint64_t index
    cdef int fd
    cdef bint done = False
    fork_guard_begin()
    fd = segment_open(map)
    if fd >= 0:
        for index in range(processes_usable(map)):     # at most PROCESS_MAX
            if process_is_dead(map, index):
                done = slot_inherit(map, standing, fd, index)
                if done:
                    break
        if not done:
            close(fd)
    fork_guard_end()
    return OK if done else why

cdef extern from "<sys/mman.h>" nogil:
    int munlock(const void *address, size_t length) noexcept
    enum: PROT_NONE
    enum: MAP_FIXED
    enum: MAP_PRIVATE
    enum: MAP_ANONYMOUS
    enum: MAP_NORESERVE
    enum: MADV_DONTDUMP
    enum: MADV_NOHUGEPAGE
    enum: MADV_WIPEONFORK

cdef enum:
    MORE_MAX = 446             # idle contexts that fit into Local.more
    MORE_SHARE = 512           # a process keeps this part of all contexts idle, beside one
    CONTEXTS_KEPT_BACK = 8     # and this part of them is for operations that keep none


cdef inline void *map_aligned(uint64_t size, int protection, int fd) noexcept nogil:
    """Map a file at a multiple of 2 MiB, so that huge pages can be used; or MAP_FAILED.

    The kernel must not touch a hole, since that would fill it. So core dumps leave the mapping out.
    After mlockall(MCL_FUTURE) a new mapping is locked: this one is made without access, so that
    there is nothing to lock yet, and is unlocked before access is allowed. (A later
    mlockall(MCL_CURRENT) without MCL_ONFAULT fills every hole.)
    """
    cdef uint64_t reserved
    cdef uint64_t start
    cdef void *base = mmap(
        NULL, size + HUGE_BYTES, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)
    if base == MAP_FAILED:
        return base
    reserved = <uint64_t> base
    start = (reserved + HUGE_BYTES - 1) // HUGE_BYTES * HUGE_BYTES
    base = mmap(<void *> start, size, PROT_NONE, MAP_SHARED | MAP_NORESERVE | MAP_FIXED, fd, 0)
    if base != MAP_FAILED:
        munlock(base, size)                    # if a filter refuses, it stays locked, as it is
        madvise(base, size, MADV_DONTDUMP)     # if a filter refuses, core dumps are larger
        if mprotect(base, size, protection) != 0:
            base = MAP_FAILED
    if base == MAP_FAILED:
        munmap(<void *> reserved, size + HUGE_BYTES)
        return base
    if start > reserved:
        munmap(<void *> reserved, start - reserved)
    munmap(<void *> (start + size), reserved + HUGE_BYTES - start)
    return base

cdef inline bint attach_map(Map *map, int fd, const char **missing) noexcept nogil:
    """Map the segment, and the page that fork wipes. If that fails, errno says why; if the reason
    is a call that this kernel does not have, or that a filter refuses, missing names the call.

    In the mapping of a read-only handle, only process slots and contexts can be written, and these
    only if the process may write the file."""
    cdef int protection = PROT_READ if map.read_only else PROT_READ | PROT_WRITE
    cdef void *base = map_aligned(map.segment_bytes, protection, fd)
    cdef void *page
    if base == MAP_FAILED:
        return False
    page = mmap(NULL, sizeof(Local), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)
    if page == MAP_FAILED:
        munmap(base, map.segment_bytes)
        return False
    if madvise(page, sizeof(Local), MADV_WIPEONFORK) != 0:
        missing[0] = b"madvise(MADV_WIPEONFORK) (Linux 4.14)"
    elif madvise(page, 0, MADV_DONTFORK) != 0:     # size 0: only a test. Recovery needs the call.
        missing[0] = b"madvise(MADV_DONTFORK) (Linux 2.6.16)"
    elif byte_lock(fd, F_OFD_GETLK, F_WRLCK, REMOVAL_BYTE) < 0 or (
            byte_lock(fd, F_OFD_SETLK, F_UNLCK, REMOVAL_BYTE) < 0):     # unlocks nothing: a test
        missing[0] = b"fcntl(F_OFD_SETLK) or F_OFD_GETLK (Linux 3.15)"
    if missing[0] != NULL:
        munmap(page, sizeof(Local))
        munmap(base, map.segment_bytes)
        return False
    if map.read_only and not map.file_read_only and mprotect(
            <uint8_t *> base + map.region_offset[REGION_PROCESSES],
            map.depots_offset - map.region_offset[REGION_PROCESSES], PROT_READ | PROT_WRITE) != 0:
        map.file_read_only = True
    if map.counts_all:                         # a huge page is more than was charged for
        madvise(base, map.segment_bytes, MADV_NOHUGEPAGE)
    geometry_bind(map, <uint8_t *> base)
    map.owner_recover = owner_recover_called
    map.ring_note = ring_note_called
    map.local = <Local *> page
    return True

cdef inline uint64_t session_idle(Map *map) noexcept nogil:
    """Take one of this process's idle contexts: its index plus one; 0 if there is none."""
    cdef uint64_t taken = local_take_u64(&map.local.idle_context)
    if taken == 0 and map.local.more_count > 0:
        map.local.more_count -= 1
        taken = map.local.more[map.local.more_count]
    return taken

cdef inline void attach_rest(Map *map, uint64_t taken) noexcept nogil:
    """Put back a context whose operation has ended. Beyond its share, the process frees it, unless
    it still owns something that it could not give back."""
    cdef Context *context = context_at(map, taken - 1)
    cdef bint owns = context.element != 0 or context.line_stash != 0 or context.debt != 0
    if local_put_u64(&map.local.idle_context, taken):
        return
    if map.local.more_count < (MORE_MAX if owns else map.context_max // MORE_SHARE):
        map.local.more[map.local.more_count] = <uint32_t> taken
        map.local.more_count += 1
    elif not owns:
        # Release: the context is at rest; pairs with the CAS in context_claim_for.
        store_release_u64(&context.owner, 0)

cdef inline bint context_may_stay(Op *op) noexcept nogil:
    """Whether a computation may keep the operation's context for as long as it lasts: it is not one
    of the last, or others are free. A hint. Costs a microsecond when most are in use."""
    cdef uint64_t most = op.map.context_max - op.map.context_max // CONTEXTS_KEPT_BACK
    cdef uint64_t at
    if op.self_index < most:
        return True
    for at in range(min(most, contexts_usable(op.map))):       # at most CONTEXT_MAX
        if load_relaxed_u64(&context_at(op.map, at).owner) == 0:
            return True
    return False

cdef inline Status attach_register(Map *map, Standing *standing) noexcept nogil:
    """Give this process a slot, unless it has one."""
    cdef Status status
    if map.local.registered:
        return OK
    status = process_register(map, standing)
    if (status == NO_CONTEXT or status == NO_MEMORY) and not map.read_only:
        status = process_inherit(map, standing, status)
    map.local.generation = <uint64_t> clock_ns(CLOCK_MONOTONIC)
    return status

cdef inline Status attach_claim(Map *map, Standing *standing, uint64_t *taken) noexcept nogil:
    """Take a context for an operation, registering the process first if it has no slot. taken: its
    index plus one."""
    cdef uint64_t index = 0
    cdef Status status = attach_register(map, standing)
    if status != OK:
        return status
    taken[0] = session_idle(map)
    if taken[0] != 0:
        return OK
    status = context_claim(map, &index)
    if (status == NO_CONTEXT or status == NO_MEMORY) and recover_all(map) != 0:
        status = context_claim(map, &index)
    taken[0] = index + 1
    return status

cdef inline void attach_leave(Map *map, Standing *standing) noexcept nogil:
    """Free the contexts and the slot. No operation of this process is under way. A process that
    holds something of a cell keeps its slot until it ends: its death is then found out."""
    cdef Op op
    cdef uint64_t taken
    if map.local.registered and map.local.held == 0:
        op.map = map
        op.starving = 0
        taken = session_idle(map)
        while taken != 0:                      # one turn for each idle context
            op.self_index = <uint32_t> (taken - 1)
            op.context = context_at(map, op.self_index)
            context_note_time(map, op.context)
            if not map.read_only:              # else it owes nothing, whatever its context says
                op_give_back(&op)
            if op.context.element == 0 and op.context.line_stash == 0 and op.context.debt == 0:
                # Release: the context is at rest; pairs with the CAS in context_claim_for.
                store_release_u64(&op.context.owner, 0)
            taken = session_idle(map)
        process_leave(map, standing)

cdef inline void attach_end(Map *map, Standing *standing) noexcept nogil:
    """attach_leave, then unmap the segment and Local. The page that keeps the slot's lock stays if
    the process keeps the slot."""
    attach_leave(map, standing)
    munmap(map.local, sizeof(Local))
    munmap(map.base, map.segment_bytes)
    map.base = NULL
