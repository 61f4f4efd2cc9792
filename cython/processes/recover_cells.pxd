# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# Recovery of what a dead process held of cells. context.target names the cell; the cell's own word
# says whether the context holds it (mutex.pxd, shares.pxd, rwlock.pxd).
from libc.stdint cimport uint64_t
from machine.atomics cimport load_relaxed_u64
from segment.status cimport Status, OK, ABSENT, BUSY
from segment.layout cimport ProcessSlot
from memory.operation cimport Op
from memory.pool cimport object_memory_ready
from cells.cell cimport (
    CELL_BARRIER, CELL_CONDITION, CELL_LOCK, CELL_RLOCK, CELL_RWLOCK, CELL_SEMAPHORE, Cell, cell_at,
)
from cells.barrier cimport barrier_recover
from cells.condition cimport condition_recover, wait_say
from cells.mutex cimport mutex_recover
from cells.rwlock cimport rwlock_recover
from cells.shares cimport SHARES_ARE_TAKEN, shares_recover

cdef inline Status recover_cell(Op *op, const ProcessSlot *owner) noexcept nogil:
    """Let go of what the context holds of the cell that it names. BUSY: the cell is locked."""
    cdef uint64_t index = load_relaxed_u64(&op.context.target)
    cdef Cell *cell
    cdef Status status
    if index == 0 or index >= op.map.element_max:
        wait_say(op.context, 0)                # a waiter that held nothing
        return OK
    status = object_memory_ready(op, &op.map.element_pool, index)      # the name may be damaged
    if status != OK:
        return OK if status == ABSENT else BUSY
    cell = cell_at(op.map, index)
    if cell.kind != CELL_CONDITION and cell.kind != CELL_BARRIER:
        wait_say(op.context, 0)                # only for people and circles
    if cell.kind == CELL_LOCK or cell.kind == CELL_RLOCK:
        mutex_recover(op, cell, owner)
    elif cell.kind == CELL_SEMAPHORE:
        return shares_recover(op, cell, SHARES_ARE_TAKEN)
    elif cell.kind == CELL_RWLOCK:
        return rwlock_recover(op, cell, owner)
    elif cell.kind == CELL_CONDITION:
        condition_recover(op, cell, index)
    elif cell.kind == CELL_BARRIER:
        return barrier_recover(op, cell, index)
    return OK
