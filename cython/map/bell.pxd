# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# Bells: how whoever waits for a key learns that it has changed.
#
# A bell is a futex word in the header's page, which is always there; so waiting knows nothing of
# elements that are reused, of buckets that are split, of memory that is given back. Keys share
# bells by their hash. A waiter is woken for keys that are not its own, too, and looks again.
#
#   waited    a bit for each class of keys (hash & 63): somebody may wait for a key of the class
#   waiting   the same bits for one process, in its slot: the truth behind waited
#   bell      number : 31   SLEEPING : 1      somebody sleeps on it, or is about to
#
#   waiter                                       writer
#   1 waiting |= class                           A  takes the lock word that it needs anyway: a CAS
#   2 waited |= class                               commits, and releases the word
#   3 bell |= SLEEPING                           B  looks at waited, and if the class is in it
#   4 looks at the key: settled?                 C  at the bells; if one has SLEEPING:
#   5 sleeps, if the bell is as it was in 3      D  changes its number and wakes: one system call
#
# 1 to 3, A, and the looks of 4, B and C have one order (sequential consistency). If B misses what
# 2 stored, or C what 3 stored, then A came before 4: so the waiter finds the lock word held, or
# the change. A word that is held, except by a section, is never slept on: the waiter looks again
# until it is released (key_settled, in read.pxd), and only then knows that nothing is on its way.
# If B and C find the bits, D comes after the commit, and 5 finds another number or is woken.
#
# A writer pays one look at waited, in a line that it reads anyway, as long as nobody waits. On x86
# A is the fence; on AArch64 the release store of the lock word and the load of B keep their order.
#
# For a deletion A is the CAS of the element, not of the bucket: a waiter that finds the key never
# looks at the bucket. A look at waited may therefore stand anywhere behind the element's CAS.
#
# Deaths. A writer that is killed between its commit and D leaves SLEEPING behind: the next writer
# of that bell rings, and so does the process that recovers the dead one (bells_ring_all). A waiter
# also looks by itself after some time, so a bell is a hint that it does not depend on. A dead
# waiter leaves its bits behind, which cost writers a look at a bell until it is recovered.
#
# The last process that waits for a class clears its bit in waited, and looks again: if another has
# come meanwhile, it sets the bit again and rings.
#
# Who waits for several keys sleeps on BELL_ANY, which every change of a class in waited rings; who
# waits for the end of a section sleeps on the bell of the section's element, which only the end of
# a section rings, and which wakes one sleeper at a time. If no thread sleeps there, BELL_ANY is
# rung behind it: an event loop may wait for the section (listener.pxd).
from libc.stdint cimport uint32_t, uint64_t
from machine.atomics cimport (
    and_seq_cst_u64, fence_seq_cst, load_seq_cst_u32, load_seq_cst_u64,
    or_seq_cst_u32, or_seq_cst_u64, unlikely,
)
from segment.layout cimport BELL_COUNT
from segment.geometry cimport Map, processes_usable

cdef extern from "map/bell.h" nogil:
    enum: SLEEPING "SHM_SLEEPING"
    enum: WAIT_CLASSES "SHM_WAIT_CLASSES"
    enum: BELL_ANY "SHM_BELL_ANY"
    uint64_t class_of "shm_class_of" (uint32_t number) noexcept
    uint32_t *key_bell "shm_key_bell" (uint32_t *bells, uint32_t hash) noexcept
    uint32_t *lock_bell "shm_lock_bell" (uint32_t *bells, uint32_t element) noexcept
    void bell_ring "shm_bell_ring" (uint32_t *bell) noexcept
    void bells_section_ring "shm_section_ring" (uint32_t *bells, uint32_t element) noexcept
    void bells_key_ring "shm_key_ring" (uint32_t *bells, uint64_t waited, uint32_t hash) noexcept
    void bells_element_ring "shm_element_ring" (
        uint32_t *bells, uint64_t waited, uint32_t hash, uint32_t element) noexcept


# ---- writers: after the commit, with no lock held ----

cdef inline void key_changed(Map *map, uint32_t hash) noexcept nogil:
    """Wake whoever waits for a key with this hash."""
    # After the CAS that took the lock word; pairs with waiting_say.
    cdef uint64_t waited = load_seq_cst_u64(&map.header.waited)
    if unlikely(waited != 0):
        bells_key_ring(map.header.bells, waited, hash)

