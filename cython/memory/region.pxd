# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# Pages for the segment: committing them, giving them back, and counting those of objects (M1).
#
# On a full tmpfs even reading a hole is SIGBUS, so nothing is touched that was not committed here.
# MADV_POPULATE_WRITE allocates and maps pages and reports failure instead of raising SIGBUS;
# MADV_REMOVE gives them back. Neither needs a descriptor, which the process may have closed. Where
# they are refused (a kernel before 5.14, a sandbox, memory that the program has locked),
# fallocate() does the same by descriptor; its pages are mapped at the first touch.
#
# A region (layout.pxd) grows and shrinks at its end. Commit: lock; raise allocated; populate; raise
# usable; unlock. Release: lock; lower usable; wait for quiescence; remove; lower allocated; unlock.
# Killed anywhere, usable never covers a page that may be missing, and allocated covers every page
# that may be there: recovery only has to unlock, and the next release finds what was left. The same
# holds for a release that the kernel refuses. Blocks of a pool come and go one by one, each under
# its own word (pool.pxd).
#
# Quiescence: no reader can still hold an index into the memory that is to go. Every operation makes
# its context's activity odd, then looks; the releaser makes the memory unreachable, then lets
# membarrier() order that against all running threads, then reads every activity. A context that
# stays odd for more than a few pauses postpones the release; nobody waits for it.
#
# The budget is one lock word that counts the pages of all blocks and runs of objects that are
# committed, exactly, of those that max_bytes allows:
#
#   charge   hold the word; context.budget_after, then context.charged record what is about to
#            happen; the store that unlocks the word commits. The context that charged goes on to
#            use the pages: the store that makes them a block's, or a run's, comes next, and charged
#            becomes 0.
#   refund   pages given up stand in context.debt until the word says so: hold it, budget_after,
#            unlock, none are owed. It may wait: op_give_back tries again.
#
# After a death, budget_after decides what became of the word (budget_recover), and the block or run
# that was charged for decides what becomes of charged (recover_memory.pxd).
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
from memory.operation cimport Op, lock_acquire, lock_release, op_holds

cdef inline uint64_t budget_word(uint64_t *word) noexcept nogil:
    return load_relaxed_u64(word) >> PAYLOAD_SHIFT

cdef inline Status budget_charge(Op *op, uint64_t pages) noexcept nogil:
    """Take pages, into context.charged. OUT_OF_BYTES if max_bytes does not allow them."""
    cdef uint64_t *word = &op.map.objects.budget
    cdef uint64_t held = 0
    cdef uint64_t after
    cdef Status status = lock_acquire(op, word, &held)
    if status != OK:
        return status
    after = (held >> PAYLOAD_SHIFT) + pages
    if after > op.map.max_bytes // PAGE_BYTES:
        lock_release(word, held)
        op.bytes_wanted = pages * PAGE_BYTES
        return OUT_OF_BYTES
    op.context.budget_after = (after + 1) * 2
    compiler_fence()
    op.context.charged = pages
    compiler_fence()
    lock_release(word, after << PAYLOAD_SHIFT)
    compiler_fence()
    op.context.budget_after = 0
    compiler_fence()
    return OK

cdef inline void budget_used(Op *op) noexcept nogil:
    """The pages charged belong to a block or a run now."""
    compiler_fence()
    op.context.charged = 0
    compiler_fence()

cdef inline void debt_add(Op *op, uint64_t pages) noexcept nogil:
    """From here on this context has pages to give back; it must owe none so far."""
    op.context.debt = pages * 2 + 1
    compiler_fence()

cdef inline uint64_t pages_owed(const Context *context) noexcept nogil:
    return context.debt >> 1

cdef inline void budget_owe_none(Op *op) noexcept nogil:
    op.context.debt &= 1
    compiler_fence()

cdef inline Status budget_refund(Op *op) noexcept nogil:
    """Give back what the context owes. BUSY: it goes on debt it."""
    cdef uint64_t *word = &op.map.objects.budget
    cdef uint64_t held = 0
    cdef uint64_t after
    cdef Status status
    if pages_owed(op.context) == 0:
        return OK
    status = lock_acquire(op, word, &held)
    if status != OK:
        return status
    after = held >> PAYLOAD_SHIFT
    after = after - pages_owed(op.context) if after > pages_owed(op.context) else 0
    op.context.budget_after = (after + 1) * 2 + 1
    compiler_fence()
    lock_release(word, after << PAYLOAD_SHIFT)
    compiler_fence()
    budget_owe_none(op)
    op.context.budget_after = 0
    compiler_fence()
    return OK

cdef inline void budget_recover(Op *op) noexcept nogil:
    """The word, and what the context says of it, after its owner's death."""
    cdef Context *context = op.context
    cdef uint64_t *word = &op.map.objects.budget
    cdef uint64_t after = context.budget_after // 2 - 1
    if op_holds(op, word):
        if context.budget_after == 0:          # nothing had been decided
            lock_release(word, load_relaxed_u64(word))
            return
        if not context.budget_after & 1:
            context.charged = after - (load_relaxed_u64(word) >> PAYLOAD_SHIFT)
            compiler_fence()
        lock_release(word, after << PAYLOAD_SHIFT)
        compiler_fence()
    if context.budget_after & 1:
        budget_owe_none(op)
    context.budget_after = 0
    compiler_fence()

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
    POPULATE_TRIES_MAX = 100   # interrupted by signals
    QUIET_PAUSES_MAX = 200     # an operation lasts less, unless its thread is not running
    HUGE_BYTES = 2097152
    HUGE_FROM = 8388608        # of one region: the huge page begun last is a quarter more at most
    MEMBARRIER_CMD_GLOBAL_EXPEDITED = 2
    MEMBARRIER_CMD_REGISTER_GLOBAL_EXPEDITED = 4

