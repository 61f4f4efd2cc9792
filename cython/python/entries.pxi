# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# Part of _core.pyx: walking over the entries, for batches and dumps.
#
# A cursor is a bytes object: 8 bytes that identify the map, 4 of the position's order, and, if the
# position is inside a group of equal hashes, the key that it lies behind. None as an argument is
# the start, and as a result the end.

cdef enum:
    CURSOR_HEAD = 12


@cython.final
@cython.auto_pickle(False)
cdef class Cursor:
    """A position in the order of a map, with the memory for its key."""

    cdef Position position
    cdef bytearray key

    cdef int start(self, MapHandle handle, cursor) except -1:
        """Move to the position that cursor gives."""
        cdef uint64_t size = handle.map.key_size
        cdef const uint8_t *bytes_at
        if self.key is None:
            self.key = bytearray(size)
            self.position.key = <uint8_t *> PyByteArray_AS_STRING(self.key)
        self.position.order = 0
        self.position.inside = False
        if cursor is None:
            return 0
        if not isinstance(cursor, bytes) or (
                len(cursor) != CURSOR_HEAD and len(cursor) != CURSOR_HEAD + size):
            raise _errors.InvalidArgument("cursor is not one that a batch of this map returned")
        bytes_at = <const uint8_t *> PyBytes_AS_STRING(cursor)
        if read_u64(bytes_at) != handle.map.header.checksum:
            raise _errors.InvalidArgument(f"cursor belongs to another map than {handle.name!r}")
        self.position.order = read_u32(bytes_at + 8)
        self.position.inside = len(cursor) > CURSOR_HEAD
        if self.position.inside:
            memcpy(self.position.key, bytes_at + CURSOR_HEAD, size)
        return 0

    cdef bytes cursor(self, MapHandle handle):
        """The position as a cursor; None at the end."""
        cdef uint64_t size = handle.map.key_size if self.position.inside else 0
        cdef uint32_t order = <uint32_t> self.position.order
        cdef bytes cursor
        cdef char *bytes_at
        if self.position.order >= ORDER_END:
            return None
        cursor = PyBytes_FromStringAndSize(NULL, CURSOR_HEAD + <Py_ssize_t> size)
        bytes_at = PyBytes_AS_STRING(cursor)
        memcpy(bytes_at, &handle.map.header.checksum, 8)
        memcpy(bytes_at + 8, &order, 4)
        memcpy(bytes_at + CURSOR_HEAD, self.position.key, size)
        return cursor


cdef int walk_fill(MapHandle handle, Op *op, Position *position, EntryBuffer *sink) except -1:
    """Read entries until the sink is full or the end of the map is reached."""
    cdef Status status = RETRY
    cdef uint64_t order, count
    cdef Waiting waiting = new_waiting(handle)
    sink.waiter = op if op.f_lock and sink.values != NULL else NULL
    while status == RETRY or status == BUSY:   # ends unless writers interfere each time
        order = position.order
        count = sink.count
        with nogil:
            status = walk_on(op, position, sink)
        if position.order != order or sink.count != count:
            waiting.turn = waiting.retries = 0
        if status == RETRY or status == BUSY:
            wait_turn(handle, op, status, &waiting)
    if status != OK and status != ABSENT:
        raise_status(handle, status, NULL)
    return 0


cdef int walk_probe(Op *op, Cursor place, bint expired) except -1:
    """Move a place to the end if no entry lies behind it; expired: expired entries count too.
    Never waits: where it would have to, the place stays."""
    cdef bytearray keys = bytearray(2 * op.map.key_size)
    cdef Position position = place.position
    cdef EntryBuffer sink
    cdef Status status
    if position.order >= ORDER_END:
        return 0
    sink.keys = <uint8_t *> PyByteArray_AS_STRING(keys)
    sink.values = NULL
    sink.waiter = NULL
    sink.expired = expired
    sink.count = 0
    sink.wanted = sink.capacity = 1
    position.key = sink.keys + op.map.key_size
    memcpy(position.key, place.position.key, op.map.key_size)
    with nogil:
        status = walk_on(op, &position, &sink)
    if status == ABSENT and sink.count == 0:
        place.position.order = ORDER_END
        place.position.inside = False
    return 0


cdef int sink_into(
        EntryBuffer *sink, Rows keys, Rows values, uint64_t first, uint64_t limit) except -1:
    """Make a sink append entries to the rows from first on, up to row limit."""
    if limit > keys.count or (values is not None and limit > values.count) or first > limit:
        raise _errors.InvalidArgument(f"there is no room for entries {first} to {limit}")
    sink.keys = keys.base
    sink.values = NULL if values is None else values.base
    sink.count = first
    sink.wanted = sink.capacity = limit
    sink.expired = False
    return 0


