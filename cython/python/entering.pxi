# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# Part of _core.pyx: the beginning and the end of every operation: its context, the count of the
# operations under way, and what a fork between the two changes.

cdef enum:
    NOTICE_MASK = 0x7FF        # of activity: each 1,024th operation of a context notes the time,
    PATROL_MASK = 0xFFFF       # and each 32,768th recovers dead processes


cdef int expect_registered(MapHandle handle) except -1:
    """Give this process a slot, unless it has one."""
    cdef Status status = attach_register(&handle.map, handle.standing)
    if status != OK:
        raise_status(handle, status, NULL)
    return 0


cdef uint64_t claim_context(MapHandle handle) except 0:
    """Take an idle context or claim a new one; returns its index plus one. Registers this
    process first if it has no slot (a child of fork)."""
    cdef uint64_t taken = 0
    cdef Status status
    expect_open(handle)
    status = attach_claim(&handle.map, handle.standing, &taken)
    if status != OK:
        raise_status(handle, status, NULL)
    return taken


cdef void inherit_uses(MapHandle handle) noexcept:
    """In a child of fork, before this handle counts an operation there: what was under way in
    the parent is inherited."""
    handle.inherited += handle.in_flight
    handle.in_flight = 0
    handle.generation = process_generation
    if handle.is_user:
        become_user(handle)


cdef inline void detach_if_idle(MapHandle handle) noexcept:
    """Detach after close(), once no operation and no view uses the mapping any more.

    Of the operations under way at a fork, those of the forking thread return in the child and
    those of other threads do not; the handle cannot tell the two apart. So while it has
    inherited operations the mapping stays, but slot and contexts are given back."""
    if unlikely(handle.is_closed and handle.views == 0 and handle.in_flight == 0):
        if handle.inherited == 0:
            detach(handle)
        elif handle.attachment != NULL:
            attachment_leave(handle)


cdef inline void begin_use(MapHandle handle, Op *op) noexcept:
    op.generation = process_generation
    if unlikely(handle.generation != process_generation):
        inherit_uses(handle)
    handle.in_flight += 1


cdef inline void end_use(MapHandle handle) noexcept:
    handle.in_flight -= 1
    detach_if_idle(handle)


cdef void leave_to_parent(MapHandle handle) noexcept:
    """In a child of fork, at the end of an operation that the parent began: the parent ends
    it, the child only stops counting it."""
    if handle.generation != process_generation:
        inherit_uses(handle)
    handle.inherited -= 1
    detach_if_idle(handle)


cdef void note_use(MapHandle handle, Context *context) noexcept:
    """After each 1,024th operation of a context: note that it is in use. After each 32,768th:
    recover dead processes."""
    context_note_time(&handle.map, context)
    if context.activity & PATROL_MASK == 0:
        with nogil:
            recover_all(&handle.map)


cdef inline int enter(MapHandle handle, Op *op) except -1:
    """Begin a write, or a read that must keep memory from being given back."""
    cdef uint64_t taken
    if unlikely(handle.is_closed):
        expect_open(handle)
    taken = local_take_u64(&handle.map.local.idle_context)
    if unlikely(taken == 0):
        taken = claim_context(handle)
    op.map = &handle.map
    op.self_index = <uint32_t> (taken - 1)
    op.context = context_at(&handle.map, taken - 1)
    op.element_filled = False
    op.made = 0
    op.f_lock = False
    op.options = 0
    op.wait_word = NULL
    op.wait_seen = 0
    op.starving = 0
    begin_use(handle, op)
    handle.writes += 1
    op_begin(op)
    return 0


cdef inline void leave(MapHandle handle, Op *op) noexcept:
    if unlikely(op.generation != process_generation):
        leave_to_parent(handle)
        return
    if unlikely(op.context.element != 0 or op.context.line_stash != 0
                or op.context.debt != 0 or op.starving != 0) and not handle.map.read_only:
        op_give_back(op)                       # a reader owes nothing, whatever its context says
    op_end(op)
    if unlikely(not local_put_u64(&handle.map.local.idle_context, op.self_index + 1)):
        attach_rest(&handle.map, op.self_index + 1)
    if unlikely(op.context.activity & NOTICE_MASK == 0):
        note_use(handle, op.context)
    end_use(handle)


cdef int enter_oddly(MapHandle handle, Op *op) except -1:
    """enter() for a write by a handle that may not write, or where membarrier is refused."""
    expect_open(handle)
    expect_writable(handle)
    enter(handle, op)
    fence_seq_cst()                            # in place of the membarrier in freeze()
    return 0


cdef inline int enter_to_write(MapHandle handle, Op *op) except -1:
    """enter() for a write. freeze() waits for writes that began before it."""
    if unlikely(handle.writes_oddly):
        enter_oddly(handle, op)
    else:
        enter(handle, op)
    if unlikely(load_relaxed_u64(&handle.map.header.frozen) != 0):
        leave(handle, op)
        raise _errors.FrozenMap(f"map {handle.name!r} is frozen: it cannot be changed any more")
    return 0


cdef inline int enter_to_modify(MapHandle handle, Op *op) except -1:
    """enter_to_write for an operation that also tells the caller what was stored before."""
    if unlikely(handle.reads == READS_NONE):
        refuse_reading(handle)
    return enter_to_write(handle, op)


cdef int enter_to_look(MapHandle handle, Op *op) except -1:
    """enter_to_read for figures rather than entries: a write-only handle may read these."""
    if not handle.map.read_only:
        return enter(handle, op)
    expect_open(handle)
    if handle.map.local.idle_context != 0 or reader_has_context(handle):
        return enter(handle, op)
    op.map = &handle.map
    op.context = NULL
    op.f_lock = False
    op.options = 0
    op.wait_word = NULL
    op.wait_seen = 0
    op.starving = 0
    begin_use(handle, op)
    return 0


cdef int enter_to_read(MapHandle handle, Op *op) except -1:
    """enter() for a read; op.context is NULL if the handle has no context (peek.pxd)."""
    if handle.reads == READS_NONE:
        refuse_reading(handle)
    return enter_to_look(handle, op)


cdef void leave_reading(MapHandle handle, Op *op) noexcept:
    if op.context != NULL:
        leave(handle, op)
    elif op.generation == process_generation:
        end_use(handle)
    else:
        leave_to_parent(handle)


cdef int renew(MapHandle handle, Op *op) except -1:
    """After Python code ran inside an operation: True if that code forked and this is the
    child. The operation then goes on in a context of the child's own; what it held remains the
    parent's."""
    cdef uint64_t taken
    if likely(op.generation == process_generation):
        return False
    if op.context != NULL and handle.map.read_only and not reader_has_context(handle):
        op.context = NULL
    if op.context != NULL:
        taken = claim_context(handle)
        op.self_index = <uint32_t> (taken - 1)
        op.context = context_at(&handle.map, taken - 1)
        op.element_filled = False
        op.made = 0
        op.starving = 0
    begin_use(handle, op)
    handle.inherited -= 1
    if op.context != NULL:
        op_begin(op)
    return True
