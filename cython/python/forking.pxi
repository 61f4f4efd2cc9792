# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# Part of _core.pyx: what happens to views when their process forks. forking.pxd describes the
# protocol.
#
# The public functions are called by the hooks that shmrhash/_lifetime.py registers with
# os.fork(), which let one thread fork at a time. A C library that forks by itself calls no hook:
# nothing pins the views of its child, so the parent may reuse their bytes.
#
# The walks hold the state lock (gil.h), and let no other thread run: so each view that they meet
# exists, though its last reference may be gone. They count none themselves.


cdef void view_before_fork(PinnedObject view) noexcept:
    cdef Op op
    if enter_for_view(view.handle, &op):
        pin_for_child(view, &op)
        leave_view(view.handle, &op)
    else:
        view_keep(view)


def views_keep():
    """Before a fork inside the hooks of another fork: keep this process's pins until it ends, since
    nothing is claimed for that child."""
    cdef PyObject *at
    state_lock()
    at = views_first
    while at != NULL:                          # each view once
        if (<PinnedObject> at).generation == process_generation:
            view_keep(<PinnedObject> at)
        at = (<PinnedObject> at).behind
    state_unlock()


def views_before_fork():
    """Before a fork: pin the objects of this process's views for the child. Costs some 10 us for
    each map with views, and 0.1 us for each view."""
    global forks_under_way
    cdef PyObject *at
    state_lock()
    forks_under_way += 1
    at = views_first
    while at != NULL:                          # each view once; new views are put before the first
        (<PinnedObject> at).child_pin = 0
        if (<PinnedObject> at).generation == process_generation and (
                not (<PinnedObject> at).is_kept):
            view_before_fork(<PinnedObject> at)
        at = (<PinnedObject> at).behind
    state_unlock()


def views_after_fork_in_parent():
    """In the parent, after a fork: what it claimed now belongs to the child."""
    global forks_under_way
    cdef PyObject *at
    state_lock()
    forks_under_way -= 1
    at = attachments_first
    while at != NULL:                          # each attachment once
        unborn_release(&(<Attachment> at).map, &(<Attachment> at).child)
        at = (<Attachment> at).behind
    state_unlock()


def locks_after_fork_in_child():
    """In a child of fork: close the descriptors that would keep the parent's locks on its slots."""
    cdef Attachment attachment
    cdef PyObject *at = attachments_first
    while at != NULL:                          # each attachment once
        attachment = <Attachment> at
        at = attachment.behind
        if attachment.standing.lock_fd >= 0:
            close_fd(attachment.standing.lock_fd)
            attachment.standing.lock_fd = -1


def views_after_fork_in_child(bint is_the_child):
    """In a child of fork: take over the slots, contexts and pins that the parent claimed for it.

    is_the_child: False in a process that was forked inside the hooks of another fork; what the
    parent claimed is for the child of that other fork.
    """
    global forks_under_way
    cdef Attachment attachment
    cdef PinnedObject view
    cdef PyObject *at = attachments_first
    forks_under_way = 0
    while at != NULL:                          # each attachment once
        attachment = <Attachment> at
        at = attachment.behind
        if not is_the_child:
            unborn_release(&attachment.map, &attachment.child)
            attachment.child.context = 0
        elif attachment.child.fd >= 0 and not unborn_adopt(
                &attachment.map, &attachment.standing, &attachment.child):
            attachment.child.context = 0
    at = views_first
    while at != NULL:                          # each view once
        view = <PinnedObject> at
        at = view.behind
        if view.child_pin != 0 and (<Attachment> view.handle.attachment).child.context != 0:
            view.pin = view.child_pin - 1
            view.generation = process_generation
            view.is_kept = False
        view.child_pin = 0