cdef inline void element_changed(Map *map, uint32_t hash, uint32_t element) noexcept nogil:
    """Wake whoever waits for a key with this hash, and a waiter for the section that an operation
    has ended on its element, or cut off."""
    # As in key_changed.
    cdef uint64_t waited = load_seq_cst_u64(&map.header.waited)
    if unlikely(waited != 0):
        bells_element_ring(map.header.bells, waited, hash, element)

cdef inline void section_ended(Map *map, uint32_t element) noexcept nogil:
    """A section has ended without a change: wake a waiter for its element."""
    # As in key_changed.
    if unlikely(load_seq_cst_u64(&map.header.waited) & class_of(element)):
        bells_section_ring(map.header.bells, element)

cdef inline void bells_ring_all(Map *map) noexcept nogil:
    """Wake everybody who waits for anything in the map: after a recovery, or when it is frozen."""
    cdef uint32_t at
    if load_seq_cst_u64(&map.header.waited) != 0:
        for at in range(BELL_COUNT):
            bell_ring(&map.header.bells[at])


# ---- waiters ----

cdef inline bint class_is_waited_for(Map *map, uint64_t classes) noexcept nogil:
    """Whether any process waits for a key of these classes."""
    cdef uint64_t index
    for index in range(processes_usable(map)):         # at most PROCESS_MAX
        # After the store that this look is behind; pairs with waiting_begin.
        if load_seq_cst_u64(&map.processes[index].waiting) & classes:
            return True
    return False

cdef inline void classes_forget(Map *map, uint64_t classes) noexcept nogil:
    """A process waits no more for keys of these classes: clear those for which nobody waits."""
    cdef uint64_t index
    cdef uint64_t each
    for index in range(WAIT_CLASSES):
        each = classes & class_of(<uint32_t> index)
        if each == 0 or class_is_waited_for(map, each):
            continue
        and_seq_cst_u64(&map.header.waited, ~each)
        if class_is_waited_for(map, each):     # it came meanwhile, and may have found the bit set
            or_seq_cst_u64(&map.header.waited, each)
            bells_ring_all(map)

cdef inline void waiting_begin(Map *map, uint32_t number) noexcept nogil:
    """A thread of this process waits for keys with this hash, or this element's section. The caller
    has the GIL."""
    map.local.waiting[number % WAIT_CLASSES] += 1
    if map.local.waiting[number % WAIT_CLASSES] == 1:
        or_seq_cst_u64(&map.processes[map.local.process_index].waiting, class_of(number))

cdef inline void waiting_end(Map *map, uint32_t number) noexcept nogil:
    """The end of waiting_begin, in the same process. The caller has the GIL."""
    map.local.waiting[number % WAIT_CLASSES] -= 1
    if map.local.waiting[number % WAIT_CLASSES] == 0:
        and_seq_cst_u64(&map.processes[map.local.process_index].waiting, ~class_of(number))
        classes_forget(map, class_of(number))

cdef inline void waiting_recover(Map *map, uint64_t index) noexcept nogil:
    """A dead process's contexts are recovered, and its slot will be free: it waits no more, and may
    have died before it rang."""
    cdef uint64_t classes = load_seq_cst_u64(&map.processes[index].waiting)
    if classes != 0:
        and_seq_cst_u64(&map.processes[index].waiting, 0)
        classes_forget(map, classes)
    bells_ring_all(map)

cdef inline void waiting_say(Map *map, uint32_t number) noexcept nogil:
    """Before each look: see that writers of the class look at its bells."""
    # Behind waiting_begin; pairs with classes_forget.
    if load_seq_cst_u64(&map.header.waited) & class_of(number) == 0:
        or_seq_cst_u64(&map.header.waited, class_of(number))

cdef inline uint32_t bell_arm(uint32_t *bell) noexcept nogil:
    """Before each look: say that somebody is about to sleep on the bell. Returns the bell's value
    that the sleep expects."""
    cdef uint32_t seen = or_seq_cst_u32(bell, SLEEPING) | SLEEPING
    # The bits before the looks at lock words, which are acquire loads; pairs with the CAS that
    # takes a lock word, and the look at waited behind it.
    fence_seq_cst()
    return seen

cdef inline uint32_t bell_value(uint32_t *bell) noexcept nogil:
    """The value that a sleep of a read-only handle expects: it cannot say that it sleeps."""
    return load_seq_cst_u32(bell)
