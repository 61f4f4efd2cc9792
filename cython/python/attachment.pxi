# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# Part of _core.pyx: what all handles of one map in one process share.
#
# An attachment is the mapping, the process slot with its contexts, and the descriptor. Handles of
# one file with the same rights (read, or read and write) share one, however they were made: opened,
# unpickled, copied. It is found by device and inode, so a new map under an old name has another
# attachment. It ends with its last handle, once no view and no operation of that handle is left.
# The list of attachments, and what they count, are changed under the state lock (gil.h).
#
# A handle has a copy of the Map of its attachment, so that an operation reaches everything with one
# load. It counts its own operations and views, and has its own timeout and name.

cdef PyObject *attachments_first = NULL        # the list of those that have handles


@cython.final
@cython.internal
@cython.auto_pickle(False)
cdef class Attachment:
    """One process's stay in a segment."""

    cdef Map map
    cdef Standing standing
    cdef PyObject *behind          # the next one of the list
    cdef uint64_t handles          # that refer to it
    cdef uint64_t users            # handles that this process has used and not closed
    cdef uint64_t generation       # (in this generation: a child begins with none)
    cdef uint64_t reader_page      # the mapped page that holds READER_BYTE
    cdef bint asked_peeks          # handles that want to leave no trace have one of their own
    cdef bint without_contexts     # it only reads, and can have no contexts
    cdef Unborn child              # the claims for a child, while a process with views forks
    cdef Listener listener         # the thread that listens for the event loops
    cdef uint64_t keeps            # generation + 1 in which view_keep was called; or 0
    cdef uint64_t named            # generation + 1 in which a path was seen to name it; or 0
    cdef uint32_t named_by         # the effective user who opened it then

    def __cinit__(self):
        self.map.fd = -1
        self.standing.lock_fd = -1
        self.child.fd = -1

    def __dealloc__(self):
        self.stop_listening()
        if self.map.base != NULL:
            privates_forget(self.map.base, self.map.segment_bytes)
            if keeps_pins(self):
                self.map.local.registered = 0  # the process keeps the slot until it ends
            attach_end(&self.map, &self.standing)
        self.close_file()

    cdef void stop_listening(self) noexcept:
        state_lock()
        listener_stop(&self.listener, process_generation)
        ears_forget(&self.listener, process_generation)
        state_unlock()

    cdef void close_file(self) noexcept:
        """Give back the descriptor, and what keeps READER_BYTE. No operation is under way."""
        if self.reader_page:
            munmap(<void *> self.reader_page, PAGE_BYTES)
            self.reader_page = 0
        if is_segment(&self.map, self.map.fd):     # else the program has closed and reused it
            close_fd(self.map.fd)
        self.map.fd = -1

    cdef announce_reader(self, MapHandle handle):
        """Hold READER_BYTE shared, by a mapping, as long as this address space exists: no releaser
        of memory can tell what this attachment reads."""
        cdef bint announced
        state_lock()
        announced = self._announce(handle)
        state_unlock()
        if not announced:
            raise _errors.SystemFailure(
                f"cannot announce a reader of segment {handle.name!r}: {os_error()}")

    cdef bint _announce(self, MapHandle handle) noexcept:
        cdef void *page = MAP_FAILED
        cdef int fd
        if self.reader_page:
            return True
        fd = segment_open(&self.map)
        if fd < 0:
            fd = segment_open(&handle.map)     # which has the path
        if fd >= 0 and byte_lock(fd, F_OFD_SETLK, F_RDLCK, READER_BYTE) == 0:
            page = mmap(NULL, PAGE_BYTES, PROT_READ, MAP_SHARED, fd, 0)
        if fd >= 0:
            close_fd(fd)
        if page == MAP_FAILED:
            return False
        self.reader_page = <uint64_t> page
        return True


cdef tuple attachment_key(MapHandle handle):
    """Equal for handles that share an attachment; known before the handle is attached."""
    return (handle.map.device, handle.map.inode, bool(handle.map.read_only),
            bool(handle.map.peeks))


