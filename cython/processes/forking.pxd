# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# A process slot and a context that a process claims for the child it is about to fork.
#
# A child inherits the parent's views as Python objects. A pin keeps the object that a view refers
# to, and a pin belongs to a process slot. The parent's pins end when the parent drops its
# views, so the child needs pins of its own before the parent runs on. The parent makes them before
# the fork:
#
#   parent, before    opens the file, locks the byte of a free slot, claims the slot and a context
#                     for it, and pins the objects of its views in the name of that slot
#   fork              the open file, and with it the lock, is now the child's too
#   parent, after     closes its descriptor: the lock stays while the child has the open file
#   child             keeps the lock as any process does (process_keep), and takes over the slot,
#                     the context and the pins
#
# If the parent is killed before the fork, or the fork fails, or the child dies, no process holds
# the lock any more, and the slot is a dead process's: its recovery ends the pins. A view in use is
# pinned at every moment.
#
# The claim has no pid until the child stores its own: a process that has no descriptor to ask with
# must not judge the child by the life of its parent (claim.pxd).
from libc.stdint cimport uint64_t
from machine.atomics cimport (
    load_relaxed_u64, load_acquire_u64, store_release_u64, cas_acq_rel_u64, local_put_u64,
)
from machine.system cimport F_WRLCK, F_UNLCK, F_OFD_SETLK, close
from segment.status cimport Status, OK, NO_CONTEXT, SYSTEM_ERROR
from segment.layout cimport PROCESS_MAX, REGION_PROCESSES, ProcessSlot
from segment.geometry cimport Map, processes_usable
from segment.file cimport is_segment, segment_open, byte_lock
from processes.claim cimport CLAIM_LOCKED, claim_word, pid_namespace
from processes.liveness cimport Standing, region_extend, slot_claim, process_keep, context_claim_for
from processes.recover cimport recover_all

cdef struct Unborn:            # what a process has claimed for its next child
    int fd                     # holds the lock; -1: nothing is claimed
    uint64_t index             # of the slot
    uint64_t context           # index + 1


cdef inline Status unborn_claim_slot(Map *map, int fd, Unborn *child) noexcept nogil:
    """Claim a free slot, whose byte fd locks, and a context."""
    cdef uint64_t at
    cdef uint64_t claim = claim_word(CLAIM_LOCKED, 0, 0, pid_namespace())
    cdef Status status
    for at in range(PROCESS_MAX):
        if at >= processes_usable(map):
            status = region_extend(map, REGION_PROCESSES, (at + 1) * sizeof(ProcessSlot))
            if status != OK:
                return status
        if load_acquire_u64(&map.processes[at].used) != 0 or byte_lock(
                fd, F_OFD_SETLK, F_WRLCK, at) != 0:
            continue
        # Release: the lock is held; pairs with the acquire in process_is_dead.
        if cas_acq_rel_u64(&map.processes[at].used, 0, claim):
            status = context_claim_for(map, at, &child.context)
            if status == OK:
                child.fd = fd
                child.index = at
                child.context += 1
            else:                              # no context is in its name yet
                store_release_u64(&map.processes[at].used, 0)
            return status
        byte_lock(fd, F_OFD_SETLK, F_UNLCK, at)
    return NO_CONTEXT

cdef inline Status unborn_claim(Map *map, Unborn *child) noexcept nogil:
    """Claim a slot and a context for a child. First recovers the dead, at some 0.3 us for each
    process: otherwise children that end without detaching would use up all slots and pins.

    NO_CONTEXT, NO_MEMORY, SYSTEM_ERROR: there is no slot or no context for it."""
    cdef Status status
    cdef int fd
    recover_all(map)
    fd = segment_open(map)
    if fd < 0:
        return SYSTEM_ERROR
    status = unborn_claim_slot(map, fd, child)
    if status != OK:
        close(fd)
    return status

cdef inline void unborn_release(Map *map, Unborn *child) noexcept nogil:
    """In the parent, after the fork: the slot is the child's, or a dead process's."""
    if child.fd >= 0 and is_segment(map, child.fd):
        close(child.fd)                        # no F_UNLCK: that would unlock the child's too
    child.fd = -1

cdef inline bint unborn_adopt(Map *map, Standing *standing, Unborn *child) noexcept nogil:
    """In the child: take over the slot and the context. False: the descriptor was closed already,
    or the lock cannot be kept; then the slot is a dead process's."""
    cdef ProcessSlot *slot = map.processes + child.index
    cdef int fd = child.fd
    child.fd = -1
    if fd < 0 or not is_segment(map, fd) or process_keep(map, standing, fd, child.index) != OK:
        return False
    slot_claim(slot, CLAIM_LOCKED, load_relaxed_u64(&slot.used))   # now with a pid
    local_put_u64(&map.local.idle_context, child.context)
    return True
