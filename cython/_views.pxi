# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# Part of _core.pyx: copies of objects, and views that nobody copies. hazard.pxd and pins.pxd are
# the protocols.
from heap cimport ref_sound
from peek cimport object_peek


@cython.final
@cython.internal
@cython.auto_pickle(False)
@cython.no_gc_clear                # __dealloc__ needs the handle
cdef class PinnedObject:
    """The bytes of one object, where they are, for reading. Nobody reuses them while this lives."""

    cdef ObjectHandle handle
    cdef uint64_t pin
    cdef uint64_t generation
    cdef const uint8_t *bytes
    cdef Py_ssize_t size

    def __getbuffer__(self, Py_buffer *buffer, int flags):
        PyBuffer_FillInfo(buffer, self, <void *> self.bytes, self.size, True, flags)

    def __dealloc__(self):
        cdef Op op
        cdef bint closed
        if self.handle is None:
            return
        if self.handle.map.local.generation == self.generation:    # a child of fork has no pins
            closed = self.handle.is_closed     # closing waits for us
            self.handle.is_closed = False
            try:
                self.handle._enter(&op)
                op_settle(&op)
                if op.context.names[0] == 0:   # else the pin stays: rather too long than not
                    pin_clear(&op, self.pin)
                self.handle.is_closed = closed
                self.handle._leave(&op)
            except _errors.Error:
                self.handle.is_closed = closed  # no context: this process's death ends the pin
        self.handle._end_use()


cdef bytes object_copy(MapHandle handle, Op *op, const Found *found, uint64_t ref):
    """The bytes of what a found element refers to; None if the element changed meanwhile. found is
    NULL if the object is the operation's own.

    Raises SegmentCorrupt: there is no such object; Error: a handle that may only read cannot reach
    the file."""
    cdef uint64_t length = 0
    cdef const uint8_t *source = NULL
    cdef bytes copy = None
    cdef Status status = ABSENT
    if op.context == NULL:
        if ref != 0 and ref_sound(&handle.map, ref):
            copy = PyBytes_FromStringAndSize(NULL, <Py_ssize_t> ref_length(ref))
            status = object_peek(&handle.map, ref, PyBytes_AS_STRING(copy))
    elif found == NULL or likely(ref_protect(op, found, ref)):
        source = item_bytes(&handle.map, ref, &length)
        if source != NULL:
            copy = PyBytes_FromStringAndSize(<const char *> source, <Py_ssize_t> length)
            status = OK
    if found != NULL and unlikely(not ref_stands(found)):
        return None
    if unlikely(status != OK):
        raise_status(handle, SYSTEM_ERROR if status == SYSTEM_ERROR else CORRUPT, NULL)
    return copy


cdef object pinned_object(ObjectHandle handle, Op *op, const Found *found, uint64_t ref):
    """A PinnedObject of what a found element refers to; None if the element changed meanwhile.

    Raises SegmentCorrupt: there is no such object."""
    cdef PinnedObject pinned
    cdef uint64_t pin = 0
    cdef uint64_t length = 0
    cdef const uint8_t *bytes
    cdef Status status
    if not ref_protect(op, found, ref):
        return None
    bytes = item_bytes(&handle.map, ref, &length)
    if bytes == NULL:
        if ref_stands(found):
            raise_status(handle, CORRUPT, NULL)
        return None
    status = pin_claim(op, handle.map.local.process_index + 1, &pin)
    if status == FULL:
        raise _errors.TooManyProcesses(
            f"map {handle.name!r}: all {PIN_MAX} pins are in use; let go of some views")
    if status != OK:
        raise_status(handle, status, op)
    pin_set(op, pin, ref)
    if not ref_stands(found):
        pin_clear(op, pin)
        op_settle(op)
        return None
    pinned = PinnedObject.__new__(PinnedObject)
    pinned.handle = handle
    pinned.pin = pin
    pinned.generation = handle.map.local.generation
    pinned.bytes = bytes
    pinned.size = <Py_ssize_t> length
    handle.in_flight += 1                      # the mapping stays for as long as the view
    return pinned
