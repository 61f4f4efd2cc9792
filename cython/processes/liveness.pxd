# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# Which processes are attached, and which of them are dead: the kernel decides (C3).
#
# Process slot i is held by an open-file-description lock on byte i of the segment's file. The
# process opens the file afresh, locks the byte, maps a page of it, excludes that page from fork and
# closes the descriptor: the mapping alone keeps the open file, and with it the lock, until the
# address space dies. So the lock survives code that closes every descriptor, is not inherited, and
# vanishes with SIGKILL though children live on; it is seen from every PID namespace and never
# mistaken for a reused pid. A check is one F_OFD_GETLK. If a self-test finds that the mapping does
# not keep the lock, the descriptor stays open instead (Standing.lock_fd) and _core closes it in
# children of fork. From the opening to the closing, fork is kept out (fork_guard.h).
#
# A process that cannot have a lock of its own claims its slot by its pid (claim.pxd).
#
# Byte REMOVAL_BYTE is locked by the process that removes the segment's name (shmrhash/_segment.py).
# Byte READER_BYTE is locked, shared, by attachments whose operations other processes cannot follow,
# because they have no slot (they may not write the file) or no membarrier: while there is one, the
# memory of buckets, lines and elements is not given back.
#
# `used` is stored, by a CAS, after the lock is held, so "used, and the byte is free" always means
# dead. A used slot is never claimed before the contexts in its name are recovered.
#
# The word `recoverer` of slot i names the process that recovers process i, by its slot. It is a
# word and not a kernel lock because a word needs no descriptor, no memory and no permission, and
# neither a child of fork nor a reader of the file can keep it. If the recoverer dies, the next
# process finds its name in the word, and replaces it by a CAS. The word counts its changes, so a
# CAS that expects an old value fails even if the same name has come back. Before a slot becomes
# free, all words that name it are cleared, so a name never passes to the slot's next user.
from libc.stdint cimport uint32_t, uint64_t
from machine.atomics cimport (
    load_relaxed_u64, load_acquire_u64, store_relaxed_u64, store_release_u64, cas_acquire_u64,
    cas_acq_rel_u64, fence_seq_cst,
)
from machine.system cimport (
    F_WRLCK, F_RDLCK, F_UNLCK, F_OFD_GETLK, F_OFD_SETLK, close, getpid, munmap, fork_guard_begin,
    fork_guard_end, CLOCK_REALTIME, clock_ns,
)
from segment.status cimport Status, OK, FULL, NO_CONTEXT, SYSTEM_ERROR
from segment.layout cimport (
    PAGE_BYTES, PROCESS_MAX, CONTEXT_MAX, REGION_PROCESSES, REGION_CONTEXTS, Region, ProcessSlot,
    Context,
)
from segment.classes cimport round_up
from segment.geometry cimport Map, context_at, region_usable, contexts_usable, processes_usable
from segment.file cimport segment_open, segment_fd, header_begin, header_end, byte_lock, page_kept
from memory.operation cimport Op
from memory.region cimport memory_ask, context_fences
from processes.claim cimport (
    CLAIM_LOCKED, CLAIM_BY_PID, CLAIM_READS, claim_word, pid_namespace, claim_can_be_judged,
    claim_is_dead,
)

cdef extern from "<sys/prctl.h>" nogil:
    int prctl(int option, ...) noexcept
    enum: PR_GET_NAME

cdef extern from *:
    """
    static unsigned int shm_registrations = 0;     /* of this process, so that claims differ */
    """
    unsigned int shm_registrations

cdef enum:
    AHEAD = 16                 # slots and contexts committed in advance, in case memory runs out
    AHEAD_BYTES_MAX = 8192     # contexts are not, if AHEAD of them take more bytes
    LOCK_TRIES_MAX = 3         # to lock a byte that F_OFD_GETLK then reports as free
    RECOVERER_MASK = 0xFFFF
    RECOVERED_ONE = 0x10000

