# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# Part of _core.pyx: cells of primitives without a key, which are used again when no process can use
# them any more.
#
# Such a cell is private as long as only this process can have objects for it: until an object is
# pickled, or the process forks (machine/privates.h). Then Cell.keeper names the process, by its
# slot and its claim on that. When the object of a private cell ends, the cell is spare; the next
# primitive without a key that this process makes in the space is in it. So when a private cell is
# used again, it has no user any more, and no other process could be about to use it: this needs no
# protocol, and the cell stays at its place in the map, with its key.
#
# If the process ends, its private and spare cells stay behind. A process that makes many cells
# searches all of them for cells whose keeper has ended and is recovered (its slot has another
# claim), and keeps these from then on. The recovery of the keeper's contexts comes before the
# release of its slot, so no context acts on such a cell any more.
#
# A cell that other processes may know stays as long as its space.

cdef extern from "machine/privates.h" nogil:
    int privates_install() noexcept
    void private_add(uint64_t *word, uint64_t value, uint64_t *place) noexcept
    bint private_drop(uint64_t *place) noexcept
    void private_share(uint64_t *word, uint64_t *place) noexcept
    void privates_forget(const void *base, uint64_t size) noexcept

if privates_install() != 0 or state_install() != 0:     # in this order: see gil.h
    raise MemoryError()

cdef enum:
    KEEPER_SLOT_MASK = 0xFFFF
    KEEPER_CLAIM = 0x9E3779B97F4A7C15ULL       # spreads a claim over the upper 48 bits


cdef inline uint64_t keeper_word(Map *map, uint64_t process) noexcept nogil:
    """What stands in Cell.keeper for the process that has this slot; 0: none has."""
    # Acquire: pairs with the release of the slot, after the recovery of its last owner.
    cdef uint64_t claim = load_acquire_u64(&map.processes[process].used)
    claim &= ~<uint64_t> (CLAIM_LEAVING | CLAIM_READS)
    if claim == 0:
        return 0
    return (claim * KEEPER_CLAIM & ~<uint64_t> KEEPER_SLOT_MASK) | (process + 1)


cdef inline bint keeper_has_ended(Map *map, uint64_t keeper) noexcept nogil:
    cdef uint64_t process = (keeper & KEEPER_SLOT_MASK) - 1
    return process >= processes_usable(map) or keeper_word(map, process) != keeper


cdef void cell_make(Cell *cell, uint32_t kind, uint64_t limit, uint64_t word) noexcept nogil:
    """Make a spare cell as one that was just inserted."""
    cell.state = 0
    cell.word = word << PAYLOAD_SHIFT
    cell.limit = limit
    cell.grants = cell.reserved_until = 0
    cell._reserved_b[0] = cell._reserved_b[1] = 0
    cell.orphan_pid = cell.orphan_since = cell.deaths = 0
    memset(cell.orphan_command, 0, 16)
    cell.kind = kind


cdef uint64_t cell_leave(MapHandle handle, Cell *cell, uint64_t share) noexcept:
    """The object of a private cell ends: the cell is spare, and what this process holds of it ends,
    too. share: the context that has the process's permits, plus 1, or 0. Returns the context that
    is idle now, plus 1, or 0."""
    cdef uint32_t seen = load_acquire_u32(&cell.state)
    cdef Context *context
    if (cell.kind == CELL_LOCK or cell.kind == CELL_RLOCK) and word_locked(seen):
        cell.state = 0
        share = word_owner(seen) + 1
    cell.kind = CELL_SPARE
    if share != 0:
        context = context_at(&handle.map, share - 1)
        held_name(context, 0)
        held_set(context, HELD_SHARES, 0)
        count_add(&handle.map.local.held, ONE_LESS)
    return share
