# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# Bells: how a thread that waits for a key learns that the key has changed.
#
# A bell is a futex word in the header's page, which is always committed; so waiting does not depend
# on elements that are reused, buckets that are split, or memory that is given back. Keys share
# bells by their hash. A waiter may be woken for another key, and then looks at its own again.
#
#   waited    a bit for each class of keys (hash & 63): a thread may wait for a key of the class
#   waiting   the same bits for one process, in its slot: the truth behind waited
#   key bell  tags : 32   number : 31   SLEEPING : 1
#             a thread sleeps on it, or is about to, for keys with these tags. A key has up to
#             three bits, from its hash: the 32 are a Bloom filter of what is waited for. Number
#             and SLEEPING are the futex word. Tags beside no SLEEPING mean nothing.
#             There is one for each class, and one, BELL_ANY, for waiters for several keys.
#   lock bell number : 31   SLEEPING : 1      for waiters for the end of a section
#
#   waiter                                       writer
#   1 waiting |= class                           A  takes the lock word that it needs anyway: a CAS
#   2 waited |= class                               commits, and releases the word
#   3 bell |= SLEEPING and its tag: a CAS        B  looks at waited, and if the class is in it
#   4 looks at the key: settled?                 C  at the bells; if one has SLEEPING and the tag:
#   5 sleeps, if the bell is as it was in 3      D  changes its number and wakes: one system call
#
# 1 to 3, A, and the looks of 4, B and C have one order (sequential consistency). If B misses what
# 2 stored, or C what 3 stored, then A came before 4: so the waiter finds the lock word held, or
# the change. A word that is held, except by a section, is never slept on: the waiter looks again
# until it is released (key_settled, in read.pxd), and only then knows that nothing is on its way.
# If B and C find the bits, D comes after the commit, and 5 finds another number or is woken.
#
# While no thread waits, a writer pays for one look at waited, in a line that it reads anyway. On
# x86 A is the fence; on AArch64 the release store of the lock word and the load of B keep their
# order.
#
# For a deletion A is the CAS of the element, not of the bucket: a waiter that finds the key never
# looks at the bucket. A look at waited may therefore come anywhere after the element's CAS.
#
# Deaths. A writer that is killed between its commit and D leaves SLEEPING behind: the next writer
# of that bell rings, and so does the process that recovers the dead one (bells_ring_all). A waiter
# also looks by itself after some time, so a bell is a hint that it does not depend on. A dead
# waiter leaves its bits behind, which cost writers a look at a bell until it is recovered.
#
# The last process that waits for a class clears its bit in waited, and looks at the slots again: if
# another process has begun to wait before the bit was cleared, it sets the bit again, counts a loss
# in the ring (ring.pxd), and rings. It does so inside an operation: if it dies there, its recovery
# counts the loss.
#
# The tags keep writers of other keys from ringing. Step 3 replaces tags that it finds without
# SLEEPING, because the waiters that set them have been woken, and adds its own to tags that it
# finds beside SLEEPING. D changes only the futex word: the tags need no clearing.
#
# A process that watches everything waits for every class, with all tags, and reads from the ring
# which keys have changed.
#
# A thread that waits for several keys sleeps on BELL_ANY, which is rung by each change of a key
# whose class is in waited, if the bell has the key's tag. A thread that listens for event loops
# sleeps there, too (listener.pxd); a change that has rung the bell of its key also rings BELL_ANY
# for it. A thread that waits for the end of a section sleeps on the lock bell of the section's
# element, which only the ends of sections ring, and which wakes one sleeper at a time. If no thread
# sleeps there, BELL_ANY is rung after it: an event loop may wait for the section.
from libc.stdint cimport int64_t, uint32_t, uint64_t, uint8_t
from machine.gil cimport state_lock, state_unlock
from machine.atomics cimport (
    and_seq_cst_u64, cas_seq_cst_u64, fence_seq_cst, load_seq_cst_u32, load_seq_cst_u64,
    or_seq_cst_u32, or_seq_cst_u64, static_assert, unlikely,
)
from segment.layout cimport Header, KEY_BELL_COUNT, LOCK_BELL_COUNT
from segment.geometry cimport Map, processes_usable
from memory.operation cimport Op
from map.ring cimport ring_lose

