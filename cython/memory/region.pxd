# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# Pages for the segment: committing them, and giving them back (M1).
#
# On a full tmpfs even reading a hole is SIGBUS, so only memory that was committed here is touched.
# MADV_POPULATE_WRITE allocates and maps pages and reports failure instead of raising SIGBUS;
# MADV_REMOVE gives them back. Neither needs a descriptor, which the process may have closed. Where
# they are refused (a kernel before 5.14, a sandbox, memory that the program has locked),
# fallocate() does the same by descriptor; its pages are mapped at the first touch.
#
# A region (layout.pxd) grows and shrinks at its end. Commit: lock; raise allocated; populate; raise
# usable; unlock. Release: lock; lower usable; check quiescence; remove; lower allocated; unlock.
# Wherever the process is killed, usable never covers a page that may be missing, and allocated
# covers every page that may be there: recovery only has to unlock, and the next release removes
# what was left. The same holds for a release that the kernel refuses. Blocks of a pool are
# committed and released one by one, each under its own word (pool.pxd).
#
# Quiescence: no reader can still hold an index into the memory that is to be given back. Every
# operation makes its context's activity odd, then looks; the releaser makes the memory unreachable,
# then lets membarrier() order that against all running threads, then reads every activity. If a
# context stays odd for more than a few pauses, the release is postponed; it never waits longer.
from libc.errno cimport errno, EAGAIN, EFAULT, EINTR, ENOMEM
from libc.stdint cimport uint32_t, uint64_t, uint8_t
from posix.types cimport off_t
from machine.atomics cimport (
    load_relaxed_u64, load_acquire_u64, store_relaxed_u64, store_release_u64, add_relaxed_u64,
    fence_seq_cst, compiler_fence, pause,
)
from machine.system cimport F_WRLCK, F_OFD_GETLK, madvise
from segment.status cimport Status, OK, FULL, NO_MEMORY, BUSY, OUT_OF_BYTES
from segment.layout cimport PAGE_BYTES, LINE_BYTES, PAYLOAD_SHIFT, REGION_BUCKETS, Region, Context
from segment.classes cimport round_up
from segment.geometry cimport Map, region_at, context_at, contexts_usable
from segment.file cimport READER_BYTE, segment_fd, header_begin, header_end, byte_lock
from memory.operation cimport Op, lock_acquire, lock_release
from memory.budget cimport region_charge

cdef extern from "<unistd.h>" nogil:
    long syscall(long number, ...) noexcept

cdef extern from "<sys/syscall.h>" nogil:
    enum: SYS_membarrier

cdef extern from "<fcntl.h>" nogil:
    int fallocate(int fd, int mode, off_t offset, off_t size) noexcept
    enum: FALLOC_FL_KEEP_SIZE
    enum: FALLOC_FL_PUNCH_HOLE

cdef extern from "<errno.h>" nogil:
    enum: EHWPOISON

cdef extern from "<sys/mman.h>" nogil:
    enum: MADV_HUGEPAGE

cdef extern from *:
    """
    #ifndef MADV_POPULATE_WRITE
    #define MADV_POPULATE_WRITE 23
    #endif
    #ifndef MADV_REMOVE
    #define MADV_REMOVE 9
    #endif
    """
    enum: MADV_POPULATE_WRITE
    enum: MADV_REMOVE

cdef enum:
    COMMIT_STEP_MAX = 262144   # a step of 256 KiB takes about 60 us; regions grow by an eighth
    POPULATE_TRIES_MAX = 100   # tries, each interrupted by a signal
    QUIET_PAUSES_MAX = 200     # an operation takes less, unless its thread is not running
    HUGE_BYTES = 2097152
    HUGE_FROM = 8388608        # bytes of one region: its last huge page adds at most a quarter
    MEMBARRIER_CMD_GLOBAL_EXPEDITED = 2
    MEMBARRIER_CMD_REGISTER_GLOBAL_EXPEDITED = 4

cdef inline bint memory_remove(Op *op, uint8_t *address, uint64_t size) noexcept nogil:
    """Give size bytes back. False, with errno, if the kernel refuses this by address and by
    descriptor: then all of them are still there, or, if the program has locked a part, some.
    """
    cdef int fd
    if madvise(address, size, MADV_REMOVE) == 0:
        return True
    fd = segment_fd(op.map)
    return fd >= 0 and fallocate(
        fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, address - op.map.base, size) == 0

cdef inline bint memory_allocate(Op *op, uint8_t *address, uint64_t size) noexcept nogil:
    """Allocate size bytes of the file, all or none, without mapping them."""
    cdef int fd = segment_fd(op.map)
    cdef int _
    if fd < 0:
        return False
    for _ in range(POPULATE_TRIES_MAX):
        if fallocate(fd, 0, address - op.map.base, size) == 0:
            return True
        if errno != EINTR:
            break
    op.error_number = errno
    return False

