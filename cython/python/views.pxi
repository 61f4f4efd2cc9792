# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# Part of _core.pyx: copies of objects, and views of objects without a copy. hazard.pxd and pins.pxd
# describe the protocols.
#
# An operation that frees an object looks at as many pins as ever were in use at once, and all
# processes together have PIN_MAX. So a handle uses at most PIN_SHARE pins; an object that it reads
# beyond that is copied.
from memory.object cimport ref_valid
from memory.peek cimport object_peek

cdef enum:
    PIN_SHARE = 1024           # 64 handles have so many before PIN_MAX is reached


@cython.final
@cython.internal
@cython.auto_pickle(False)
@cython.no_gc_clear                # __dealloc__ needs the handle
cdef class PinnedObject:
    """A read-only buffer on the bytes of one object in the segment, which its pin keeps there."""

    cdef MapHandle handle
    cdef PyObject *before          # the list of all views of this process
    cdef PyObject *behind
    cdef uint64_t pin
    cdef uint64_t child_pin        # index + 1 of the pin for a child that is being forked; or 0
    cdef bint is_kept              # this process's pin is never cleared: a child may have none
    cdef uint64_t generation
    cdef const uint8_t *bytes
    cdef Py_ssize_t size

    def __getbuffer__(self, Py_buffer *buffer, int flags):
        PyBuffer_FillInfo(buffer, self, <void *> self.bytes, self.size, True, flags)

    def __dealloc__(self):
        cdef Op op
        if self.handle is None:
            return
        view_unlist(self)
        count_add(&self.handle.pins_held, ONE_LESS)
        # Else it is the parent's; or, without a context, this process's death ends the pin.
        if self.generation == process_generation and not self.is_kept and (
                enter_for_view(self.handle, &op)):
            op_give_back(&op)
            if op.context.owned_refs[0] == 0:       # else the pin stays: too long is safe
                pin_clear(&op, self.pin)
            leave_view(self.handle, &op)
        count_add(&self.handle.views, ONE_LESS)
        detach_if_idle(self.handle)


cdef PyObject *views_first = NULL   # the list is changed under the state lock
cdef uint64_t forks_under_way = 0   # between the hooks of os.fork() (forking.pxi)


cdef void view_list(PinnedObject view) noexcept:
    """The caller has the state lock."""
    global views_first
    view.before = NULL
    view.behind = views_first
    if views_first != NULL:
        (<PinnedObject> views_first).before = <PyObject *> view
    views_first = <PyObject *> view


cdef void view_unlist(PinnedObject view) noexcept:
    global views_first
    state_lock()
    if view.before != NULL:
        (<PinnedObject> view.before).behind = view.behind
    else:
        views_first = view.behind
    if view.behind != NULL:
        (<PinnedObject> view.behind).before = view.before
    state_unlock()


cdef bytes object_copy(MapHandle handle, Op *op, const Found *found, uint64_t ref):
    """A copy of the object that a found element refers to; None if the element has changed since it
    was found, or if this is a child that was forked since: what it found is its parent's. found is
    NULL if the object is the operation's own.

    Raises SegmentCorrupt: there is no such object; SystemFailure: a handle without contexts cannot
    reach the file."""
    cdef uint64_t length = 0
    cdef const uint8_t *source = NULL
    cdef bytes copy = None
    cdef Status status = ABSENT
    if unlikely(op.generation != process_generation):
        return None
    if op.context == NULL:
        if ref != 0 and ref_valid(&handle.map, ref):
            copy = PyBytes_FromStringAndSize(NULL, <Py_ssize_t> ref_length(ref))
            status = object_peek(&handle.map, ref, PyBytes_AS_STRING(copy))
    elif found == NULL or likely(ref_protect(op, found, ref)):
        source = entry_bytes(&handle.map, ref, &length)
        if source != NULL:
            copy = PyBytes_FromStringAndSize(<const char *> source, <Py_ssize_t> length)
            status = OK
    if found != NULL and unlikely(not element_unchanged(found)):
        return None
    if unlikely(status != OK):
        if status == SYSTEM_ERROR:
            raise _errors.SystemFailure(
                f"map {handle.name!r}: this process may not write the file, so it has to read "
                f"objects through a descriptor, and can neither open the file again nor copy from "
                f"its own memory ({os_error()}); open the map again")
        raise_status(handle, CORRUPT, NULL)
    return copy


cdef void view_keep(PinnedObject view) noexcept:
    """For want of a pin for a child, keep this process's own pin until the process ends: too long
    is safe."""
    view.is_kept = True
    (<Attachment> view.handle.attachment).keeps = process_generation + 1


cdef void pin_for_child(PinnedObject view, Op *op) noexcept:
    """Pin the object of a view in the name of the child that is about to be forked."""
    cdef MapHandle handle = view.handle
    cdef Attachment attachment = <Attachment> handle.attachment
    cdef uint64_t pin = 0
    cdef Status status = OK
    if attachment.child.fd < 0:
        status = unborn_claim(&handle.map, &attachment.child)
    if status == OK:
        status = pin_claim(op, attachment.child.index + 1, &pin)
    if status != OK:
        view_keep(view)
        return
    pin_set(op, pin, load_relaxed_u64(&handle.map.pins[view.pin].ref))     # this process pins it
    view.child_pin = pin + 1


cdef object pinned_object(MapHandle handle, Op *op, const Found *found, uint64_t ref):
    """A PinnedObject of the object that a found element refers to, or a copy of its bytes if the
    handle can have no further pin; None as for object_copy.

    Raises SegmentCorrupt: there is no such object."""
    cdef PinnedObject pinned = PinnedObject.__new__(PinnedObject)
    cdef uint64_t pin = 0
    cdef uint64_t length = 0
    cdef const uint8_t *bytes
    if op.generation != process_generation or not ref_protect(op, found, ref):
        return None
    bytes = entry_bytes(&handle.map, ref, &length)
    if bytes == NULL:
        if element_unchanged(found):
            raise_status(handle, CORRUPT, NULL)
        return None
    if handle.pins_held >= PIN_SHARE or pin_claim(
            op, handle.map.local.process_index + 1, &pin) != OK:
        copy = PyBytes_FromStringAndSize(<const char *> bytes, <Py_ssize_t> length)
        count_add(&handle.views_copied, 1)
        return copy if element_unchanged(found) else None
    pin_set(op, pin, ref)
    if not element_unchanged(found):
        pin_clear(op, pin)
        op_give_back(op)
        return None
    pinned.handle = handle
    pinned.pin = pin
    pinned.generation = op.generation
    pinned.bytes = bytes
    pinned.size = <Py_ssize_t> length
    count_add(&handle.pins_held, 1)
    count_add(&handle.views, 1)                # the mapping stays as long as the view exists
    state_lock()
    view_list(pinned)
    if unlikely(forks_under_way != 0):
        pin_for_child(pinned, op)
    state_unlock()
    return pinned
