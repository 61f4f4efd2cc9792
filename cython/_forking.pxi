# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# Part of _core.pyx: what becomes of views when their process forks. forking.pxd is the protocol.
#
# The three functions are called by Python's hooks of fork (shmrhash/_map.py), which keep other
# threads from forking meanwhile. A C library that forks by itself calls none of them: its child has
# views whose bytes its parent may reuse.

cdef uint64_t forks_under_way = 0


cdef void pin_for_child(PinnedObject view, Op *op) noexcept:
    """Pin what a view refers to in the name of the child. If that cannot be, this process's own pin
    stays for as long as the process: rather too long than not."""
    cdef ObjectHandle handle = view.handle
    cdef Attachment attachment = <Attachment> handle.attachment
    cdef uint64_t pin = 0
    cdef Status status = OK
    if attachment.child.fd < 0:
        status = unborn_claim(&handle.map, &attachment.child)
    if status == OK:
        status = pin_claim(op, attachment.child.index + 1, &pin)
    if status != OK:
        view.is_kept = True
        return
    pin_set(op, pin, load_relaxed_u64(&handle.map.pins[view.pin].ref))     # pinned by this process
    view.child_pin = pin + 1


def views_before_fork():
    """In a process that forks: pin all that its views refer to, for the child. Costs some 10 us for
    each map with views, and 0.1 us for each view."""
    global forks_under_way
    cdef PinnedObject view
    cdef PyObject *at = views_first
    cdef Op op
    cdef bint closed
    forks_under_way += 1
    while at != NULL:                          # each view once; no Python code runs
        view = <PinnedObject> at
        at = view.behind
        view.child_pin = 0
        if view.generation != process_generation or view.is_kept:
            continue
        closed = view.handle.is_closed         # closing waits for us
        view.handle.is_closed = False
        try:
            view.handle._enter(&op)
        except _errors.Error:
            view.is_kept = True
        else:
            pin_for_child(view, &op)
            view.handle._leave(&op)
        view.handle.is_closed = closed


def views_after_fork_in_parent():
    """What was claimed is the child's."""
    global forks_under_way
    cdef Attachment attachment
    forks_under_way -= 1
    for address in attachments.values():
        attachment = <Attachment> <PyObject *> <uint64_t> address
        unborn_release(&attachment.map, &attachment.child)


def views_after_fork_in_child(bint is_the_child):
    """Go on with what the parent claimed: its views are pinned in this process's name.

    is_the_child: False in one that was forked inside the hooks of another fork; what was claimed is
    the other's.
    """
    global forks_under_way
    cdef Attachment attachment
    cdef PinnedObject view
    cdef PyObject *at = views_first
    forks_under_way = 0
    for address in attachments.values():
        attachment = <Attachment> <PyObject *> <uint64_t> address
        if not is_the_child:
            unborn_release(&attachment.map, &attachment.child)
            attachment.child.context = 0
        elif attachment.child.fd >= 0 and not unborn_adopt(
                &attachment.map, &attachment.standing, &attachment.child):
            attachment.child.context = 0
    while at != NULL:                          # each view once
        view = <PinnedObject> at
        at = view.behind
        if view.child_pin != 0 and (<Attachment> view.handle.attachment).child.context != 0:
            view.pin = view.child_pin - 1
            view.generation = process_generation
            view.is_kept = False
        view.child_pin = 0