# How a registered process keeps its lock. Fork wipes Local, but not this. With neither a page nor a
# descriptor, the claim is by pid.
cdef struct Standing:
    void *lock_page            # keeps the lock; children of fork do not have it
    int lock_fd                # keeps the lock where a mapping does not; else -1


cdef inline bint process_is_dead(Map *map, uint64_t index) noexcept nogil:
    """Whether a process slot is in use and its process is dead. False if that cannot be known."""
    cdef uint64_t claim
    if index >= processes_usable(map):
        return False
    # Acquire: pairs with the CAS in slot_claim; the byte was locked before that.
    claim = load_acquire_u64(&map.processes[index].used)
    if claim == 0 or not claim_is_dead(segment_fd(map), index, claim):
        return False
    # If the claim has changed, the process left, and another may have come, after the first load.
    return load_acquire_u64(&map.processes[index].used) == claim

cdef inline bint process_can_be_judged(Map *map, uint64_t index) noexcept nogil:
    """Whether process_is_dead can tell that the process is dead, if it is."""
    if index >= processes_usable(map):
        return False
    return claim_can_be_judged(
        segment_fd(map), load_acquire_u64(&map.processes[index].used))

cdef inline bint recoverer_lives(Map *map, uint64_t word) noexcept nogil:
    """Whether a word `recoverer` names a process that is not known to be dead."""
    return word & RECOVERER_MASK != 0 and not process_is_dead(map, (word & RECOVERER_MASK) - 1)

cdef inline bint recoverer_enter(Map *map, uint64_t index) noexcept nogil:
    """Become the recoverer of process index. False: another process is, or this process has no slot
    to be named by, or may not write."""
    cdef uint64_t *word = &map.processes[index].recoverer
    # Acquire, here and in the CAS: the stores of an earlier recoverer; pairs with recoverer_leave.
    # A recoverer that died made no release, but its death is known from the kernel, which orders
    # more.
    cdef uint64_t seen = load_acquire_u64(word)
    if map.read_only or not map.local.registered or recoverer_lives(map, seen):
        return False
    return cas_acq_rel_u64(word, seen, (seen & ~<uint64_t> RECOVERER_MASK) + RECOVERED_ONE
                           + map.local.process_index + 1)

cdef inline void recoverer_leave(Map *map, uint64_t index) noexcept nogil:
    cdef uint64_t *word = &map.processes[index].recoverer
    # Release: the stores of this recovery; pairs with the acquire in recoverer_enter.
    store_release_u64(word, load_relaxed_u64(word) & ~<uint64_t> RECOVERER_MASK)

cdef inline void recoverers_forget(Map *map, uint64_t dead) noexcept nogil:
    """Clear the words that name a dead process as the recoverer of others. Only the process that
    recovers it calls this, and the dead process stores nothing any more, so afterwards each of the
    words is cleared or names another process."""
    cdef uint64_t at, seen
    cdef uint64_t *word
    for at in range(processes_usable(map)):    # at most PROCESS_MAX
        word = &map.processes[at].recoverer
        seen = load_acquire_u64(word)
        if seen & RECOVERER_MASK == dead + 1:
            cas_acq_rel_u64(word, seen, seen & ~<uint64_t> RECOVERER_MASK)

cdef inline Status region_extend(Map *map, uint32_t which, uint64_t needed) noexcept nogil:
    """region_commit for the two regions that a process needs before it has a context: process slots
    and contexts. They only grow, and their memory is never given back, so no lock is needed: two
    processes at once commit the same pages, and each raises the marks that are still lower."""
    cdef Region *region = &map.header.regions[which]
    cdef uint64_t upto = round_up(needed, PAGE_BYTES)
    cdef uint64_t usable = region_usable(map, which)
    cdef uint64_t seen
    cdef Status status
    cdef Op op
    if needed > map.region_bytes[which]:
        return FULL
    if usable >= needed:
        return OK
    op.map = map
    status = memory_ask(&op, map.base + map.region_offset[which] + usable, upto - usable)
    if status != OK:
        return status
    if not header_begin(map):
        return SYSTEM_ERROR
    for mark in range(2):                      # allocated is never below usable
        seen = load_relaxed_u64(&region.allocated if mark == 0 else &region.usable)
        while seen < upto:                     # each further turn, another process has raised it
            # Release: the memory is there; pairs with the acquire loads of usable.
            if cas_acq_rel_u64(&region.allocated if mark == 0 else &region.usable, seen, upto):
                break
            seen = load_relaxed_u64(&region.allocated if mark == 0 else &region.usable)
    header_end(map)
    return OK

