# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# Part of _core.pyx: arrays of keys and values, and the batches over them.
#
# The functions take a MapHandle and buffers; shmrhash/_batch.py gives them their public form. The
# GIL is released while a batch runs. If a batch fails, the count of the exception says how many
# keys were done before.

cdef enum:
    SIGNAL_KEYS = 65536        # keys between two checks for signals
    PATROL_KEYS_MASK = 0x7FFF  # every 32,768 keys dead processes are looked for
    NOTICE_KEYS = 1024         # a batch of fewer keys does not note the time
    TAKE_KEYS = 256            # entries collected before they are deleted one by one


@cython.final
@cython.auto_pickle(False)
cdef class Rows:
    """A caller's buffer as count rows of size bytes, one after another.

    Accepted: a flat buffer of bytes whose length is a multiple of size; a one-dimensional array of
    items of size bytes; an array whose rows along its first axis have size bytes; a list or tuple
    of buffers of size bytes (for reading). Raises InvalidArgument, TypeError.
    """

    cdef Py_buffer view
    cdef bint held
    cdef uint8_t *base
    cdef readonly uint64_t count

    def __cinit__(self, str what not None, thing, uint64_t size, bint writable=False):
        cdef int flags = PyBUF_C_CONTIGUOUS | PyBUF_FORMAT | (PyBUF_WRITABLE if writable else 0)
        if isinstance(thing, (list, tuple)) and not writable:
            thing = joined(what, thing, size)
        if not PyObject_CheckBuffer(thing):
            raise TypeError(f"{what} must be a buffer (bytes, an array), not "
                            f"{type(thing).__name__}")
        try:
            PyObject_GetBuffer(plain(thing), &self.view, flags)
        except (BufferError, ValueError) as error:
            raise _errors.InvalidArgument(
                f"{what} must be C-contiguous{' and writable' if writable else ''} memory: "
                f"{error}") from None
        self.held = True
        self.base = <uint8_t *> self.view.buf
        if self.view.format != NULL and b"O" in <bytes> self.view.format:
            raise _errors.InvalidArgument(f"{what} has references to Python objects, not bytes")
        self.count = self._rows(what, size)

    cdef uint64_t _rows(self, str what, uint64_t size) except? 0xFFFFFFFFFFFFFFFF:
        cdef Py_ssize_t row = self.view.itemsize
        cdef int axis
        if self.view.ndim == 1 and row == 1 and size > 1:
            if <uint64_t> self.view.len % size:
                raise _errors.InvalidArgument(
                    f"{what} has {self.view.len} bytes, which is not a multiple of {size}")
            return <uint64_t> self.view.len // size
        for axis in range(1, self.view.ndim):
            row *= self.view.shape[axis]
        if <uint64_t> row != size:
            raise _errors.InvalidArgument(
                f"{what} has items of {row} bytes, but needs items of {size} bytes")
        return self.view.shape[0] if self.view.ndim else 1

    def __dealloc__(self):
        if self.held:
            PyBuffer_Release(&self.view)


cdef Rows rows_of(str what, thing, uint64_t size, bint writable=False):
    """thing as Rows, unless it is that already."""
    return thing if type(thing) is Rows else Rows(what, thing, size, writable)


cdef object plain(thing):
    """thing, or, if the buffer protocol has no format for its dtype (dates), its items as bytes."""
    kind = getattr(thing, "dtype", None)
    if kind is None or getattr(kind, "hasobject", True) or not hasattr(thing, "view"):
        return thing
    try:
        memoryview(thing)
    except ValueError:
        return thing.view(f"V{kind.itemsize}")
    return thing


cdef bytes joined(str what, things, uint64_t size):
    """The bytes of a list of buffers, of size bytes each, joined."""
    parts = []
    for number, thing in enumerate(things):
        with memoryview(thing) as view:
            if view.nbytes != size:
                raise _errors.InvalidArgument(
                    f"{what}[{number}] has {view.nbytes} bytes, but needs {size} bytes")
            if not view.c_contiguous:
                raise _errors.InvalidArgument(f"{what}[{number}] must be contiguous in memory")
            parts.append(view.tobytes())
    return b"".join(parts)


cdef expect_count(str what, Rows rows, uint64_t count):
    if rows.count != count:
        raise _errors.InvalidArgument(f"{what} has {rows.count} items, but there are {count} keys")


cdef int many_run(MapHandle handle, Batch *many, bint f_lock) except -1:
    """Run a batch to its end."""
    cdef Op op
    cdef Status status = OK
    cdef uint64_t upto, before, batched
    cdef Waiting waiting = new_waiting(handle)
    if many.kind >= BATCH_UPDATE:
        enter_to_write(handle, &op)
    else:
        enter_to_read(handle, &op)
    op.f_lock = f_lock
    try:
        while many.done < many.count:          # ends with the timeout
            before = many.done
            upto = before + SIGNAL_KEYS if many.count - before > SIGNAL_KEYS else many.count
            batched = op.context.batched if op.context != NULL else 0
            with nogil:
                status = batch_go_on(&op, many, upto)
                if op.context != NULL and (op.context.batched ^ batched) > PATROL_KEYS_MASK:
                    recover_all(&handle.map)   # as note_use does after single operations
            if many.done != before:
                sweep_give_up(handle, &op, &waiting)
                waiting.turn = waiting.retries = 0
                if op.context != NULL and many.done - before >= NOTICE_KEYS:
                    context_note_time(&handle.map, op.context)
            if status == BUSY or status == RETRY or recovered_room(
                    handle, status, &op, &waiting):
                wait_turn(handle, &op, status, &waiting)
            elif status != OK:
                raise_status(handle, status, &op)
            elif many.done < many.count:
                if op.context != NULL:
                    op_end(&op)
                resume(handle, &op)
    except BaseException as error:
        error.count = many.done
        raise
    finally:
        leave_reading(handle, &op)
    return 0