cdef extern from "map/bell.h" nogil:
    enum: SLEEPING "SHM_SLEEPING"
    enum: WAIT_CLASSES "SHM_WAIT_CLASSES"
    enum: LOCK_BELLS "SHM_LOCK_BELLS"
    enum: BELL_ANY "SHM_BELL_ANY"
    uint64_t class_of "shm_class_of" (uint32_t number) noexcept
    uint64_t tag_of "shm_tag_of" (uint32_t hash) noexcept
    uint32_t key_bell_of "shm_key_bell_of" (uint32_t hash) noexcept
    uint32_t lock_bell_of "shm_lock_bell_of" (uint32_t element) noexcept
    uint32_t *bell_futex "shm_bell_futex" (uint64_t *key_bell) noexcept
    bint key_bell_ring "shm_key_bell_ring" (uint64_t *bell, uint64_t tag) noexcept
    bint lock_bell_ring "shm_lock_bell_ring" (uint32_t *bell) noexcept
    int lock_bell_wake "shm_lock_bell_wake" (uint32_t *bell, int count) noexcept
    void bells_section_ring "shm_section_ring" (
        uint64_t *key_bells, uint32_t *lock_bells, uint32_t element) noexcept
    void bells_key_ring "shm_key_ring" (
        uint64_t *key_bells, uint64_t waited, uint32_t hash) noexcept
    void bells_element_ring "shm_element_ring" (
        uint64_t *key_bells, uint32_t *lock_bells, uint64_t waited, uint32_t hash,
        uint32_t element) noexcept

cdef enum:
    OWNER_SLICE_NS = 2000000       # in the first 0.1 s of a wait,
    OWNER_SLICE_LATE_NS = 50000000     # and later
    OWNER_EARLY_NS = 100000000
    ARM_TRIES_MAX = 1000000    # others arm or ring the bell each time: more only in a damaged map
    EVERY_CLASS = 0xFFFFFFFFFFFFFFFFULL    # of waited: a process may be watching everything

cdef inline void bells_are_pinned() noexcept nogil:
    static_assert(<uint32_t> KEY_BELL_COUNT == <uint32_t> BELL_ANY + 1)
    static_assert(<uint32_t> LOCK_BELL_COUNT == <uint32_t> LOCK_BELLS)


# ---- writers: after the commit, with no lock held ----

cdef inline void change_note(Op *op, const uint8_t *key, uint64_t waited) noexcept nogil:
    """If a process may be watching everything, note the key of a change in the ring: before the
    bells are rung, so that a woken thread finds it."""
    if waited == EVERY_CLASS and op.map.ring_note != NULL:
        op.map.ring_note(op, key)

cdef inline void key_changed(Op *op) noexcept nogil:
    """Wake the threads that wait for the key of this operation."""
    key_changed_in(op, op.map.header)

cdef inline void key_changed_in(Op *op, Header *header) noexcept nogil:
    """key_changed, if the caller has the pointer to the header in a register: behind its CAS, the
    compiler would load op.map and map.header again."""
    # After the CAS that took the lock word; pairs with waiting_say.
    cdef uint64_t waited = load_seq_cst_u64(&header.waited)
    if unlikely(waited != 0):
        change_note(op, op.key, waited)
        bells_key_ring(op.map.header.key_bells, waited, op.hash)

cdef inline void word_changed(Op *op, Header *header, uint64_t key) noexcept nogil:
    """key_changed_in for an operation whose key is a word."""
    cdef uint64_t waited = load_seq_cst_u64(&header.waited)
    cdef uint64_t bytes_of_key
    if unlikely(waited != 0):
        bytes_of_key = key                     # so that the key itself can stay in a register
        change_note(op, <const uint8_t *> &bytes_of_key, waited)
        bells_key_ring(op.map.header.key_bells, waited, op.hash)

