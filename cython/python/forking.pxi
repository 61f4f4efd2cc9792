# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# Part of _core.pyx: what happens to views when their process forks. forking.pxd is the protocol.
#
# The public functions are called by the hooks that shmrhash/_map.py registers with os.fork(), which
# let one thread fork at a time. A C library that forks by itself calls no hook: nothing pins the
# views of its child, so that the parent may reuse their bytes.

cdef PinnedObject view_behind(PinnedObject view):
    """The next view in the list, or None. A walk holds a reference to the view that it is at: an
    operation may let other threads run, and these may drop their views."""
    return None if view.behind == NULL else <PinnedObject> view.behind


cdef void view_before_fork(PinnedObject view) noexcept:
    cdef Op op
    cdef bint closed = view.handle.is_closed   # a closed handle stays attached for its views
    cdef bint inside = False
    view.handle.is_closed = False
    try:
        enter(view.handle, &op)
        inside = True
    except _errors.Error:
        view_keep(view)
    view.handle.is_closed = closed
    if inside:
        pin_for_child(view, &op)
        leave(view.handle, &op)


def views_keep():
    """Before a fork inside the hooks of another fork: keep this process's pins until it ends, since
    nothing is claimed for that child."""
    cdef PinnedObject view = None if views_first == NULL else <PinnedObject> views_first
    while view is not None:                    # each view once
        if view.generation == process_generation:
            view_keep(view)
        view = view_behind(view)


def views_before_fork():
    """Before a fork: pin the objects of this process's views for the child. Costs some 10 us for
    each map with views, and 0.1 us for each view."""
    global forks_under_way
    cdef PinnedObject view = None if views_first == NULL else <PinnedObject> views_first
    forks_under_way += 1
    while view is not None:                    # each view once; new views are put before the first
        view.child_pin = 0
        if view.generation == process_generation and not view.is_kept:
            view_before_fork(view)
        view = view_behind(view)


def views_after_fork_in_parent():
    """In the parent, after a fork: what it claimed now belongs to the child."""
    global forks_under_way
    cdef Attachment attachment
    forks_under_way -= 1
    for address in attachments.values():
        attachment = <Attachment> <PyObject *> <uint64_t> address
        unborn_release(&attachment.map, &attachment.child)


def views_after_fork_in_child(bint is_the_child):
    """In a child of fork: take over the slots, contexts and pins that the parent claimed for it.

    is_the_child: False in a process that was forked inside the hooks of another fork; what the
    parent claimed is for the child of that other fork.
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
