# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# Part of _core.pyx: the beginning and the end of every operation: its context, the count of the
# operations under way, and what a fork between the two changes.

cdef enum:
    NOTICE_MASK = 0x7FF        # of activity: each 1,024th operation of a context notes the time,
    PATROL_MASK = 0xFFFF       # and each 32,768th recovers dead processes


cdef int expect_registered(MapHandle handle) except -1:
    """Give this process a slot, unless it has one."""
    cdef Status status
    state_lock()
    status = attach_register(&handle.map, handle.standing)
    state_unlock()
    if status != OK:
        raise_status(handle, status, NULL)
    return 0


cdef uint64_t claim_context(MapHandle handle) except 0:
    """Take an idle context or claim a new one; returns its index plus one. Registers this
    process first if it has no slot (a child of fork)."""
    cdef uint64_t taken = 0
    cdef Status status
    expect_open(handle)
    state_lock()
    status = attach_claim(&handle.map, handle.standing, &taken)
    state_unlock()
    if status != OK:
        raise_status(handle, status, NULL)
    return taken


cdef void inherit_uses(MapHandle handle) noexcept:
    """In a child of fork, before this handle counts an operation there: what was under way in
    the parent is inherited."""
    state_lock()
    if handle.generation != process_generation:
        handle.inherited += handle.in_flight
        handle.in_flight = 0
        if handle.is_user:
            become_user(handle)
        # Release: pairs with the acquire in is_of_parent, of a thread that counts then.
        store_release_u64(&handle.generation, process_generation)
    state_unlock()


cdef inline bint is_of_parent(MapHandle handle) noexcept:
    """Whether this is a child of fork, in which the handle has not been used yet."""
    if FREE_THREADED:
        return load_acquire_u64(&handle.generation) != process_generation
    return handle.generation != process_generation


cdef inline void detach_if_idle(MapHandle handle) noexcept:
    """Detach after close(), once no operation and no view uses the mapping any more.

    Of the operations under way at a fork, those of the forking thread return in the child and
    those of other threads do not; the handle cannot tell the two apart. So while it has
    inherited operations the mapping stays, but slot and contexts are given back."""
    if unlikely(is_closed(handle) and count_of(&handle.views) == 0
                and count_of(&handle.in_flight) == 0):
        if handle.attachment == NULL:
            return
        if handle.inherited != 0:
            attachment_leave(handle)
        elif FREE_THREADED:
            attachment_retire(handle)
        else:
            detach(handle)


cdef inline void begin_use(MapHandle handle, Op *op) noexcept:
    op.generation = process_generation
    if unlikely(is_of_parent(handle)):
        inherit_uses(handle)
    count_add(&handle.in_flight, 1)


cdef inline void end_use(MapHandle handle) noexcept:
    count_add(&handle.in_flight, ONE_LESS)
    detach_if_idle(handle)


cdef inline uint64_t context_lent(MapHandle handle) noexcept:
    """The idle context for an operation that runs no Python and cannot wait: its index plus one; 0:
    there is none, or the handle is closed. With a GIL it is not taken, only marked as inside the
    operation; without one it is taken, and the operation is counted. context_returned() ends it."""
    cdef uint64_t lent
    if not FREE_THREADED:
        return handle.map.local.idle_context
    if unlikely(is_of_parent(handle)):
        return 0
    count_add(&handle.in_flight, 1)
    if likely(not is_closed(handle)):
        lent = local_take_u64(&handle.map.local.idle_context)
        if likely(lent != 0):
            return lent
    end_use(handle)
    return 0


cdef inline void context_returned(MapHandle handle, uint64_t lent) noexcept:
    if FREE_THREADED:
        context_rest(handle, lent)
        end_use(handle)


cdef inline void context_rest(MapHandle handle, uint64_t taken) noexcept:
    """Put a context back whose operation has ended."""
    if unlikely(not local_put_u64(&handle.map.local.idle_context, taken)):
        state_lock()
        attach_rest(&handle.map, taken)
        state_unlock()


cdef void leave_to_parent(MapHandle handle) noexcept:
    """In a child of fork, at the end of an operation that the parent began: the parent ends
    it, the child only stops counting it."""
    if is_of_parent(handle):
        inherit_uses(handle)
    count_add(&handle.inherited, ONE_LESS)
    detach_if_idle(handle)


cdef void note_use(MapHandle handle, Context *context) noexcept:
    """After each 1,024th operation of a context: note that it is in use. After each 32,768th:
    recover dead processes."""
    context_note_time(&handle.map, context)
    if context.activity & PATROL_MASK == 0:
        with nogil:
            recover_all(&handle.map)


cdef void note_lent(MapHandle handle, Op *op) noexcept:
    """note_use for a context that is lent."""
    begin_use(handle, op)
    note_use(handle, op.context)
    end_use(handle)


cdef inline void note_write(MapHandle handle, Op *op, uint64_t lent) noexcept:
    """After a write in a context that was lent."""
    count_add(&handle.writes, 1)
    if unlikely(op.context.activity & NOTICE_MASK == 0):
        note_lent(handle, op)
    context_returned(handle, lent)


