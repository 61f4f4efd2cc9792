# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# An event in a cell: a flag that threads of all processes wait for.
#
#   word    generation : 47   SET : 1   unused : 16      never locked; each change is one CAS
#
# Setting the flag raises the generation. A waiter notes the generation before it waits, and returns
# when the flag is set or the generation has moved: so it also learns of a flag that was set and
# then cleared while it slept. It sleeps on the cell's bell, as bell.pxd describes: the CAS that
# sets the flag comes before the look at the bell. If the process is killed between the two, the
# waiters look by themselves at the end of their slices.
from libc.stdint cimport int64_t, uint32_t, uint64_t
from machine.atomics cimport cas_acq_rel_u64, load_acquire_u64
from machine.system cimport futex_sleep
from segment.geometry cimport Map
from map.bell cimport lock_bell_arm
from cells.cell cimport Cell, cell_ring

cdef enum:
    FLAG_SET = 0x10000ULL
    FLAG_GENERATION_ONE = 0x20000ULL
    FLAG_TURNS_MAX = 1000000           # each turn, another thread has changed the word

cdef inline bint flag_is_set(Cell *cell) noexcept nogil:
    # Acquire: what was done before the flag was set; pairs with flag_set.
    return load_acquire_u64(&cell.word) & FLAG_SET != 0

cdef inline uint64_t flag_generation(Cell *cell) noexcept nogil:
    return load_acquire_u64(&cell.word) // FLAG_GENERATION_ONE

cdef inline bint flag_came(Cell *cell, uint64_t generation) noexcept nogil:
    """Whether the flag is set, or has been since its generation was read."""
    cdef uint64_t word = load_acquire_u64(&cell.word)
    return word & FLAG_SET != 0 or word // FLAG_GENERATION_ONE != generation

cdef inline void flag_set(Map *map, Cell *cell) noexcept nogil:
    cdef uint64_t seen
    cdef int _
    for _ in range(FLAG_TURNS_MAX):
        seen = load_acquire_u64(&cell.word)
        # Release: pairs with flag_is_set. If the flag is set already, its setter wakes the waiters.
        if seen & FLAG_SET or cas_acq_rel_u64(
                &cell.word, seen, (seen + FLAG_GENERATION_ONE) | FLAG_SET):
            break
    cell_ring(map, cell)

cdef inline void flag_clear(Cell *cell) noexcept nogil:
    cdef uint64_t seen
    cdef int _
    for _ in range(FLAG_TURNS_MAX):
        seen = load_acquire_u64(&cell.word)
        if not seen & FLAG_SET or cas_acq_rel_u64(
                &cell.word, seen, seen & ~<uint64_t> FLAG_SET):
            break

cdef inline int flag_sleep(Cell *cell, uint64_t generation, int64_t until) noexcept nogil:
    """Sleep until the flag is set, or until the clock reads until. Returns what futex_sleep does;
    -1 if there is no reason to sleep."""
    cdef uint32_t bell = lock_bell_arm(&cell.bell)
    if flag_came(cell, generation):
        return -1
    return futex_sleep(&cell.bell, bell, until)