cdef inline uint64_t share_of(const Map *map, uint64_t all) noexcept nogil:
    """How many of all process slots, or contexts, a process may claim. One that only reads can do
    without (peek.pxd), and leaves half of them to the others."""
    return all // 2 if map.read_only else all

cdef inline uint32_t byte_taken(int fd, uint64_t at) noexcept nogil:
    """Lock byte `at`, of a free slot. Returns the kind of claim that this process can make; 0 if
    another process is about to claim the slot."""
    cdef int _
    for _ in range(LOCK_TRIES_MAX):
        if fd < 0:
            break
        if byte_lock(fd, F_OFD_SETLK, F_WRLCK, at) == 0:
            return CLAIM_LOCKED
        if byte_lock(fd, F_OFD_GETLK, F_RDLCK, at) != 0:
            return 0
    return CLAIM_BY_PID                        # no descriptor, or a shared lock is in the way

cdef inline void slot_describe(ProcessSlot *slot) noexcept nogil:
    """Store what people want to know about this process."""
    slot.pid = <uint64_t> getpid()
    prctl(PR_GET_NAME, slot.command)           # 16 bytes at most
    slot.attached_ns = <uint64_t> clock_ns(CLOCK_REALTIME)
    slot.namespace_inode = pid_namespace()

cdef inline bint slot_claim(
        ProcessSlot *slot, uint32_t kind, uint64_t claim_before) noexcept nogil:
    """Store this process's claim, if the word is still claim_before. Only a claim of kind
    CLAIM_LOCKED holds the slot's byte."""
    cdef uint64_t namespace_inode = pid_namespace()
    global shm_registrations
    if kind == CLAIM_BY_PID and namespace_inode == 0:
        return False
    shm_registrations += 1
    # Release: the lock is held; pairs with the acquire in process_is_dead.
    if not cas_acq_rel_u64(&slot.used, claim_before, claim_word(
            kind, getpid(), shm_registrations, namespace_inode)):
        return False
    slot_describe(slot)
    return True

cdef inline Status process_claim(Map *map, int fd, uint64_t *index, bint *locked) noexcept nogil:
    """Claim a free slot. locked: whether its byte could be locked."""
    cdef uint64_t at
    cdef uint32_t kind
    cdef Status status
    for at in range(share_of(map, PROCESS_MAX)):
        if at >= processes_usable(map):
            status = region_extend(map, REGION_PROCESSES, (at + 1) * sizeof(ProcessSlot))
            if status != OK:
                return status
        if load_acquire_u64(&map.processes[at].used) != 0:
            continue
        kind = byte_taken(fd, at)
        if kind == 0:
            continue
        if slot_claim(map.processes + at, kind, 0):
            if map.read_only:                  # only this process stores to its claim
                store_relaxed_u64(
                    &map.processes[at].used, map.processes[at].used | CLAIM_READS)
            region_extend(map, REGION_PROCESSES, (at + 1 + AHEAD) * sizeof(ProcessSlot))
            index[0] = at
            locked[0] = kind == CLAIM_LOCKED
            return OK
        if kind == CLAIM_LOCKED:
            byte_lock(fd, F_OFD_SETLK, F_UNLCK, at)
        elif pid_namespace() == 0:
            return SYSTEM_ERROR
    return NO_CONTEXT