cdef inline void note_overwriting(MapHandle handle, bint found_key) noexcept:
    flag_store(&handle.overwrites_flag, found_key)


cdef uint64_t enter_counted(MapHandle handle, Op *op) except 0:
    """Without a GIL: the beginning of enter(). The operation is counted first, so that close() sees
    it, or it sees that the handle is closed."""
    cdef uint64_t taken
    begin_use(handle, op)
    try:
        expect_open(handle)
        taken = local_take_u64(&handle.map.local.idle_context)
        return taken if taken != 0 else claim_context(handle)
    except BaseException:
        end_use(handle)
        raise


cdef inline int enter(MapHandle handle, Op *op) except -1:
    """Begin a write, or a read that must keep memory from being given back."""
    cdef uint64_t taken
    if FREE_THREADED:
        taken = enter_counted(handle, op)
    else:
        if unlikely(is_closed(handle)):
            expect_open(handle)
        taken = local_take_u64(&handle.map.local.idle_context)
        if unlikely(taken == 0):
            taken = claim_context(handle)
    enter_in(handle, op, taken)
    return 0


cdef inline void enter_in(MapHandle handle, Op *op, uint64_t taken) noexcept:
    """The end of enter(), in a context that is taken."""
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
    if not FREE_THREADED:
        begin_use(handle, op)
        handle.writes += 1
    op_begin(op)


cdef inline void count_writes(MapHandle handle) noexcept:
    """Without a GIL an operation that may have written is counted at its end: another thread's
    iterator may have read ahead since it began."""
    if FREE_THREADED:
        count_add(&handle.writes, 1)


cdef inline void leave(MapHandle handle, Op *op) noexcept:
    if unlikely(op.generation != process_generation):
        leave_to_parent(handle)
        return
    if unlikely(op.context.element != 0 or op.context.line_stash != 0
                or op.context.debt != 0 or op.starving != 0) and not handle.map.read_only:
        op_give_back(op)                       # a reader owes nothing, whatever its context says
    op_end(op)
    count_writes(handle)
    context_rest(handle, op.self_index + 1)
    if unlikely(op.context.activity & NOTICE_MASK == 0):
        note_use(handle, op.context)
    end_use(handle)


cdef bint enter_for_view(MapHandle handle, Op *op) noexcept:
    """enter() on account of a view, which keeps the slot and the contexts of a closed handle too.
    False: there is no context. Neither this nor leave_view lets other threads run."""
    cdef uint64_t taken = local_take_u64(&handle.map.local.idle_context)
    cdef Status status = OK
    if taken == 0:
        state_lock()
        status = attach_claim(&handle.map, handle.standing, &taken)
        state_unlock()
    if status != OK:
        return False
    if FREE_THREADED:
        begin_use(handle, op)
    enter_in(handle, op, taken)
    return True


cdef void leave_view(MapHandle handle, Op *op) noexcept:
    op_give_back(op)
    op_end(op)
    count_writes(handle)
    context_rest(handle, op.self_index + 1)
    end_use(handle)


cdef int enter_oddly(MapHandle handle, Op *op) except -1:
    """enter() for a write by a handle that may not write, in a space, or where membarrier is
    refused."""
    expect_open(handle)
    expect_writable(handle)
    if handle.map.is_space:
        raise _errors.ReadOnlyMap(
            f"space {handle.name!r}: threads may be using its cells by their addresses, so only "
            f"its locks and other primitives change them; unlink() removes the whole space")
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


cdef int begin_looking(MapHandle handle, Op *op) except -1:
    """Keep the mapping and the descriptor until end_use(), for a look that needs no context."""
    begin_use(handle, op)                      # first, so that close() sees it
    if is_closed(handle):
        end_use(handle)
        expect_open(handle)
    return 0


cdef bint has_context(MapHandle handle, Op *op) except -1:
    """Whether a handle that only reads can have a context."""
    if FREE_THREADED:
        begin_use(handle, op)                  # so that close() sees it
    try:
        expect_open(handle)
        return handle.map.local.idle_context != 0 or reader_has_context(handle)
    finally:
        if FREE_THREADED:
            end_use(handle)


cdef int enter_to_look(MapHandle handle, Op *op) except -1:
    """enter_to_read for figures rather than entries: a write-only handle may read these."""
    if not handle.map.read_only:
        return enter(handle, op)
    if has_context(handle, op):
        return enter(handle, op)
    op.map = &handle.map
    op.context = NULL
    op.f_lock = False
    op.options = 0
    op.wait_word = NULL
    op.wait_seen = 0
    op.starving = 0
    begin_use(handle, op)
    if FREE_THREADED and is_closed(handle):     # since it was asked above
        end_use(handle)
        expect_open(handle)
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
    count_add(&handle.inherited, ONE_LESS)
    if op.context != NULL:
        op_begin(op)
    return True
