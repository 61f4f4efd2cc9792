# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# A process's stay in a segment: the mapping, the process slot, and its contexts.
#
# A context is taken for each operation and put back after it, so a process has as many as it has
# threads inside operations at once. One is kept in Local.idle_context, where the next operation
# finds it with one load; others in Local.more. Local stands in a page that fork wipes: a child
# finds no context and no slot there, and session_claim gives it its own.
#
# The caller serialises these functions among the threads of the process (the GIL).
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from atomics cimport local_take_u64, local_put_u64, store_release_u64
from status cimport Status, OK, NO_CONTEXT, NO_MEMORY
from layout cimport Context, REGION_PROCESSES
from geometry cimport Map, Local, geometry_bind, context_at
from system cimport (
    byte_lock, clock_ns, mmap, munmap, madvise, CLOCK_MONOTONIC, REMOVAL_BYTE, F_OFD_GETLK,
    F_OFD_SETLK, F_UNLCK, F_WRLCK, MADV_DONTFORK, MAP_FAILED, MAP_SHARED, PROT_READ, PROT_WRITE,
    mprotect,
)
from commit cimport HUGE_BYTES
from lock cimport Op
from remove cimport op_settle
from liveness cimport Standing, context_claim, context_note_time, process_leave, process_register
from recovery cimport owner_recover_called, recover_all
from inherit cimport process_inherit

cdef extern from "<sys/mman.h>" nogil:
    int munlock(const void *address, size_t length) noexcept
    enum: PROT_NONE
    enum: MAP_FIXED
    enum: MAP_PRIVATE
    enum: MAP_ANONYMOUS
    enum: MAP_NORESERVE
    enum: MADV_DONTDUMP
    enum: MADV_WIPEONFORK

cdef enum:
    MORE_MAX = 446             # idle contexts a process keeps: Local.more


cdef inline void *map_aligned(uint64_t size, int protection, int fd) noexcept nogil:
    """Map a file at a multiple of 2 MiB, so that huge pages can be used; or MAP_FAILED.

    Nobody but us may touch a hole: the kernel would fill it. So a core dump leaves the mapping out;
    and after mlockall(MCL_FUTURE) it is made without access, when there is nothing to lock, and
    unlocked. (A later mlockall(MCL_CURRENT) without MCL_ONFAULT fills every hole.)
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
        munlock(base, size)                    # refused by a filter: it stays locked, as it is
        madvise(base, size, MADV_DONTDUMP)     # the same: a core dump is larger
        if mprotect(base, size, protection) != 0:
            base = MAP_FAILED
    if base == MAP_FAILED:
        munmap(<void *> reserved, size + HUGE_BYTES)
        return base
    if start > reserved:
        munmap(<void *> reserved, start - reserved)
    munmap(<void *> (start + size), reserved + HUGE_BYTES - start)
    return base

cdef inline bint session_map(Map *map, int fd, const char **missing) noexcept nogil:
    """Map the segment, and the page that fork wipes. If that fails, errno says why, and missing
    names what this kernel has not, or a filter refuses, if it is that.

    Of what only reads, process slots and contexts alone can be written, if the file may be."""
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
    elif madvise(page, 0, MADV_DONTFORK) != 0:     # of nothing: an attempt. Recovery needs it.
        missing[0] = b"madvise(MADV_DONTFORK) (Linux 2.6.16)"
    elif byte_lock(fd, F_OFD_GETLK, F_WRLCK, REMOVAL_BYTE) < 0 or (
            byte_lock(fd, F_OFD_SETLK, F_UNLCK, REMOVAL_BYTE) < 0):     # of a lock we have not
        missing[0] = b"fcntl(F_OFD_SETLK) or F_OFD_GETLK (Linux 3.15)"
    if missing[0] != NULL:
        munmap(page, sizeof(Local))
        munmap(base, map.segment_bytes)
        return False
    if map.read_only and not map.file_read_only and mprotect(
            <uint8_t *> base + map.region_offset[REGION_PROCESSES],
            map.depots_offset - map.region_offset[REGION_PROCESSES], PROT_READ | PROT_WRITE) != 0:
        map.file_read_only = True
    geometry_bind(map, <uint8_t *> base)
    map.owner_recover = owner_recover_called
    map.local = <Local *> page
    return True

cdef inline uint64_t session_idle(Map *map) noexcept nogil:
    """One of this process's idle contexts, its index plus one; 0 if there is none."""
    cdef uint64_t taken = local_take_u64(&map.local.idle_context)
    if taken == 0 and map.local.more_count > 0:
        map.local.more_count -= 1
        taken = map.local.more[map.local.more_count]
    return taken

cdef inline void session_rest(Map *map, uint64_t taken) noexcept nogil:
    """Put a context back that is at rest. Beyond MORE_MAX it is freed, unless it still owns what it
    could not give back."""
    cdef Context *context = context_at(map, taken - 1)
    if local_put_u64(&map.local.idle_context, taken):
        return
    if map.local.more_count < MORE_MAX:
        map.local.more[map.local.more_count] = <uint32_t> taken
        map.local.more_count += 1
    elif context.element == 0 and context.line_stash == 0 and context.owing == 0:
        # Release: everything is at rest; pairs with the CAS in context_claim.
        store_release_u64(&context.owner, 0)

cdef inline Status session_register(Map *map, Standing *standing) noexcept nogil:
    """Give this process a slot, unless it has one."""
    cdef Status status
    if map.local.registered:
        return OK
    status = process_register(map, standing)
    if (status == NO_CONTEXT or status == NO_MEMORY) and not map.read_only:
        status = process_inherit(map, standing, status)
    map.local.generation = <uint64_t> clock_ns(CLOCK_MONOTONIC)
    return status

cdef inline Status session_claim(Map *map, Standing *standing, uint64_t *taken) noexcept nogil:
    """A context for an operation, its index plus one."""
    cdef uint64_t index = 0
    cdef Status status = session_register(map, standing)
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

cdef inline void session_leave(Map *map, Standing *standing) noexcept nogil:
    """Free the contexts and the slot. No operation of this process is under way."""
    cdef Op op
    cdef uint64_t taken
    if map.local.registered:
        op.map = map
        op.starving = 0
        taken = session_idle(map)
        while taken != 0:                      # one turn for each idle context
            op.self_index = <uint32_t> (taken - 1)
            op.context = context_at(map, op.self_index)
            context_note_time(map, op.context)
            op_settle(&op)
            if op.context.element == 0 and op.context.line_stash == 0 and op.context.owing == 0:
                # Release: everything is at rest; pairs with the CAS in context_claim.
                store_release_u64(&op.context.owner, 0)
            taken = session_idle(map)
        process_leave(map, standing)

cdef inline void session_end(Map *map, Standing *standing) noexcept nogil:
    """session_leave, and unmap."""
    session_leave(map, standing)
    munmap(map.local, sizeof(Local))
    munmap(map.base, map.segment_bytes)
    map.base = NULL
