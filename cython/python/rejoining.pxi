# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# Part of _core.pyx: a second handle of a process, made of what the first one has found out.
#
# Opening costs some twenty system calls: the file is opened, its header is examined, and the
# removal of names (_segment.py) is waited for. A process that has an attachment which its other
# handles use needs one, lstat, which says what file the path names now, and whose it is.
# Geometry, mapping and descriptor are the attachment's. Only handles for reading and writing are
# made so, and only for the user who opened the file: the permissions are not asked for again.
#
# An ephemeral map's name is removed by a process that has seen that no other one holds the map.
# That the name does not go away between lstat and the return follows from Attachment.named. It
# is set for a handle that attached, then saw no removal under way, then saw that its path names
# the map: a removal that begins after it attached finds this process. It is cleared, under the
# state lock, when the process stops being a holder: with the last user, in a child of fork, at
# the process's end. So while it is set, only unlink() removes the name, and a handle that is
# made here was made before.

cpdef enum:
    REJOIN = -1                # instead of a file's descriptor: use what this process has


cdef void note_name(MapHandle handle) noexcept:
    cdef Attachment used
    state_lock()
    if handle.is_user and handle.generation == process_generation:
        used = <Attachment> handle.attachment
        used.named = process_generation + 1
        used.named_by = geteuid()
    state_unlock()


cdef inline bint can_rejoin(Attachment attachment, const stat_t *status) noexcept:
    """Whether handles for reading and writing use this file through the attachment, so that the
    process has its slot. The caller has the state lock."""
    return (attachment.map.inode == status.st_ino
            and attachment.map.device == status.st_dev
            and attachment.map.segment_bytes == <uint64_t> status.st_size
            and not attachment.map.read_only and not attachment.asked_peeks
            and not attachment.without_contexts
            and attachment.named == process_generation + 1
            and attachment.named_by == geteuid()
            and attachment.generation == process_generation
            and attachment.users > 0 and attachment.map.local.registered)


cdef bint rejoin(MapHandle handle, const char *path, Py_ssize_t path_bytes, owner) except -1:
    """Attach a handle to what this process has of the segment that path names. False: it has
    nothing, the file's user is not trusted, or the file has changed: then it has to be opened."""
    cdef stat_t status
    cdef PyObject *at
    cdef char *own_path = handle.map.path
    cdef int64_t own_timeout_ns = handle.map.timeout_ns
    if own_path == NULL or <size_t> path_bytes != strlen(path) or lstat(path, &status) != 0 or (
            not _trust.is_trusted(status.st_uid, owner)):
        return False
    state_lock()
    at = attachments_first
    while at != NULL and not can_rejoin(<Attachment> at, &status):     # each attachment once
        at = (<Attachment> at).behind
    if at != NULL:
        Py_INCREF(<Attachment> at)
        (<Attachment> at).handles += 1
        handle.attachment = at
        handle.generation = process_generation
        become_user(handle)
    state_unlock()
    if at == NULL:
        return False
    handle.map = (<Attachment> at).map
    handle.map.path = own_path
    handle.map.timeout_ns = own_timeout_ns
    handle.standing = &(<Attachment> at).standing
    handle.map_flags = handle.map.header.map_flags
    handle.map_extra = handle.map.header.map_extra
    handle.ephemeral = handle.map.header.ephemeral
    share_of(handle, <Attachment> at)
    return True