cdef inline Status process_keep(
        Map *map, Standing *standing, int fd, uint64_t index) noexcept nogil:
    """Keep the lock on byte index, which the open file fd has: by a mapping if possible, else by
    the descriptor."""
    standing.lock_fd = fd
    standing.lock_page = page_kept(fd)
    if standing.lock_page != NULL:
        standing.lock_fd = -1
        close(fd)
        if process_is_dead(map, index):        # self-test: the mapping does not keep the lock
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

cdef inline Status process_register(Map *map, Standing *standing) noexcept nogil:
    """Give this process a slot. The caller keeps other threads out until this returns."""
    cdef uint64_t index = 0
    cdef Status status
    cdef bint locked = False
    cdef int fd
    standing.lock_page = NULL
    standing.lock_fd = -1
    fork_guard_begin()
    fd = segment_open(map)
    status = process_claim(map, fd, &index, &locked)
    if status == OK and locked:
        status = process_keep(map, standing, fd, index)
    elif fd >= 0:
        close(fd)
    if status == OK and not locked:
        map.local.process_index = index
        map.local.registered = 1
    fork_guard_end()
    return status

cdef inline void context_note_time(Map *map, Context *context) noexcept nogil:
    """Note the time, for people who ask when a map was last used. Reading by a read-only handle
    does not count as use."""
    if map.read_only:
        return
    store_relaxed_u64(&context.active_ns, <uint64_t> clock_ns(CLOCK_REALTIME))

cdef inline void context_forget(Map *map, Context *context) noexcept nogil:
    """Clear the names that a former owner left: the context owns none of the things named."""
    context.operation = 0
    store_relaxed_u64(&context.element, 0)
    context.target = 0
    context.line = 0
    context.line_stash = 0
    context.list_count = 0
    context.credit_moving = 0
    if context.activity & 1:
        store_relaxed_u64(&context.activity, context.activity + 1)
    context.activity_before = context.activity
    context.batched = 0
    context.waits = 0
    context_note_time(map, context)

cdef inline Status context_claim_for(
        Map *map, uint64_t process_index, uint64_t *index) noexcept nogil:
    """Take a free context in the name of a process slot."""
    cdef Context *context
    cdef uint64_t at
    cdef Status status
    for at in range(share_of(map, map.context_max)):
        if at >= contexts_usable(map):
            status = region_extend(map, REGION_CONTEXTS, (at + 1) * map.context_stride)
            if status != OK:
                return status
        context = context_at(map, at)
        if load_relaxed_u64(&context.owner) == 0 and cas_acquire_u64(
                &context.owner, 0, process_index + 1):
            fence_seq_cst()                    # pairs with the fence in looks_are_ordered
            if load_relaxed_u64(&map.header.fences) != 0:
                context_fences(context)
            context_forget(map, context)
            if AHEAD * map.context_stride <= AHEAD_BYTES_MAX:
                region_extend(map, REGION_CONTEXTS, (at + 1 + AHEAD) * map.context_stride)
            index[0] = at
            return OK
    return NO_CONTEXT

cdef inline Status context_claim(Map *map, uint64_t *index) noexcept nogil:
    """Take a free context for this registered process."""
    return context_claim_for(map, map.local.process_index, index)

cdef inline void process_leave(Map *map, Standing *standing) noexcept nogil:
    """Give the slot back. The process's contexts are free already."""
    # Release: pairs with the acquire in process_claim. The byte is unlocked only after this.
    store_release_u64(&(map.processes + map.local.process_index).used, 0)
    map.local.registered = 0
    if standing.lock_page != NULL:
        munmap(standing.lock_page, PAGE_BYTES)
    if standing.lock_fd >= 0:
        byte_lock(standing.lock_fd, F_OFD_SETLK, F_UNLCK, map.local.process_index)
        close(standing.lock_fd)                # the unlock above: a child may have a copy
    standing.lock_page = NULL
    standing.lock_fd = -1