cdef inline void element_changed(Op *op, const uint8_t *key, uint32_t element) noexcept nogil:
    """Wake the threads that wait for this key, which has the operation's hash, and a waiter for the
    section that the operation has ended on its element, or cut off."""
    # As in key_changed.
    cdef uint64_t waited = load_seq_cst_u64(&op.map.header.waited)
    if unlikely(waited != 0):
        change_note(op, key, waited)
        bells_element_ring(
            op.map.header.key_bells, op.map.header.lock_bells, waited, op.hash, element)

cdef inline void section_ended(Map *map, uint32_t element) noexcept nogil:
    """A section has ended without a change: wake a waiter for its element."""
    # As in key_changed.
    if unlikely(load_seq_cst_u64(&map.header.waited) & class_of(element)):
        bells_section_ring(map.header.key_bells, map.header.lock_bells, element)

cdef inline void bells_ring_all(Map *map) noexcept nogil:
    """Wake every waiter in the map: after a recovery, or when it is frozen."""
    cdef uint32_t at
    if load_seq_cst_u64(&map.header.waited) != 0:
        for at in range(KEY_BELL_COUNT):
            key_bell_ring(&map.header.key_bells[at], 0)
        for at in range(LOCK_BELL_COUNT):
            lock_bell_ring(&map.header.lock_bells[at])


cdef inline void listeners_ring(Map *map) noexcept nogil:
    """The futex word of a cell has changed, and its sleepers were woken: event loops may wait for
    it, too (listener.pxd)."""
    # After the change of the word, a sequentially consistent one; pairs with key_bell_arm.
    key_bell_ring(&map.header.key_bells[BELL_ANY], 0)


# ---- waiters ----

cdef inline bint class_is_waited_for(Map *map, uint64_t classes, uint64_t but) noexcept nogil:
    """Whether any process waits for a key of these classes. but: the slot of one that is left out.
    """
    cdef uint64_t index
    for index in range(processes_usable(map)):         # at most PROCESS_MAX
        if index == but:
            continue
        # After the store that precedes this look; pairs with waiting_begin.
        if load_seq_cst_u64(&map.processes[index].waiting) & classes:
            return True
    return False

cdef inline void classes_forget(Map *map, uint64_t classes, uint64_t process) noexcept nogil:
    """A process, which has this slot, waits no more for keys of these classes: clear those for
    which nobody waits."""
    cdef uint64_t index
    cdef uint64_t each
    for index in range(WAIT_CLASSES):
        each = classes & class_of(<uint32_t> index)
        if each == 0 or class_is_waited_for(map, each, process):
            continue
        and_seq_cst_u64(&map.header.waited, ~each)
        # If one came after the first look, it may have found the bit set.
        if class_is_waited_for(map, each, process):
            or_seq_cst_u64(&map.header.waited, each)
            ring_lose(map)
            bells_ring_all(map)

cdef inline void waiting_begin(Map *map, uint32_t number) noexcept nogil:
    """A thread of this process waits for keys with this hash, or this element's section. The caller
    has the GIL, if there is one."""
    state_lock()
    map.local.waiting[number % WAIT_CLASSES] += 1
    if map.local.waiting[number % WAIT_CLASSES] == 1:
        or_seq_cst_u64(&map.processes[map.local.process_index].waiting, class_of(number))
    state_unlock()

cdef inline void waiting_end(Map *map, uint32_t number) noexcept nogil:
    """The end of waiting_begin, in the same process. The caller has the GIL, if there is one, and
    is inside an operation, if this process has a context for one."""
    state_lock()
    map.local.waiting[number % WAIT_CLASSES] -= 1
    if map.local.waiting[number % WAIT_CLASSES] == 0:
        and_seq_cst_u64(&map.processes[map.local.process_index].waiting, ~class_of(number))
        classes_forget(map, class_of(number), map.local.process_index)
    state_unlock()

cdef inline void waiting_recover(Map *map, uint64_t index) noexcept nogil:
    """A dead process's contexts are recovered, and its slot will be free: it waits no more, and may
    have died before it rang."""
    cdef uint64_t classes = load_seq_cst_u64(&map.processes[index].waiting)
    if classes != 0:
        classes_forget(map, classes, index)
        # An earlier recoverer may have died in there. The loss is counted before the bits, which
        # are the evidence of that, go.
        ring_lose(map)
        and_seq_cst_u64(&map.processes[index].waiting, 0)
    bells_ring_all(map)