cdef inline bint memory_remove(Op *op, uint8_t *address, uint64_t size) noexcept nogil:
    """Give size bytes back. False, with errno, if the kernel takes them neither by address nor by
    descriptor: then they are there as before, or, if the program has locked a part, some of them.
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
    """Allocate and map size bytes. If that fails some of them may be there."""
    cdef int _
    for _ in range(POPULATE_TRIES_MAX):
        if madvise(address, size, MADV_POPULATE_WRITE) == 0:
            return OK
        if errno != EINTR and errno != EAGAIN:
            break
    op.error_number = errno
    op.bytes_wanted = size
    if errno != ENOMEM and errno != EFAULT and errno != EHWPOISON:     # the request is unknown
        if memory_allocate(op, address, size):
            return OK
    return NO_MEMORY

cdef inline Status memory_populate(Op *op, uint8_t *address, uint64_t size) noexcept nogil:
    """Allocate and map size bytes, all or none. NO_MEMORY: op.error_number says whether there is
    none, or the kernel refuses to be asked."""
    cdef Status status = memory_ask(op, address, size)
    if status != OK:
        # What was had of it goes back. If that is refused, it is there when it is wanted next.
        memory_remove(op, address, size)
    return status

cdef inline void memory_prefer_huge(
        Map *map, uint64_t start, uint64_t size, uint64_t at, uint64_t step) noexcept nogil:
    """Before step bytes are committed, at bytes behind the start of a region: ask for huge pages if
    it is large in use. Advice, and once for each 2 MiB: the kernel keeps it."""
    cdef uint64_t first = round_up(start + HUGE_FROM, HUGE_BYTES)
    cdef uint64_t last = (start + size) // HUGE_BYTES * HUGE_BYTES
    cdef uint64_t offset = start + at
    if offset >= first and first < last and (
            (offset - 1) // HUGE_BYTES != (offset + step - 1) // HUGE_BYTES):
        madvise(map.base + first, last - first, MADV_HUGEPAGE)

cdef inline bint context_is_quiet(Context *context) noexcept nogil:
    # Acquire: pairs with the release in context_end; an even or changed value ends what it read.
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
    """Let membarrier_all of other processes order this one's accesses too. False: refused."""
    return syscall(SYS_membarrier, MEMBARRIER_CMD_REGISTER_GLOBAL_EXPEDITED, 0, 0) == 0

cdef inline bint membarrier_all(Map *map) noexcept nogil:
    """A full fence in every running thread of those that registered. False: refused."""
    return map.use_membarrier and (
        syscall(SYS_membarrier, MEMBARRIER_CMD_GLOBAL_EXPEDITED, 0, 0) == 0)

cdef inline bint fences_demand(Map *map) noexcept nogil:
    """A process that may not call membarrier is here: from now on, and for ever, whoever looks at
    an object makes a fence. To be called before the process has a context of this map. False: it
    cannot have one."""
    if not header_begin(map):
        return False
    store_relaxed_u64(&map.header.fences, 1)
    header_end(map)
    return True

cdef inline void context_fences(Context *context) noexcept nogil:
    """This context's owner has seen that, and those who come after it will."""
    # Release: the last look without a fence; pairs with the acquire in looks_are_ordered.
    store_release_u64(&context.fences, 1)

cdef inline bint context_relies(Context *context) noexcept nogil:
    """Whether a context has an owner who relies on the membarriers of those who give memory back.
    """
    # Acquire: pairs with the releases of an owner, and in context_fences.
    return load_acquire_u64(&context.owner) != 0 and load_acquire_u64(&context.fences) == 0

cdef inline bint looks_are_ordered(Map *map, const Context *own) noexcept nogil:
    """After something was stored: whether each context but own either has named what it looks at,
    for this process to see, or will see what was stored. False: membarrier is refused, and there
    is a context whose owner relies on it."""
    cdef uint64_t index
    # Pairs with those in hazard_fence, object_own and context_claim_for.
    fence_seq_cst()
    if membarrier_all(map):
        return True
    if load_relaxed_u64(&map.header.fences) == 0 and errno != ENOMEM:      # it is a new rule
        fences_demand(map)
    for index in range(contexts_usable(map)):  # at most CONTEXT_MAX
        context = context_at(map, index)
        if context != own and context_relies(context):
            return False
    return True

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
        if which == REGION_BUCKETS:
            memory_prefer_huge(
                map, map.region_offset[which], map.region_bytes[which], usable, upto - usable)
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
            if memory_remove(
                    op, map.base + map.region_offset[which] + keep, allocated - keep):
                compiler_fence()
                region.allocated = keep
            else:                                      # some may be missing: usable stays low
                status = BUSY
        else:
            # The pages are still there, all of them up to usable: take them back.
            status = BUSY
            store_release_u64(&region.usable, usable)
    lock_release(&region.lock, held)
    return status
