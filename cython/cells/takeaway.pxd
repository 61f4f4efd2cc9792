# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# Taking a lock away from an owner that lives: for a leader whose lease has run out, and for people.
#
# One CAS frees the lock, as if the owner had died: ORPHAN, with the owner's name beside it. The
# owner's context stays as it is, so it is used for nothing else as long as its process lives; the
# cell no longer names it. So the owner finds out at its next look at the lock, and its release
# fails, wherever it was stopped: mutex_free changes only a word that names the owner's context.
from libc.limits cimport INT_MAX
from libc.stdint cimport uint32_t
from machine.atomics cimport cas_seq_cst_u32
from machine.system cimport futex_wake
from segment.layout cimport Context, ProcessSlot
from segment.geometry cimport Map
from map.bell cimport listeners_ring
from cells.cell cimport HELD_SINCE, Cell, cell_orphan, held_word
from cells.mutex cimport ORPHAN

cdef inline bint mutex_take_away(
        Map *map, Cell *cell, uint32_t seen, const Context *owner,
        const ProcessSlot *process) noexcept nogil:
    """Free a lock that is held as in the word seen. False: the word has changed."""
    cell_orphan(cell, process, held_word(<Context *> owner, HELD_SINCE))
    if not cas_seq_cst_u32(&cell.state, seen, ORPHAN):
        return False
    # Killed before this, the waiters look by themselves at the end of their slices.
    futex_wake(&cell.state, INT_MAX)
    listeners_ring(map)
    return True