def lookup_many(MapHandle handle not None, keys, values, found, bint f_lock):
    """Copy the values of keys into values; found gets 1 or 0 for each key."""
    cdef Batch many
    cdef Rows key_rows = rows_of("keys", keys, handle.map.key_size)
    cdef Rows value_rows = Rows("out", values, handle.map.value_size, True)
    cdef Rows found_rows = Rows("found", found, 1, True)
    expect_count("out", value_rows, key_rows.count)
    expect_count("found", found_rows, key_rows.count)
    memset(&many, 0, sizeof(many))
    many.kind = BATCH_LOOKUP
    many.keys = key_rows.base
    many.values = value_rows.base
    many.done_mask = found_rows.base
    many.count = key_rows.count
    many_run(handle, &many, f_lock)


def contains_many(MapHandle handle not None, keys, found):
    """Say which keys are in the map; found gets 1 or 0 for each key."""
    cdef Batch many
    cdef Rows key_rows = rows_of("keys", keys, handle.map.key_size)
    cdef Rows found_rows = Rows("found", found, 1, True)
    expect_count("found", found_rows, key_rows.count)
    memset(&many, 0, sizeof(many))
    many.kind = BATCH_CONTAINS
    many.keys = key_rows.base
    many.done_mask = found_rows.base
    many.count = key_rows.count
    many_run(handle, &many, False)


def update_many(
        MapHandle handle not None, keys, values, uint32_t flag, stored, uint64_t first=0,
        uint64_t limit=0xFFFFFFFFFFFFFFFF):
    """Store values under keys, from row first up to row limit; return the row behind the last.

    stored gets 1 or 0 for each key; if it is None, the first key that flag forbids raises.
    """
    cdef Batch many
    cdef Rows key_rows = rows_of("keys", keys, handle.map.key_size)
    cdef Rows value_rows = rows_of("values", values, handle.map.value_size)
    cdef Rows stored_rows = None
    expect_count("values", value_rows, key_rows.count)
    memset(&many, 0, sizeof(many))
    if stored is not None:
        stored_rows = Rows("stored", stored, 1, True)
        expect_count("stored", stored_rows, key_rows.count)
        many.done_mask = stored_rows.base
    many.kind = BATCH_UPDATE
    many.keys = key_rows.base
    many.values = value_rows.base
    many.count = key_rows.count if key_rows.count < limit else limit
    many.done = first if first < many.count else many.count
    many.flag = flag
    many.strict = stored is None
    many_run(handle, &many, False)             # every update waits for sections
    return many.done


def delete_many(MapHandle handle not None, keys, deleted, bint f_lock):
    """Delete keys; return how many keys were done, absent ones included.

    deleted gets 1 or 0 for each key; if it is None, the first absent key raises.
    """
    cdef Batch many
    cdef Rows key_rows = rows_of("keys", keys, handle.map.key_size)
    cdef Rows deleted_rows = None
    memset(&many, 0, sizeof(many))
    if deleted is not None:
        deleted_rows = Rows("deleted", deleted, 1, True)
        expect_count("deleted", deleted_rows, key_rows.count)
        many.done_mask = deleted_rows.base
    many.kind = BATCH_DELETE
    many.keys = key_rows.base
    many.count = key_rows.count
    many.strict = deleted is None
    many_run(handle, &many, f_lock)
    return many.done


def add_many(MapHandle handle not None, keys, deltas, sums, default, Py_ssize_t offset):
    """add() for each of keys and deltas, which are 8-byte integers; sums gets the results."""
    cdef Batch many
    cdef Rows key_rows = rows_of("keys", keys, handle.map.key_size)
    cdef Rows delta_rows = Rows("deltas", deltas, 8)
    cdef Rows sum_rows = Rows("out", sums, 8, True)
    cdef bytearray first = bytearray(handle.map.value_size)
    cdef bytearray fresh = bytearray(handle.map.value_size)
    cdef uint64_t start
    expect_count("deltas", delta_rows, key_rows.count)
    expect_count("out", sum_rows, key_rows.count)
    memset(&many, 0, sizeof(many))
    field_fill(handle, &many.field, offset, FORMAT_INT64)
    many.field.operation = FIELD_ADD
    if default is not None:
        start = PyLong_AsUnsignedLongLongMask(default)
        many.initial = <uint8_t *> PyByteArray_AS_STRING(first)
        memcpy(PyByteArray_AS_STRING(first) + offset, &start, 8)
    many.kind = BATCH_ADD
    many.keys = key_rows.base
    many.deltas = delta_rows.base
    many.sums = sum_rows.base
    many.fresh = <uint8_t *> PyByteArray_AS_STRING(fresh)
    many.count = key_rows.count
    many.strict = True
    many_run(handle, &many, False)
