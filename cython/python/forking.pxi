# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# Part of _core.pyx: what becomes of views when their process forks. forking.pxd is the protocol.
#
# The three functions are called by Python's hooks of fork (shmrhash/_map.py), which keep other
# threads from forking meanwhile. A C library that forks by itself calls none of them: its child has
# views whose bytes its parent may reuse.

cdef uint64_t forks_under_way = 0


cdef void view_keep(PinnedObject view) noexcept:
    """No pin is to be had for a child. This process's own stays for as long as the process: rather
    too long than not."""
    view.is_kept = True
    (<Attachment> view.handle.attachment).keeps = process_generation + 1


cdef void pin_for_child(PinnedObject view, Op *op) noexcept:
    """Pin what a view refers to in the name of the child."""
    cdef ObjectHandle handle = view.handle
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
    pin_set(op, pin, load_relaxed_u64(&handle.map.pins[view.pin].ref))     # pinned by this process
    view.child_pin = pin + 1


cdef PinnedObject view_behind(PinnedObject view):
    """The view that stands behind one in the list, or None. Views are walked with a reference to
    the one at hand: an operation may let other threads run, which drop theirs."""
    return None if view.behind == NULL else <PinnedObject> view.behind


cdef void view_before_fork(PinnedObject view) noexcept:
    cdef Op op
    cdef bint closed = view.handle.is_closed   # closing waits for us
    cdef bint inside = False
    view.handle.is_closed = False
    try:
        view.handle._enter(&op)
        inside = True
    except _errors.Error:
        view_keep(view)
    view.handle.is_closed = closed
    if inside:
        pin_for_child(view, &op)
        view.handle._leave(&op)


def views_keep():
    """In a process that forks inside the hooks of another fork: its own pins stay for as long as
    the process, for nothing was claimed for that child."""
    cdef PinnedObject view = None if views_first == NULL else <PinnedObject> views_first
    while view is not None:                    # each view once
        if view.generation == process_generation:
            view_keep(view)
        view = view_behind(view)


def views_before_fork():
    """In a process that forks: pin all that its views refer to, for the child. Costs some 10 us for
    each map with views, and 0.1 us for each view."""
    global forks_under_way
    cdef PinnedObject view = None if views_first == NULL else <PinnedObject> views_first
    forks_under_way += 1
    while view is not None:                    # each view once; who comes meanwhile stands before
        view.child_pin = 0
        if view.generation == process_generation and not view.is_kept:
            view_before_fork(view)
        view = view_behind(view)


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