cdef inline Status memory_ask(Op *op, uint8_t *address, uint64_t size) noexcept nogil:
    """Allocate and map size bytes. If that fails, some of them may be allocated."""
    cdef int _
    for _ in range(POPULATE_TRIES_MAX):
        if madvise(address, size, MADV_POPULATE_WRITE) == 0:
            return OK
        if errno != EINTR and errno != EAGAIN:
            break
    op.error_number = errno
    op.bytes_wanted = size
    if errno != ENOMEM and errno != EFAULT and errno != EHWPOISON:     # no such request, or refused
        if memory_allocate(op, address, size):
            return OK
    return NO_MEMORY

cdef inline Status memory_populate(Op *op, uint8_t *address, uint64_t size) noexcept nogil:
    """Allocate and map size bytes, all or none. NO_MEMORY: op.error_number says whether the file
    system has no memory or the kernel refuses the request."""
    cdef Status status = memory_ask(op, address, size)
    if status != OK:
        # Give back what was allocated. If the kernel refuses, the next attempt finds it allocated.
        memory_remove(op, address, size)
    return status

cdef inline void memory_prefer_huge(
        Map *map, uint64_t start, uint64_t size, uint64_t at, uint64_t step) noexcept nogil:
    """Called before step bytes are committed at the offset at of a region that begins at start: ask
    for huge pages if much of the region is in use. The kernel remembers the advice, so one call for
    each 2 MiB is enough."""
    # A huge page is more than was charged for.
    cdef uint64_t first = round_up(start + (size if map.counts_all else HUGE_FROM), HUGE_BYTES)
    cdef uint64_t last = (start + size) // HUGE_BYTES * HUGE_BYTES
    cdef uint64_t offset = start + at
    if offset >= first and first < last and (
            (offset - 1) // HUGE_BYTES != (offset + step - 1) // HUGE_BYTES):
        madvise(map.base + first, last - first, MADV_HUGEPAGE)

cdef inline bint context_is_quiet(Context *context) noexcept nogil:
    # Acquire: pairs with the release in context_end; if the value is even or has changed, all reads
    # of the operation that was under way are done.
    cdef uint64_t seen = load_acquire_u64(&context.activity)
    cdef int _
    if not seen & 1:
        return True
    for _ in range(QUIET_PAUSES_MAX):
        if load_acquire_u64(&context.activity) != seen:
            return True
        pause()
    return False

cdef inline bint membarrier_register() noexcept nogil:
    """Let membarrier_all in other processes order this process's accesses, too. False: refused."""
    return syscall(SYS_membarrier, MEMBARRIER_CMD_REGISTER_GLOBAL_EXPEDITED, 0, 0) == 0

cdef inline bint membarrier_all(Map *map) noexcept nogil:
    """A full fence in every running thread of the processes that registered. False: refused."""
    return map.use_membarrier and (
        syscall(SYS_membarrier, MEMBARRIER_CMD_GLOBAL_EXPEDITED, 0, 0) == 0)

cdef inline bint fences_demand(Map *map) noexcept nogil:
    """Set header.fences for good, because this process may not call membarrier: from here on every
    reader makes a fence before it looks at an object. At attaching this is called before the
    process has a context of this map. False: it cannot have one."""
    if not header_begin(map):
        return False
    store_relaxed_u64(&map.header.fences, 1)
    header_end(map)
    return True

cdef inline void context_fences(Context *context) noexcept nogil:
    """Note in this context that its owner has seen header.fences, and that later owners will."""
    # Release: after the last look without a fence; pairs with the acquire in context_relies.
    store_release_u64(&context.fences, 1)

cdef inline bint context_relies(Context *context) noexcept nogil:
    """Whether a context has an owner that makes no fences, but relies on releasers' membarriers."""
    # Acquire: pairs with the releases of an owner, and in context_fences.
    return load_acquire_u64(&context.owner) != 0 and load_acquire_u64(&context.fences) == 0

cdef inline bint looks_are_ordered(Map *map, const Context *own) noexcept nogil:
    """Called after a store: whether for each context but own, either this process sees the name of
    what the context is looking at, or the context will see that store. False: membarrier is
    refused, and there is a context whose owner relies on it."""
    cdef uint64_t index
    # Pairs with the fences in hazard_fence, object_own and context_claim_for.
    fence_seq_cst()
    if membarrier_all(map):
        return True
    if load_relaxed_u64(&map.header.fences) == 0 and errno != ENOMEM:      # newly refused
        fences_demand(map)
    for index in range(contexts_usable(map)):  # at most CONTEXT_MAX
        context = context_at(map, index)
        if context != own and context_relies(context):
            return False
    return True

cdef inline bint contexts_are_quiet(Op *op) noexcept nogil:
    """Whether no operation in another context that began before this call is still under way. If
    so, operations that begin later see what was stored before this call."""
    cdef Map *map = op.map
    cdef uint64_t index
    cdef uint64_t count = contexts_usable(map)
    cdef Context *context
    fence_seq_cst()
    if not membarrier_all(map):
        return False
    for index in range(count):              # at most CONTEXT_MAX
        context = context_at(map, index)
        if context != op.context and not context_is_quiet(context):
            return False
    return True

cdef inline bint memory_is_quiet(Op *op) noexcept nogil:
    """Whether no operation that began before this call can still be under way. A process without
    contexts, or one that may not call membarrier, cannot show its operations: while one is
    attached, the answer is no."""
    if contexts_are_quiet(op) and byte_lock(
            segment_fd(op.map), F_OFD_GETLK, F_WRLCK, READER_BYTE) == 0:
        return True
    add_relaxed_u64(&op.map.header.statistics.releases_postponed, 1)
    return False

cdef inline Status region_commit(Op *op, uint32_t which, uint64_t needed) noexcept nogil:
    """Make the first needed bytes of a region usable. FULL if the region is not that large;
    NO_MEMORY, OUT_OF_BYTES, BUSY."""
    cdef Map *map = op.map
    cdef Region *region = region_at(map, which)
    cdef uint64_t held = 0
    cdef uint64_t usable, upto, step
    cdef Status status
    if needed > map.region_bytes[which]:
        return FULL
    op.context.region = which + 1
    compiler_fence()
    status = lock_acquire(op, &region.lock, &held)
    if status != OK:
        return status
    usable = load_relaxed_u64(&region.usable)
    if usable < needed:
        step = round_up(usable // 8, PAGE_BYTES)
        upto = round_up(needed, PAGE_BYTES)
        if step > COMMIT_STEP_MAX:
            step = COMMIT_STEP_MAX
        if upto < usable + step:
            upto = usable + step
        if upto > map.region_bytes[which]:
            upto = map.region_bytes[which]
        status = region_charge(op, region, upto)
        if status == OUT_OF_BYTES and upto > round_up(needed, PAGE_BYTES):     # then no more ahead
            upto = round_up(needed, PAGE_BYTES)
            status = region_charge(op, region, upto)
        compiler_fence()
        if status != OK:
            lock_release(&region.lock, held)
            return status
        if which == REGION_BUCKETS:
            memory_prefer_huge(
                map, map.region_offset[which], map.region_bytes[which], usable, upto - usable)
        status = memory_populate(
            op, map.base + map.region_offset[which] + usable, upto - usable)
        # Release: the pages are committed; pairs with the acquire loads of usable.
        if status == OK:
            store_release_u64(&region.usable, upto)
    lock_release(&region.lock, held)
    return status

cdef inline bint buckets_fit(Map *map, uint32_t which, uint64_t keep) noexcept nogil:
    return (which != REGION_BUCKETS
            or (load_acquire_u64(&map.header.table) >> PAYLOAD_SHIFT) * LINE_BYTES <= keep)

cdef inline Status region_release(Op *op, uint32_t which, uint64_t keep) noexcept nogil:
    """Give back what a region has beyond keep bytes, unless an operation may be looking at it."""
    cdef Map *map = op.map
    cdef Region *region = region_at(map, which)
    cdef uint64_t held = 0
    cdef uint64_t usable, allocated
    cdef Status status
    op.context.region = which + 1
    compiler_fence()
    status = lock_acquire(op, &region.lock, &held)
    if status != OK:
        return status
    keep = round_up(keep, PAGE_BYTES)
    usable = load_relaxed_u64(&region.usable)
    allocated = load_relaxed_u64(&region.allocated)
    if allocated > map.region_bytes[which]:            # only in a damaged segment
        allocated = map.region_bytes[which]
    if keep < usable:
        store_release_u64(&region.usable, keep)
    if keep < allocated:
        # A split that saw the higher watermark has ended once all is quiet. Check whether the
        # bucket that it added still fits.
        if memory_is_quiet(op) and buckets_fit(op.map, which, keep):
            if memory_remove(
                    op, map.base + map.region_offset[which] + keep, allocated - keep):
                compiler_fence()
                region.allocated = keep
            else:                                      # pages may be missing: usable stays low
                status = BUSY
        else:
            # All pages up to the old value of usable are still there: restore it.
            status = BUSY
            store_release_u64(&region.usable, usable)
    lock_release(&region.lock, held)
    return status
