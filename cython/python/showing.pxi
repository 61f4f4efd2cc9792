# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# Part of _core.pyx: what a thread, a task or a greenlet that waits for a cell says to others; and
# the numbers by which tasks are known. shmrhash/_sync/tasks.py gives these.

cdef uint64_t TASK = 1ULL << 63    # in HELD_THREAD: the number of a task, not of a thread
TASK_NUMBERS = TASK

cdef object look_here = None       # of shmrhash/_awaiting.py
cdef object number_of_task = None  # of shmrhash/_sync/tasks.py
cdef object has_task = None        # likewise


def set_look_here(function):
    """function(key, index): in the running loop, wake the tasks that wait at this cell of the space
    with this notifier_key, if it has changed for them."""
    global look_here
    look_here = function


def set_tasks(number_of_running, running_loop_has):
    """number_of_running(): the number of the running task, which has the bit TASK; 0: there is
    none. running_loop_has(number): whether the loop that runs in this thread has this task."""
    global number_of_task, has_task
    number_of_task = number_of_running
    has_task = running_loop_has


cdef inline void tell_own_loop(CellCore core) noexcept:
    """After a change of a cell: wake the tasks of this thread's loop, which need no listener."""
    if unlikely((<Attachment> core.handle.attachment).listener.words != 0):
        look_here(attachment_key(core.handle), core._index)


cdef bint is_own_number(uint64_t number) noexcept:
    """Whether this is the number of the running thread, greenlet or task."""
    if likely(number == PyThread_get_thread_ident()):
        return True
    if greenlets_used and number == greenlet_number():
        return True
    return number & TASK and number_of_task is not None and number == number_of_task()


cdef bint task_runs_here(uint64_t number) except -1:
    """Whether a task cannot go on while this thread waits."""
    return has_task is not None and has_task(number)


cdef enum:
    SHOWN_MAX = 64             # waits of tasks and greenlets that one space shows


cdef uint64_t show_wait(
        MapHandle handle, uint64_t index, uint64_t how, uint64_t thread,
        int64_t began) except? 0:
    """Take a context that says that this thread waits for a cell, for locks() and for circles.
    Returns its number, plus 1; 0: all are taken, so others do not know of the wait."""
    cdef Op op
    try:
        begin_with_context(handle, &op)
    except _errors.TooManyProcesses:
        return 0
    held_set(op.context, HELD_THREAD, thread)
    held_set(op.context, HELD_SINCE, <uint64_t> began)
    link_say(op.context, index, how)
    return op.self_index + 1


cdef void hide_wait(MapHandle handle, uint64_t shown) noexcept:
    """The end of show_wait, in the same process."""
    if shown != 0:
        wait_say(context_at(&handle.map, shown - 1), 0)
        put_context(handle, <uint32_t> (shown - 1))


cdef struct Shown:
    uint64_t context           # of a wait that is shown: + 1; 0: it is not
    bint tried


cdef int show_here(CellCore core, Shown *shown, uint64_t how, int64_t began) except -1:
    """show_wait() for a task or a greenlet, of which a process may have more than there are
    contexts: so only SHOWN_MAX of a space are shown."""
    if shown.tried:
        return 0
    shown.tried = True
    if not shown_begin(core._cells):
        return 0
    try:
        shown.context = show_wait(core.handle, core._index, how, waiter_number(), began)
    finally:
        if shown.context == 0:
            shown_end(core._cells)
    return 0


cdef bint shown_begin(Space cells) noexcept:
    """Count one more wait that is shown. False: there are SHOWN_MAX."""
    cdef bint is_room
    state_lock()
    if cells.shown_generation != process_generation:
        cells.shown_generation = process_generation
        cells.shown_count = 0
    is_room = cells.shown_count < SHOWN_MAX
    cells.shown_count += is_room
    state_unlock()
    return is_room


cdef void shown_end(Space cells) noexcept:
    """The end of shown_begin, in the same process."""
    state_lock()
    cells.shown_count -= 1
    state_unlock()


cdef void hide_here(CellCore core, Shown *shown, uint64_t generation) noexcept:
    """The end of show_here. generation: in which the wait began."""
    if shown.context != 0 and generation == process_generation:
        hide_wait(core.handle, shown.context)
        shown_end(core._cells)
    shown.context = 0


cdef uint64_t waiter_number() except? 0:
    """The number of the task that runs, or else of the greenlet or thread."""
    cdef uint64_t task = 0
    if number_of_task is not None:
        task = number_of_task()
    return task if task != 0 else caller_number()