cdef Attachment attachment_hold(MapHandle handle, Attachment made):
    """The attachment that this process has to the segment that a handle examined, or else made,
    unless that is None; counted as the handle's, so that it stays."""
    cdef PyObject *at
    cdef Attachment found = made
    global attachments_first
    state_lock()
    at = attachments_first
    while at != NULL:                          # each attachment once
        if attachment_fits(<Attachment> at, handle):
            found = <Attachment> at
            break
        at = (<Attachment> at).behind
    if found is not None:
        if at == NULL:
            found.behind = attachments_first
            attachments_first = <PyObject *> found
        found.handles += 1
    state_unlock()
    return found


cdef inline bint attachment_fits(Attachment attachment, MapHandle handle) noexcept:
    """Whether their attachment_key is the same."""
    return (attachment.map.device == handle.map.device
            and attachment.map.inode == handle.map.inode
            and attachment.map.read_only == handle.map.read_only
            and attachment.asked_peeks == handle.map.peeks)


cdef void attachment_drop(Attachment attachment) noexcept:
    """The end of attachment_hold. The last handle takes it off the list."""
    cdef PyObject **at = &attachments_first
    state_lock()
    attachment.handles -= 1
    if attachment.handles == 0:
        while at[0] != <PyObject *> attachment and at[0] != NULL:      # each attachment once
            at = &(<Attachment> at[0]).behind
        if at[0] != NULL:
            at[0] = attachment.behind
    state_unlock()


cdef Attachment attachment_new(MapHandle handle):
    """Map the segment that a handle examined; the handle's descriptor becomes the attachment's."""
    cdef Attachment made = Attachment.__new__(Attachment)
    cdef const char *missing = NULL
    cdef int fd = -1
    if handle.map.read_only and not handle.map.peeks:
        handle.map.file_read_only = False
        fd = segment_open(&handle.map)         # so as to write slots and contexts (attach_map)
        handle.map.file_read_only = fd < 0
    if fd >= 0:
        close_fd(handle.map.fd)
        handle.map.fd = fd
    made.asked_peeks = handle.map.peeks
    if not attach_map(&handle.map, handle.map.fd, &missing):
        refuse_mapping(handle.name, handle.map.segment_bytes, missing)
    made.map = handle.map
    handle.map.fd = -1
    if handle.map.file_read_only:
        made.announce_reader(handle)
        made.without_contexts = True
    made.map.path = NULL                       # the handle owns and frees it
    return made


cdef attach(MapHandle handle):
    """Attach a handle that has examined its segment to its attachment, a new one if need be."""
    cdef Attachment found = attachment_hold(handle, None)
    cdef Attachment made = None
    if found is None:
        made = attachment_new(handle)
        found = attachment_hold(handle, made)  # another thread may have been faster
    Py_INCREF(found)
    handle.attachment = <PyObject *> found
    handle.standing = &found.standing
    if found is not made:
        geometry_bind(&handle.map, found.map.base)
        handle.map.local = found.map.local
        handle.map.owner_recover = found.map.owner_recover
        handle.map.ring_note = found.map.ring_note
        if handle.map.fd >= 0:
            close_fd(handle.map.fd)
    share_of(handle, found)
    state_lock()
    handle.generation = process_generation
    become_user(handle)
    state_unlock()


cdef share_of(MapHandle handle, Attachment found):
    """What each handle has to find out or copy, whatever its attachment was used for before."""
    handle.map.fd = found.map.fd
    handle.map.file_read_only = found.map.file_read_only
    look_for_greenlets()
    handle.map.peeks = found.without_contexts
    if not handle.map.file_read_only:          # for each handle: the permission may have changed
        handle.map.use_membarrier = membarrier_register()
        if not handle.map.use_membarrier:
            found.announce_reader(handle)
            if not fences_demand(&handle.map):
                found.without_contexts = handle.map.peeks = True


