# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# Who is attached, and who is dead: decided by the kernel (C3).
#
# Process slot i is held by an open-file-description lock on byte i of the segment's file. The
# process opens the file afresh, locks the byte, maps a page of it, excludes that page from fork and
# closes the descriptor: the mapping alone keeps the open file, and with it the lock, until the
# address space dies. So the lock survives code that closes every descriptor, is not inherited, and
# vanishes with SIGKILL though children live on; it is seen from every PID namespace and never
# mistaken for a reused pid. A check is one F_OFD_GETLK. If a self-test finds that the mapping does
# not keep the lock, the descriptor stays open instead (Standing.lock_fd) and _core closes it in
# children of fork.
#
# Byte PROCESS_MAX + i is held while somebody recovers process i; byte COMMIT_BYTE while somebody
# extends the two regions that are needed before one has a context (process slots, contexts); byte
# READER_BYTE is shared by attachments that may not write and therefore have no slot: memory stays
# while they are there.
#
# used is stored after the lock is held, so "used, and the byte is free" always means dead. A slot
# that is used is never taken before recovery has cleared it.
from libc.stdint cimport uint32_t, uint64_t
from atomics cimport (
    load_relaxed_u64, load_acquire_u64, store_relaxed_u64, store_release_u64, cas_acquire_u64,
)
from status cimport Status, OK, BUSY, FULL, NO_CONTEXT, SYSTEM_ERROR
from layout cimport (
    ProcessSlot, Context, Region, PROCESS_MAX, CONTEXT_MAX, PAGE_BYTES,
    REGION_PROCESSES, REGION_CONTEXTS,
)
from blocks cimport round_up
from geometry cimport Map, context_at, contexts_usable, processes_usable
from system cimport (
    segment_open, segment_fd, byte_lock, page_kept, clock_ns, nanosleep, timespec, munmap, close,
    getpid, COMMIT_BYTE, F_OFD_GETLK, F_OFD_SETLK, F_WRLCK, F_UNLCK, CLOCK_REALTIME,
)
from lock cimport Op
from commit cimport memory_populate

cdef extern from "<sys/prctl.h>" nogil:
    int prctl(int option, ...) noexcept
    enum: PR_GET_NAME

cdef enum:
    COMMIT_TRIES_MAX = 2000    # of a millisecond: somebody else extends the table of contexts

# What else a registered process keeps. In the wiped page's companion: the handle (not wiped).
cdef struct Standing:
    void *lock_page            # keeps the lock; not present in children
    int lock_fd                # -1, or keeps the lock where a mapping does not


cdef inline bint process_is_dead(Map *map, uint64_t index) noexcept nogil:
    """Whether a process slot is in use by nobody alive. False if it cannot be known."""
    cdef int fd
    if index >= processes_usable(map):
        return False
    # Acquire: pairs with the release in process_claim; the byte was locked before.
    if load_acquire_u64(&map.processes[index].used) == 0:
        return False
    fd = segment_fd(map)
    return fd >= 0 and byte_lock(fd, F_OFD_GETLK, F_WRLCK, index) == 0

cdef inline Status region_extend(Map *map, int fd, uint32_t which, uint64_t needed) noexcept nogil:
    """region_commit for those who have no context yet: under the kernel's lock on COMMIT_BYTE."""
    cdef Region *region = &map.header.regions[which]
    cdef timespec pause_time
    cdef Op op
    cdef uint64_t usable, upto
    cdef Status status = OK
    cdef int turn = 0
    if needed > map.region_bytes[which]:
        return FULL
    pause_time.tv_sec = 0
    pause_time.tv_nsec = 1000000
    while byte_lock(fd, F_OFD_SETLK, F_WRLCK, COMMIT_BYTE) != 0:
        turn += 1
        if turn > COMMIT_TRIES_MAX:
            return BUSY
        nanosleep(&pause_time, NULL)
    usable = load_acquire_u64(&region.usable)
    if usable < needed:
        upto = round_up(needed, PAGE_BYTES)
        op.map = map
        status = memory_populate(
            &op, map.base + map.region_offset[which] + usable, upto - usable)
        if status == OK:
            region.allocated = upto
            # Release: pairs with the acquire loads of usable.
            store_release_u64(&region.usable, upto)
    byte_lock(fd, F_OFD_SETLK, F_UNLCK, COMMIT_BYTE)
    return status

