# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# Part of _core.pyx: what all handles of one map in one process share.
#
# An attachment is the mapping, the process slot with its contexts, and the descriptor. Handles of
# one file that may do the same (read, or read and write) share one, however they were made: opened,
# unpickled, copied. It is found by device and inode, so a map made anew under an old name has
# another. The last handle, with its views and what it has under way, ends it.
#
# A handle has a copy of the Map of its attachment, so that an operation reaches everything with one
# load, and counts its own operations and views; timeout and name are its own too.

cdef dict attachments = {}         # (device, inode, read_only) -> the address of an Attachment


@cython.final
@cython.internal
@cython.auto_pickle(False)
cdef class Attachment:
    """One process's stay in a segment."""

    cdef Map map
    cdef Standing standing
    cdef uint64_t users            # handles that this process has used and not closed,
    cdef uint64_t generation       # in this generation: a child begins with none
    cdef uint64_t read_only_page
    cdef Unborn child              # while this process forks, and has views
    cdef uint64_t keeps            # generation + 1 in which pins began to stay (view_keep)
    cdef tuple key

    def __cinit__(self):
        self.map.fd = -1
        self.standing.lock_fd = -1
        self.child.fd = -1

    def __dealloc__(self):
        if self.key is not None and attachments.get(self.key) == <uint64_t> <PyObject *> self:
            del attachments[self.key]
        if self.map.base != NULL:
            if keeps_pins(self):
                self.map.local.registered = 0  # the slot is this process's until it ends
            session_end(&self.map, &self.standing)
            if self.read_only_page:
                munmap(<void *> self.read_only_page, PAGE_BYTES)
        if is_segment(&self.map, self.map.fd):     # else the program closed it, and reused it
            close_fd(self.map.fd)

    cdef announce_reader(self, str name):
        """Hold READER_BYTE shared, by a mapping, for as long as this address space lives."""
        cdef int fd = segment_open(&self.map)
        cdef void *page = MAP_FAILED
        if fd >= 0 and byte_lock(fd, F_OFD_SETLK, F_RDLCK, READER_BYTE) == 0:
            page = mmap(NULL, PAGE_BYTES, PROT_READ, MAP_SHARED, fd, 0)
        if fd >= 0:
            close_fd(fd)
        if page == MAP_FAILED:
            raise _errors.Error(f"cannot announce a reader of segment {name!r}: {os_error()}")
        self.read_only_page = <uint64_t> page


cdef Attachment attachment_of(MapHandle handle):
    """The attachment this process has to the segment that a handle examined, or None."""
    cdef uint64_t address = attachments.get(
        (handle.map.device, handle.map.inode, bool(handle.map.read_only)), 0)
    return None if address == 0 else <Attachment> <PyObject *> address


cdef Attachment attachment_new(MapHandle handle):
    """Map the segment that a handle examined; the handle's descriptor becomes the attachment's."""
    cdef Attachment made = Attachment.__new__(Attachment)
    cdef const char *missing = NULL
    if not session_map(&handle.map, handle.map.fd, &missing):
        refuse_mapping(handle.name, handle.map.segment_bytes, missing)
    made.map = handle.map
    handle.map.fd = -1
    if handle.map.read_only:
        made.announce_reader(handle.name)
    made.map.path = NULL                       # it goes with the handle
    made.key = handle.map.device, handle.map.inode, bool(handle.map.read_only)
    attachments[made.key] = <uint64_t> <PyObject *> made
    return made


cdef attach(MapHandle handle):
    """Attach a handle that has examined its segment: to what this process has, or anew."""
    cdef Attachment found = attachment_of(handle)
    if found is None:
        found = attachment_new(handle)
    else:
        geometry_bind(&handle.map, found.map.base)
        handle.map.local = found.map.local
        close_fd(handle.map.fd)
    handle.map.fd = found.map.fd
    if not handle.map.read_only:               # again for each: what is allowed may have changed
        handle.map.use_membarrier = syscall(
            SYS_membarrier, MEMBARRIER_REGISTER_GLOBAL_EXPEDITED, 0, 0) == 0
    Py_INCREF(found)
    handle.attachment = <PyObject *> found
    handle.standing = &found.standing
    handle.generation = process_generation
    become_user(handle)


cdef void become_user(MapHandle handle) noexcept:
    """Count a handle that is opened, or used for the first time in a child of fork."""
    cdef Attachment used = <Attachment> handle.attachment
    if used.generation != process_generation:
        used.generation = process_generation
        used.users = 0
    used.users += 1
    handle.is_user = True
    if keeps_pins(used):
        mark_leaving(&used.map, False)


cdef void mark_leaving(Map *map, bint leaving) noexcept:
    """Say in this process's claim whether it is one that is about to go (claim.pxd)."""
    cdef uint64_t *word
    if map.local.registered:
        word = &(map.processes + map.local.process_index).used
        # Only this process stores to its claim. Release: pairs with nothing but itself.
        store_release_u64(word, load_relaxed_u64(word) & ~CLAIM_LEAVING
                          | (CLAIM_LEAVING if leaving else 0))


cdef bint keeps_pins(Attachment attachment) noexcept:
    """Whether pins of this process stay for as long as it: so does its slot, which they name."""
    return attachment.keeps == process_generation + 1


cdef void leave(MapHandle handle) noexcept:
    """A closed handle uses the attachment no more; the last one gives slot and contexts back."""
    cdef Attachment left = <Attachment> handle.attachment
    if handle.is_user and handle.generation == process_generation:
        handle.is_user = False
        left.users -= 1
        if left.users == 0 and keeps_pins(left):
            mark_leaving(&left.map, True)
        elif left.users == 0:
            session_leave(&left.map, &left.standing)


cdef void detach(MapHandle handle) noexcept:
    """leave(), and nothing of the handle points into the mapping any more."""
    cdef Attachment left
    if handle.attachment == NULL:
        return
    leave(handle)
    left = <Attachment> handle.attachment
    if handle.map.fd != left.map.fd and is_segment(&handle.map, handle.map.fd):
        close_fd(handle.map.fd)                # opened again after the program had closed it
    handle.map.fd = -1
    handle.map.base = NULL
    handle.map.local = NULL
    handle.standing = NULL
    Py_DECREF(left)
    handle.attachment = NULL