cdef bint reader_has_context(MapHandle handle) except -1:
    """Whether a read-only handle has an idle context. If it cannot get one now, its attachment goes
    on without contexts for good."""
    cdef Attachment attachment
    cdef Status status
    cdef uint64_t taken = 0
    expect_open(handle)
    attachment = <Attachment> handle.attachment
    if not attachment.without_contexts:
        state_lock()
        status = attach_claim(&handle.map, handle.standing, &taken)
        if status == OK:
            attach_rest(&handle.map, taken)
        state_unlock()
        if status == OK:
            return True
        attachment.announce_reader(handle)
        attachment.without_contexts = True
    handle.map.peeks = True
    return False


cdef void become_user(MapHandle handle) noexcept:
    """Count a handle as a user: one just opened, or one first used in a child of fork. The caller
    has the state lock."""
    cdef Attachment used = <Attachment> handle.attachment
    if used.generation != process_generation:
        used.generation = process_generation
        used.users = used.named = 0
    used.users += 1
    handle.is_user = True
    if keeps_pins(used):
        mark_leaving(&used.map, False)


cdef void mark_leaving(Map *map, bint leaving) noexcept:
    """Say in this process's claim whether it is coming to its end by itself (claim.pxd). The caller
    has the state lock."""
    cdef uint64_t *word
    if map.local.registered:
        word = &(map.processes + map.local.process_index).used
        # Only this process stores to its claim. Release: pairs with nothing but itself.
        store_release_u64(word, load_relaxed_u64(word) & ~CLAIM_LEAVING
                          | (CLAIM_LEAVING if leaving else 0))


def process_leaves():
    """Note in all segments that this process is ending by itself: from now on it does not keep the
    name of an ephemeral map, and once it is dead, it does not count as killed."""
    cdef PyObject *at
    state_lock()
    at = attachments_first
    while at != NULL:                          # each attachment once
        (<Attachment> at).named = 0
        mark_leaving(&(<Attachment> at).map, True)
        at = (<Attachment> at).behind
    state_unlock()


cdef bint keeps_pins(Attachment attachment) noexcept:
    """Whether this process keeps its pins until it ends, and so its slot, which they name."""
    return attachment.keeps == process_generation + 1


cdef void attachment_leave(MapHandle handle) noexcept:
    """End a closed handle's use of the attachment. The last one gives back slot and contexts."""
    cdef Attachment left = <Attachment> handle.attachment
    state_lock()
    if handle.is_user and handle.generation == process_generation:
        handle.is_user = False
        left.users -= 1
        if left.users == 0:
            left.named = 0
        if left.users == 0 and keeps_pins(left):
            mark_leaving(&left.map, True)
        elif left.users == 0:
            attach_leave(&left.map, &left.standing)
    state_unlock()


cdef void descriptor_drop(MapHandle handle) noexcept:
    """The handle uses no descriptor any more."""
    if handle.map.fd != (<Attachment> handle.attachment).map.fd and is_segment(
            &handle.map, handle.map.fd):
        close_fd(handle.map.fd)                # reopened after the program had closed it
    handle.map.fd = -1


cdef void attachment_retire(MapHandle handle) noexcept:
    """Without a GIL, when a closed handle has no operation and no view any more: attachment_leave,
    and give back what detach() would, but not the mapping. Another thread may be reading a figure
    there, so it stays until the handle is freed. Of several threads that come here, one does it."""
    cdef Attachment left = <Attachment> handle.attachment
    attachment_leave(handle)
    state_lock()
    if not handle.is_retired:
        handle.is_retired = True
        descriptor_drop(handle)
        attachment_drop(left)
        if left.handles == 0:                  # it is off the list: nobody finds it again
            left.stop_listening()
            left.close_file()
    state_unlock()


cdef void detach(MapHandle handle) noexcept:
    """attachment_leave(), and release the mapping, into which nothing of the handle may point any
    more."""
    cdef Attachment left
    if handle.attachment == NULL:
        return
    attachment_leave(handle)
    left = <Attachment> handle.attachment
    descriptor_drop(handle)
    handle.map.base = NULL
    handle.map.local = NULL
    handle.standing = NULL
    handle.attachment = NULL
    if not handle.is_retired:
        attachment_drop(left)
    Py_DECREF(left)