def read_entries(MapHandle handle not None, cursor, keys, values, uint64_t first, uint64_t limit,
                 bint f_lock=False, bint expired=False):
    """Copy entries from cursor on into rows first to limit of keys, and of values if not None.

    Returns (the row behind the last one filled, the cursor for the next call or None).
    """
    cdef Rows key_rows = Rows("keys", keys, handle.map.key_size, True)
    cdef Rows value_rows = None if values is None else (
        Rows("values", values, handle.map.value_size, True))
    cdef Cursor place = Cursor.__new__(Cursor)
    cdef EntryBuffer sink
    cdef Op op
    sink_into(&sink, key_rows, value_rows, first, limit)
    sink.expired = expired
    enter_to_read(handle, &op)
    op.f_lock = f_lock
    try:
        place.start(handle, cursor)
        walk_fill(handle, &op, &place.position, &sink)
        walk_probe(&op, place, expired)
    finally:
        leave_reading(handle, &op)
    return sink.count, place.cursor(handle)


def cursor_at(MapHandle handle not None, key):
    """The cursor of the place behind key, whether key is in the map or not."""
    cdef Rows rows = Rows("key", key, handle.map.key_size)
    cdef Cursor place = Cursor.__new__(Cursor)
    if rows.count != 1:
        raise _errors.InvalidArgument(f"key has {rows.count * handle.map.key_size} bytes, but map "
                                      f"{handle.name!r} has keys of {handle.map.key_size} bytes")
    expect_open(handle)
    place.start(handle, None)
    place.position.order = reverse_bits_u32(
        hash_key(handle.map.seeds, rows.base, handle.map.key_size))
    place.position.inside = True
    memcpy(place.position.key, rows.base, handle.map.key_size)
    return place.cursor(handle)


cdef Status take_some(Op *op, EntryBuffer *sink, uint64_t *at, uint64_t *taken) noexcept nogil:
    """Delete the keys in rows at[0] to sink.count; move those deleted to rows taken[0] and on."""
    cdef uint64_t size = op.map.key_size
    cdef Status status
    while at[0] < sink.count:
        op.key = sink.keys + at[0] * size
        op.hash = hash_key(op.map.seeds, op.key, size)
        status = map_delete(op, sink.values + taken[0] * op.map.value_size)
        if status == OK:
            memmove(sink.keys + taken[0] * size, op.key, size)
            taken[0] += 1
        elif status != ABSENT:
            return status
        at[0] += 1
    return OK


def take_entries(
        MapHandle handle not None, cursor, keys, values, uint64_t limit, bint f_lock=False):
    """Delete entries from cursor on, copying each into keys and values; returns as read_entries.

    Once it has deleted an entry it neither raises nor waits: it returns early with those it has.
    """
    cdef Rows key_rows = Rows("keys", keys, handle.map.key_size, True)
    cdef Rows value_rows = Rows("values", values, handle.map.value_size, True)
    cdef Cursor place = Cursor.__new__(Cursor)
    cdef EntryBuffer sink, part
    cdef Op op
    cdef uint64_t at
    cdef uint64_t taken = 0
    cdef Waiting waiting = new_waiting(handle)
    cdef Status status = OK
    memset(&sink, 0, sizeof(sink))
    sink_into(&sink, key_rows, value_rows, 0, limit)
    part.values = NULL
    part.expired = False
    part.waiter = NULL
    enter_to_modify(handle, &op)
    op.f_lock = f_lock
    try:
        place.start(handle, cursor)
        # Each turn takes at least one entry, reaches the end of the map, or is the last.
        while taken < limit and status == OK and place.position.order < ORDER_END:
            before = place.cursor(handle)
            renew(handle, &op)
            part.keys = sink.keys
            part.count = at = taken
            part.capacity = taken + TAKE_KEYS if limit - taken > TAKE_KEYS else limit
            part.wanted = part.capacity
            if taken == 0:
                walk_fill(handle, &op, &place.position, &part)
            else:
                with nogil:
                    status = walk_on(&op, &place.position, &part)
                status = OK if status == ABSENT else status
            sink.count = part.count
            while at < sink.count:
                with nogil:
                    status = take_some(&op, &sink, &at, &taken)
                if status == OK:
                    continue
                if taken != 0:                 # return these; the cursor stays before the rest
                    place.start(handle, before)
                    break
                if status != BUSY and status != RETRY:
                    raise_status(handle, status, &op)
                wait_turn(handle, &op, status, &waiting)
        if taken == 0 or status == OK:
            walk_probe(&op, place, False)
    finally:
        leave(handle, &op)
    return taken, place.cursor(handle)