cdef inline Status process_claim(Map *map, int fd, uint64_t *index) noexcept nogil:
    """Lock the byte of a slot nobody uses, and mark the slot used."""
    cdef ProcessSlot *slot
    cdef uint64_t at
    cdef Status status
    for at in range(PROCESS_MAX):
        if at >= processes_usable(map):
            status = region_extend(map, fd, REGION_PROCESSES, (at + 1) * sizeof(ProcessSlot))
            if status != OK:
                return status
        slot = map.processes + at
        if load_acquire_u64(&slot.used) != 0:
            continue
        if byte_lock(fd, F_OFD_SETLK, F_WRLCK, at) != 0:
            continue
        if load_acquire_u64(&slot.used) == 0:
            slot.pid = <uint64_t> getpid()
            prctl(PR_GET_NAME, slot.command)   # 16 bytes at most, for people
            slot.attached_ns = <uint64_t> clock_ns(CLOCK_REALTIME)
            # Release: the lock is held; pairs with the acquire in process_is_dead.
            store_release_u64(&slot.used, 1)
            index[0] = at
            return OK
        byte_lock(fd, F_OFD_SETLK, F_UNLCK, at)
    return NO_CONTEXT

cdef inline Status process_register(Map *map, Standing *standing) noexcept nogil:
    """Give this process a slot. The caller keeps other threads, and fork, away meanwhile."""
    cdef uint64_t index = 0
    cdef Status status
    cdef int fd = segment_open(map)
    if fd < 0:
        return SYSTEM_ERROR
    status = process_claim(map, fd, &index)
    if status != OK:
        close(fd)
        return status
    standing.lock_fd = fd
    standing.lock_page = page_kept(fd)
    if standing.lock_page != NULL:
        standing.lock_fd = -1
        close(fd)
        if process_is_dead(map, index):        # self-test: this kernel lets go of the lock
            munmap(standing.lock_page, PAGE_BYTES)
            standing.lock_page = NULL
            fd = segment_open(map)
            if fd < 0 or byte_lock(fd, F_OFD_SETLK, F_WRLCK, index) != 0:
                store_release_u64(&(map.processes + index).used, 0)
                return SYSTEM_ERROR
            standing.lock_fd = fd
    map.local.process_index = index
    map.local.registered = 1
    return OK

cdef inline void context_note_time(Context *context) noexcept nogil:
    """For people who ask when a map was used last."""
    store_relaxed_u64(&context.active_ns, <uint64_t> clock_ns(CLOCK_REALTIME))

cdef inline void context_forget(Context *context) noexcept nogil:
    """Drop the names a former owner left; nothing they name is owned by this context any more."""
    context.operation = 0
    store_relaxed_u64(&context.element, 0)
    context.target = 0
    context.line = 0
    context.line_stash = 0
    store_relaxed_u64(&context.spare, 0)
    context.chain_count = 0
    context.credit_moving = 0
    if context.activity & 1:
        store_relaxed_u64(&context.activity, context.activity + 1)
    context.activity_before = context.activity
    context.batched = 0
    context.waits = 0
    context_note_time(context)

cdef inline Status context_claim(Map *map, uint64_t *index) noexcept nogil:
    """Take a free context for this registered process."""
    cdef Context *context
    cdef uint64_t at
    cdef int fd
    cdef Status status
    for at in range(CONTEXT_MAX):
        if at >= contexts_usable(map):
            fd = segment_open(map)
            if fd < 0:
                return SYSTEM_ERROR
            status = region_extend(map, fd, REGION_CONTEXTS, (at + 1) * map.context_stride)
            close(fd)
            if status != OK:
                return status
        context = context_at(map, at)
        if load_relaxed_u64(&context.owner) == 0 and cas_acquire_u64(
                &context.owner, 0, map.local.process_index + 1):
            context_forget(context)
            index[0] = at
            return OK
    return NO_CONTEXT

cdef inline void process_leave(Map *map, Standing *standing) noexcept nogil:
    """Give the slot back. The process's contexts are free already."""
    # Release: pairs with the acquire in process_claim. Only then is the byte given up.
    store_release_u64(&(map.processes + map.local.process_index).used, 0)
    map.local.registered = 0
    if standing.lock_page != NULL:
        munmap(standing.lock_page, PAGE_BYTES)
    if standing.lock_fd >= 0:
        close(standing.lock_fd)
    standing.lock_page = NULL
    standing.lock_fd = -1
