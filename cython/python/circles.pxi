# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# Part of _core.pyx: circles of threads that wait for each other's locks. circle.pxd describes
# the protocol.


cdef int64_t circle_patience_ns = CIRCLE_PATIENCE_NS


def set_circle_patience(int64_t patience_ns):
    """For tests: after how long a waiter looks for a circle; later looks come after five times as
    long. Returns what that was."""
    global circle_patience_ns
    before = circle_patience_ns
    circle_patience_ns = patience_ns
    return before


cdef object open_spaces = None     # of shmrhash/_sync/space.py


def set_open_spaces(function):
    """function(): the handles of the spaces that this process has open."""
    global open_spaces
    open_spaces = function


cdef list spaces_of_look(MapHandle own):
    """The handles through which a look for a circle may go: this one, and one of each other space
    that this process has open and uses."""
    cdef MapHandle handle
    found = [own]
    for handle in open_spaces():               # at most as many as the process has open
        if len(found) < SPACES_MAX and not is_closed(handle) and handle.map.base != NULL and all(
                attachment_key(handle)[:2] != attachment_key(known)[:2] for known in found):
            found.append(handle)
    return found


cdef int expect_no_circle(
        CellCore core, uint64_t how, uint64_t thread, int64_t began, int64_t *look_at) except -1:
    """Between two slices of a wait, when it is time to look: raise DeadlockError if the wait is in
    a circle and is the one to be told. thread: the waiter's number."""
    cdef int64_t now = clock_ns(CLOCK_MONOTONIC)
    if not (how & WAIT_LINK and how & WAIT_ENDLESS) or now < look_at[0] or (
            not core.handle.map.local.registered):
        return 0
    look_at[0] = now + CIRCLE_REST_TIMES * circle_patience_ns
    look_for_circle(core, how, thread, began)
    return 0


cdef int look_for_circle(CellCore core, uint64_t how, uint64_t thread, int64_t began) except -1:
    """Raise DeadlockError as expect_no_circle says."""
    cdef Op op
    cdef Link mine
    cdef Circle circle
    cdef Spaces spaces
    cdef MapHandle handle
    cdef bint found
    cdef list handles = []
    spaces.count = 0
    try:
        for handle in spaces_of_look(core.handle):     # at most SPACES_MAX
            handles.append(handle)
            begin_use(handle, &op)             # so it stays mapped, and keeps its slot
            spaces.maps[spaces.count] = &handle.map
            spaces.count += 1
            # Another thread may have closed it just before; this wait's own is in use already.
            if is_closed(handle) and handle is not core.handle:
                end_use(handles.pop())
                spaces.count -= 1
        mine.space = 0
        mine.process = mine.ahead = core.handle.map.local.process_index
        mine.name = process_name(&spaces, 0, mine.process)
        mine.thread = thread
        mine.began = <uint64_t> began
        mine.cell = core._index
        mine.how = how
        mine.next_context = 0
        with nogil:
            found = circle_find(&spaces, &mine, &circle)
        if found and all_live(&spaces, &circle):
            raise _errors.DeadlockError(core._circle_text(circle_parts(handles, &circle)))
    finally:
        for handle in handles:
            end_use(handle)
    return 0


cdef bint all_live(const Spaces *spaces, const Circle *circle) noexcept:
    """Whether the processes of a circle live; recovers the dead, so that the others go on."""
    cdef const Link *link
    cdef Map *map
    cdef int at
    for at in range(circle.length):            # at most CIRCLE_MAX
        link = &circle.links[at]
        map = spaces.maps[link.space]
        if process_is_dead(map, link.process) or process_is_dead(map, link.ahead):
            with nogil:
                recover_all(map)
            return False
    return True


cdef list circle_parts(list handles, const Circle *circle):
    """For the message: of each wait (pid, command, thread, space or None if it is the first one's,
    kind and key of the cell)."""
    cdef const Link *link
    cdef MapHandle handle
    cdef int at
    parts = []
    for at in range(circle.length):            # at most CIRCLE_MAX
        link = &circle.links[at]
        handle = handles[link.space]
        parts.append((
            handle.map.processes[link.process].pid,
            command_text(handle.map.processes[link.process].command), link.thread,
            None if link.space == 0 else handle.name, cell_at(&handle.map, link.cell).kind,
            cell_key(&handle.map, link.cell)))
    return parts
