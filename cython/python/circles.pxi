# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# Part of _core.pyx: what a thread that waits for a cell says to others while it sleeps, and circles
# of such threads.


cdef int64_t circle_patience_ns = CIRCLE_PATIENCE_NS


def set_circle_patience(int64_t patience_ns):
    """For tests: after how long a waiter looks for a circle; later looks come after five times as
    long. Returns what that was."""
    global circle_patience_ns
    before = circle_patience_ns
    circle_patience_ns = patience_ns
    return before


cdef uint64_t show_wait(
        MapHandle handle, uint64_t index, uint64_t how, int64_t began) except? 0:
    """Take a context that says that this thread waits for a cell, for locks() and for circles.
    Returns its number, plus 1; 0: all are taken, so others do not know of the wait."""
    cdef Op op
    try:
        begin_with_context(handle, &op)
    except _errors.TooManyProcesses:
        return 0
    held_set(op.context, HELD_THREAD, caller_number())
    held_set(op.context, HELD_SINCE, <uint64_t> began)
    link_say(op.context, index, how)
    return op.self_index + 1


cdef void hide_wait(MapHandle handle, uint64_t shown) noexcept:
    """The end of show_wait, in the same process."""
    if shown != 0:
        wait_say(context_at(&handle.map, shown - 1), 0)
        put_context(handle, <uint32_t> (shown - 1))


cdef int expect_no_circle(
        CellCore core, uint64_t how, int64_t began, int64_t *look_at) except -1:
    """Between two slices of a wait, when it is time to look: raise DeadlockError if the wait is in
    a circle and is the one to be told."""
    cdef Map *map = &core.handle.map
    cdef Op op
    cdef Link mine
    cdef Circle circle
    cdef int64_t now = clock_ns(CLOCK_MONOTONIC)
    cdef bint found
    cdef int at
    if not (how & WAIT_LINK and how & WAIT_ENDLESS) or now < look_at[0] or (
            not map.local.registered):
        return 0
    look_at[0] = now + CIRCLE_REST_TIMES * circle_patience_ns
    op.map = map
    mine.process = map.local.process_index
    mine.thread = caller_number()
    mine.began = <uint64_t> began
    mine.cell = core._index
    mine.how = how
    mine.next_context = 0
    with nogil:
        found = circle_find(&op, &mine, &circle)
    if not found:
        return 0
    waits = []
    for at in range(circle.length):            # at most CIRCLE_MAX
        if process_is_dead(map, circle.links[at].process):
            with nogil:
                recover_all(map)               # so the others go on
            return 0
        waits.append((
            map.processes[circle.links[at].process].pid,
            command_text(map.processes[circle.links[at].process].command),
            circle.links[at].thread, circle.links[at].cell))
    raise _errors.DeadlockError(core._circle_text(waits))