cdef inline void waiting_say(Map *map, uint32_t number) noexcept nogil:
    """Before each look: see that writers of the class look at its bells."""
    # After waiting_begin; pairs with classes_forget.
    if load_seq_cst_u64(&map.header.waited) & class_of(number) == 0:
        or_seq_cst_u64(&map.header.waited, class_of(number))

cdef inline void waiting_say_all(Map *map) noexcept nogil:
    """waiting_say for every class."""
    # After waiting_begin; pairs with classes_forget.
    if load_seq_cst_u64(&map.header.waited) != EVERY_CLASS:
        or_seq_cst_u64(&map.header.waited, EVERY_CLASS)

cdef inline uint32_t key_bell_arm(uint64_t *bell, uint64_t tags) noexcept nogil:
    """Before each look: say that a thread is about to sleep on the bell, for keys with these tags.
    Returns the value of the futex word that the sleep expects."""
    cdef uint64_t seen
    cdef uint64_t others
    cdef uint64_t _turn
    for _turn in range(ARM_TRIES_MAX):
        seen = load_seq_cst_u64(bell)
        others = seen & ~<uint64_t> 0xFFFFFFFF if seen & SLEEPING else 0
        # Also if the bits are there already: the CAS has to come before the looks.
        if cas_seq_cst_u64(bell, seen, others | tags | <uint32_t> seen | SLEEPING):
            break
    # The bits before the looks at lock words, which are acquire loads; pairs with the CAS that
    # takes a lock word, and the look at waited after it.
    fence_seq_cst()
    return <uint32_t> seen | SLEEPING

cdef inline uint32_t lock_bell_arm(uint32_t *bell) noexcept nogil:
    """The same for a lock bell."""
    cdef uint32_t seen = or_seq_cst_u32(bell, SLEEPING) | SLEEPING
    fence_seq_cst()                            # as in key_bell_arm
    return seen

# ---- how long a waiter sleeps at most, before it looks by itself ----

cdef inline int64_t owner_slice_ns(int64_t waited_ns) noexcept nogil:
    """Of a waiter that has waited so long for what another process holds: that may be dead."""
    return OWNER_SLICE_NS if waited_ns < OWNER_EARLY_NS else OWNER_SLICE_LATE_NS

cdef inline int64_t sooner_ns(int64_t moment, int64_t deadline) noexcept nogil:
    """The moment, or the deadline of the wait (negative: there is none), if that is sooner."""
    return deadline if 0 <= deadline < moment else moment


# ---- bells by number: the key bells, BELL_ANY, then the lock bells ----

cdef inline uint32_t bell_of_key(uint32_t hash) noexcept nogil:
    return key_bell_of(hash)

cdef inline uint32_t bell_of_section(uint32_t element) noexcept nogil:
    return KEY_BELL_COUNT + lock_bell_of(element)

cdef inline uint32_t *bell_word(Header *header, uint32_t at) noexcept nogil:
    """The futex word of a bell."""
    if at < KEY_BELL_COUNT:
        return bell_futex(&header.key_bells[at])
    return &header.lock_bells[at - KEY_BELL_COUNT]

cdef inline uint32_t bell_arm(Header *header, uint32_t at, uint64_t tags) noexcept nogil:
    """Before each look: say that a thread is about to sleep on the bell; tags: of the keys that it
    is for, if it is a key bell. Returns the value that the sleep expects."""
    if at < KEY_BELL_COUNT:
        return key_bell_arm(&header.key_bells[at], tags)
    return lock_bell_arm(&header.lock_bells[at - KEY_BELL_COUNT])

cdef inline uint32_t bell_value(Header *header, uint32_t at) noexcept nogil:
    """The value that a sleep of a read-only handle expects: it cannot say that it sleeps."""
    return load_seq_cst_u32(bell_word(header, at))
