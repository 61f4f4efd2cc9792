# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# Memory for the segment, and back (M1).
#
# On a full tmpfs even reading a hole is SIGBUS, so nothing is touched that was not committed here.
# MADV_POPULATE_WRITE allocates and maps pages and reports failure instead of raising SIGBUS;
# MADV_REMOVE gives them back. Neither needs a descriptor, which the process may have closed.
#
# A region (layout.pxd) grows and shrinks at its end. Commit: lock; raise allocated; populate; raise
# usable; unlock. Release: lock; lower usable; wait for quiescence; remove; lower allocated; unlock.
# Killed anywhere, usable never covers a page that may be missing, and allocated covers every page
# that may be there: recovery only has to unlock, the next release finds what was left.
#
# Blocks of a pool come and go one by one, under their own word (pool.pxd).
#
# Quiescence: no reader can still hold an index into the memory that is to go. Every operation makes
# its context's activity odd, then looks; the releaser makes the memory unreachable, then lets
# membarrier() order that against all running threads, then looks at every activity. Whoever is odd
# and does not move on within a few pauses postpones the release, and never blocks anybody. That is
# for elements, lines and buckets; objects, which have a budget, wait for less (hazard.pxd).
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.errno cimport errno, EINTR, EAGAIN
from atomics cimport (
    load_acquire_u64, load_relaxed_u64, store_release_u64, add_relaxed_u64, compiler_fence,
    fence_seq_cst, pause,
)
from status cimport Status, OK, NO_MEMORY, BUSY, FULL
from layout cimport (
    Context, Region, PAGE_BYTES, LINE_BYTES, PAYLOAD_SHIFT, REGION_BUCKETS,
)
from blocks cimport round_up
from geometry cimport Map, context_at, contexts_usable, region_at
from system cimport (
    segment_fd, byte_lock, madvise, READER_BYTE, F_OFD_GETLK, F_WRLCK,
)
from lock cimport Op, lock_acquire, lock_release

cdef extern from "<unistd.h>" nogil:
    long syscall(long number, ...) noexcept

cdef extern from "<sys/syscall.h>" nogil:
    enum: SYS_membarrier

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
    POPULATE_TRIES_MAX = 100   # interrupted by signals
    QUIET_PAUSES_MAX = 200     # an operation lasts less, unless its thread is not running
    MEMBARRIER_CMD_GLOBAL_EXPEDITED = 2
    MEMBARRIER_CMD_REGISTER_GLOBAL_EXPEDITED = 4

cdef inline Status memory_populate(Op *op, uint8_t *address, uint64_t size) noexcept nogil:
    """Allocate and map size bytes, all or none."""
    cdef int _
    for _ in range(POPULATE_TRIES_MAX):
        if madvise(address, size, MADV_POPULATE_WRITE) == 0:
            return OK
        if errno != EINTR and errno != EAGAIN:
            break
    op.error_number = errno
    op.bytes_wanted = size
    madvise(address, size, MADV_REMOVE)
    return NO_MEMORY

cdef inline void memory_remove(uint8_t *address, uint64_t size) noexcept nogil:
    madvise(address, size, MADV_REMOVE)

cdef inline bint context_is_quiet(Context *context) noexcept nogil:
    # Acquire: pairs with the release in op_leave; an even or changed value ends what it had read.
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
    """Let membarrier_all of other processes order this one's accesses too. False: refused; then
    this process makes a fence where it begins to write, and lets memory stay (READER_BYTE)."""
    return syscall(SYS_membarrier, MEMBARRIER_CMD_REGISTER_GLOBAL_EXPEDITED, 0, 0) == 0

cdef inline bint membarrier_all(Map *map) noexcept nogil:
    """A full fence in every running thread of those that registered. False: refused."""
    return map.use_membarrier and (
        syscall(SYS_membarrier, MEMBARRIER_CMD_GLOBAL_EXPEDITED, 0, 0) == 0)

cdef inline bint contexts_are_quiet(Op *op) noexcept nogil:
    """Whether no operation of a handle that may write, begun before this call, is still under way;
    and those that begin later see what was stored before it."""
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
    """Whether no operation that began before this call can still be under way. Attachments that may
    not write cannot say what they do: while there are any, the answer is no."""
    if contexts_are_quiet(op) and byte_lock(
            segment_fd(op.map), F_OFD_GETLK, F_WRLCK, READER_BYTE) == 0:
        return True
    add_relaxed_u64(&op.map.header.statistics.releases_postponed, 1)
    return False

cdef inline Status region_commit(Op *op, uint32_t which, uint64_t needed) noexcept nogil:
    """Make the first needed bytes of a region usable. FULL beyond the region's end."""
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
        if region.allocated < upto:
            region.allocated = upto
        compiler_fence()
        status = memory_populate(
            op, map.base + map.region_offset[which] + usable, upto - usable)
        # Release: the pages are there; pairs with the acquire loads of usable.
        if status == OK:
            store_release_u64(&region.usable, upto)
    lock_release(&region.lock, held)
    return status

cdef inline bint buckets_fit(Map *map, uint32_t which, uint64_t keep) noexcept nogil:
    return (which != REGION_BUCKETS
            or (load_acquire_u64(&map.header.table) >> PAYLOAD_SHIFT) * LINE_BYTES <= keep)

cdef inline Status region_release(Op *op, uint32_t which, uint64_t keep) noexcept nogil:
    """Give back what a region has beyond keep bytes, unless somebody may be looking at it."""
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
        # A split that saw the higher watermark has ended once all is quiet; look for its bucket.
        if memory_is_quiet(op) and buckets_fit(op.map, which, keep):
            memory_remove(map.base + map.region_offset[which] + keep, allocated - keep)
            compiler_fence()
            region.allocated = keep
        else:
            # The pages are still there, all of them up to usable: take them back.
            status = BUSY
            store_release_u64(&region.usable, usable)
    lock_release(&region.lock, held)
    return status
