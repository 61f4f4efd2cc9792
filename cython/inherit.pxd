# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# Taking a dead process's slot, where no free one is to be had.
#
# Who recovers is named by its process slot, so a process that finds all slots in use, or no memory
# for more, could not recover the dead that have them. It locks the dead one's own byte instead:
# then that process counts as alive for everybody else, until it is recovered and its slot stands in
# the newcomer's name. If the newcomer dies on the way, the slot is a dead one's as before.
from libc.stdint cimport int64_t, uint64_t
from atomics cimport load_acquire_u64
from status cimport Status, OK
from layout cimport ProcessSlot
from geometry cimport Map, processes_usable
from system cimport (
    byte_lock, clock_ns, close, fork_guard_begin, fork_guard_end, segment_open, CLOCK_MONOTONIC,
    F_OFD_SETLK, F_UNLCK, F_WRLCK,
)
from claim cimport CLAIM_BY_PID, CLAIM_KIND_MASK, CLAIM_LOCKED
from liveness cimport Standing, process_is_dead, process_keep, recoverer_lives, slot_claim
from recovery cimport contexts_recover, recovery_note

cdef inline bint slot_inherit(Map *map, Standing *standing, int fd, uint64_t index) noexcept nogil:
    """Recover a dead process and take its slot at once, for one that finds no free one and thus
    has no name to recover by: it holds the dead one's own byte."""
    cdef ProcessSlot *slot = map.processes + index
    cdef uint64_t claim = load_acquire_u64(&slot.used)
    cdef int64_t began = clock_ns(CLOCK_MONOTONIC)
    if claim == 0 or claim & CLAIM_KIND_MASK == CLAIM_BY_PID or byte_lock(
            fd, F_OFD_SETLK, F_WRLCK, index) != 0:
        return False
    # Who became the recoverer before the byte was held is seen here; who comes later sees the byte.
    if (load_acquire_u64(&slot.used) == claim
            and not recoverer_lives(map, load_acquire_u64(&slot.recoverer))
            and contexts_recover(map, index) == OK and slot_claim(slot, CLAIM_LOCKED, claim)):
        recovery_note(map, began)
        return process_keep(map, standing, fd, index) == OK
    byte_lock(fd, F_OFD_SETLK, F_UNLCK, index)
    return False

cdef inline Status process_inherit(Map *map, Standing *standing, Status why) noexcept nogil:
    """Give this process the slot of a dead one. why: what process_register said."""
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
