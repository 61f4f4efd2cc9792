# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# Part of _core.pyx: locked sections as Python sees them. section.pxd describes the protocol.
#
# A section has a context of its own from its beginning to its end, so that its thread can do other
# operations while the section is open. A child of fork inherits the Python object and nothing else:
# the context, and with it the section, stays its parent's.

#
# The program's own code can run while a section begins or ends: code that encodes or decodes
# values, signal handlers during a wait, finalizers, other threads. A state says what such code may
# do with the section itself:
#
#   NEW        it may enter the section.
#   ENTERING   nothing. If entering fails, the state is NEW again.
#   OPEN       everything but entering it again.
#   ENCODING   the end has begun, and the values are being encoded: look at the value, delete() and
#              roll_back(), which stops the end; it may neither assign a value nor end the section.
#   ENDING     nothing.
#   ENDED      nothing. The context is given back.
#
# Without a GIL each method is a critical section of its object, which ends and begins again where
# the GIL would be released: so the states say what other threads may do there, too.

cdef enum:
    SECTION_NEW
    SECTION_ENTERING
    SECTION_OPEN
    SECTION_ENCODING
    SECTION_ENDING
    SECTION_ENDED

cdef enum:
    REMOVAL_TURNS = 5          # the last of them looks whether the lock's owner is dead


def forget_sections():
    """In a child of fork: forget the open sections, which are the parent's."""
    sections_open.clear()
    claims_open.clear()


cdef refuse_section(MapHandle handle):
    raise _errors.Error(
        f"map {handle.name!r}: the section is the parent process's, and only the parent can end "
        f"it; a child of fork has to open its own")


cdef refuse_another_end(MapHandle handle):
    raise _errors.InvalidArgument(f"map {handle.name!r}: the section is being ended already")


@cython.internal
@cython.auto_pickle(False)
@cython.no_gc_clear                # __dealloc__ needs the handle
cdef class LockedSection:
    """What the two kinds of sections have in common: LockedValue, of a map; LockedEntry, of a
    dict."""

    cdef MapHandle handle
    cdef Op op
    cdef Section section           # section.held is 0 if the section has been ended or never begun
    cdef int state
    cdef uint64_t generation       # of the process that locked the key
    cdef tuple name                # in sections_open, once the key is locked
    cdef object timeout
    cdef object kept               # op.key points into this object, or into the section itself
    cdef bint removing             # the key is deleted at the end
    cdef object task               # of asyncio, that enters it; None: a thread does
    cdef int64_t began             # when the task first asked
    cdef object refused            # why the task's last attempt failed

    cdef int _prepare(self, Waiting *waiting) except -1:
        """Begin __enter__: how long it may wait."""
        waiting[0] = new_waiting(self.handle)
        if self.timeout is not None:
            waiting.limit_ns = timeout_ns(self.timeout)    # its __float__ is the program's code
        if self.state != SECTION_NEW:
            raise _errors.InvalidArgument("a locked section can be entered only once")
        self.state = SECTION_ENTERING
        if self.task is not None:              # it waits between attempts: see attempt()
            waiting.began = self.began
            waiting.limit_ns = 0
        return 0

    cdef int _open(self, Waiting *waiting) except -1:
        """Lock the key, in an operation that has ended when this returns; if it raises, the context
        is given back."""
        return 0

    @cython.critical_section
    def __enter__(self):
        cdef Waiting waiting
        self._prepare(&waiting)
        try:
            self._open(&waiting)
        except BaseException:
            self.state = SECTION_NEW
            raise
        self.state = SECTION_OPEN
        return self

    cdef int _locked(self) except -1:
        """The key is locked now, by the caller."""
        self.generation = self.op.generation
        self.name = self.handle.map.device, self.handle.map.inode, self.op.self_index
        sections_open[self.name] = caller_number(), self.task
        return 0

    # For an event loop (shmrhash/_turns.py): a section is entered, and ended with a deletion, in
    # attempts that do not wait.

    def _attempt(self, task):
        """Try to enter. False: a lock is in the way; _refused says which.

        Raises what __enter__ raises but LockTimeout.
        """
        if self.task is None:
            self.task = task
        if self.began == 0:
            self.began = clock_ns(CLOCK_MONOTONIC)
        self.refused = None
        try:
            self.__enter__()
        except _errors.LockTimeout as error:
            self.refused = error
        return self.refused is None

    @property
    def _refused(self):
        return self.refused

    @property
    def _owner(self):
        return self.handle

    @property
    def _place(self):
        """Equal for sections on the same key of the same map."""
        return self.handle.map.device, self.handle.map.inode, self.kept

    @property
    def _deadline_ns(self):
        """When its time to wait is over, CLOCK_MONOTONIC in ns; -1: never."""
        if self.began == 0:
            self.began = clock_ns(CLOCK_MONOTONIC)
        limit = self.handle.map.timeout_ns if self.timeout is None else timeout_ns(self.timeout)
        return -1 if limit < 0 else self.began + limit

    @property
    def _element(self):
        """The element of the section in the way of the last attempt; -1: something else was."""
        if not is_element_word(&self.handle.map, self.op.wait_word):
            return -1
        return element_of_word(&self.handle.map, self.op.wait_word)

    @cython.critical_section
    def _attempt_removal(self, int64_t waited_ns):
        """Before __exit__: try to delete the key if the block asked for that. False: its bucket is
        held by another process, perhaps a stopped one.

        Raises LockTimeout if it has been tried for longer than the handle's timeout; the section is
        then ended.
        """
        cdef Status status = RETRY
        cdef uint64_t turn
        if (self.state != SECTION_OPEN or not self.removing or not self._mine()
                or load_relaxed_u64(&self.handle.map.header.frozen) != 0):
            return True
        op_begin(&self.op)
        for turn in range(REMOVAL_TURNS):
            status = attempt_end(&self.op, <void *> self)
            if is_final(status):
                break
            with nogil:
                wait_step(&self.op, turn, waited_ns)
        if is_final(status):
            op_end(&self.op)
            return True
        if 0 <= self.handle.map.timeout_ns < waited_ns:
            try:
                raise_timeout(self.handle, &self.op, waited_ns)
            finally:
                self._finish()
        op_end(&self.op)
        return False

    def __aenter__(self):
        from shmrhash import _turns  # which imports this extension; it is loaded by now
        return _turns.enter(self)

    def __aexit__(self, kind, error, traceback):
        from shmrhash import _turns
        return _turns.leave(self, kind, error, traceback)

    cdef int _not_locked(self) except -1:
        if self.name is not None:
            sections_open.pop(self.name, None)
        return 0

    cdef bint _mine(self) noexcept:
        """Whether this process opened the section: a child of fork did not."""
        return self.generation == process_generation

    @property
    def _is_mine(self):
        return bool(self._mine())

    cdef int _expect_open(self) except -1:
        if self.state != SECTION_OPEN and self.state != SECTION_ENCODING:
            raise _errors.InvalidArgument("the value can be used only inside its with block")
        return 0

    @cython.critical_section
    cdef bint _begin_end(self) except -1:
        """Begin the end, of several sections together. False: it has ended, or another thread ends
        it. The program's code cannot change it any more, but while its value is encoded."""
        if self.state != SECTION_OPEN:
            return False
        self.state = SECTION_ENCODING if self._mine() and self._changes() else SECTION_ENDING
        return True

    @cython.critical_section
    cdef int _end_encoding(self) except -1:
        self._expect_encoded()
        self.state = SECTION_ENDING
        return 0

    cdef bint _changes(self) except -1:
        """Whether the end of the block changes anything."""
        return True

    cdef int _encode(self) except -1:
        """Prepare the value that is to be stored. This may run the program's code."""
        return 0

    cdef int _expect_encoded(self) except -1:
        """After the values are encoded: raise if that has ended the section, or forked."""
        if not self._mine():
            refuse_section(self.handle)
        if self.state != SECTION_ENCODING:
            raise _errors.InvalidArgument(
                f"map {self.handle.name!r}: code that encodes a value has ended its section; "
                f"nothing was stored")
        return 0

    cdef int _expect_alive(self) except -1:
        """Raise KeyGone if the entry has expired."""
        return 0

    cdef Status _attempt_objects(self) noexcept:
        """Make the objects of the value."""
        return OK

    cdef const uint8_t *_bytes(self) noexcept:
        """The value as the entry gets it."""
        return NULL

    cdef Status _attempt_store(self) noexcept:
        """Store the value and end the section."""
        return CORRUPT

    cdef int _forget_value(self) except -1:
        """The encoded value is not needed any more."""
        return 0

    cdef void _finish(self) noexcept:
        """End this object, and the section, unless it has ended. Stores nothing, never waits. In a
        child of fork only the object ends; the parent's section goes on."""
        cdef uint64_t _rounds
        self.state = SECTION_ENDED
        if self.section.held != 0 and self._mine():
            for _rounds in range(READ_ROUNDS_MAX):         # no writers interfere this often
                if section_abandon(&self.op, &self.section) != RETRY:
                    break
        self.section.held = 0
        if self._mine():
            self._not_locked()
        leave(self.handle, &self.op)           # in a child: its own context, if it has taken one

    cdef void _abandon(self) noexcept:
        """End the section outside any operation of it, and store nothing; or nothing, if it has
        ended."""
        if self.state == SECTION_ENDED:
            return
        if self.op.generation == process_generation:
            op_begin(&self.op)
        self._finish()

    cdef int _commit(self) except -1:
        """Store the value or delete the key, and end the section. If this fails or a wait is
        interrupted, the key keeps the value from before."""
        cdef MapHandle handle = self.handle
        cdef Status status = RETRY
        cdef Waiting waiting = new_waiting(handle)
        cdef bint removed = self.removing and self.section.held == 0   # by _attempt_removal
        self.state = SECTION_ENCODING
        try:
            if not self.removing:
                self._encode()
            self._expect_encoded()
        except BaseException:
            self._abandon()
            raise
        self.state = SECTION_ENDING
        op_begin(&self.op)
        try:
            if load_relaxed_u64(&handle.map.header.frozen) != 0 and not removed:
                raise _errors.FrozenMap(
                    f"map {handle.name!r} was frozen while the key was locked; the section "
                    f"changed nothing")
            if not self.removing:
                self._expect_alive()
            while status == RETRY:             # again after close(): the handle stays attached
                try:
                    # What the beginning of the section could not give back is not the new value's.
                    repeat(handle, &self.op, attempt_settle, NULL, &waiting)
                    status = repeat(handle, &self.op, attempt_end, <void *> self, &waiting)
                except _errors.MapClosed:
                    pass
        finally:
            self._finish()
        if not self._mine():                   # a signal handler forked during a wait
            refuse_section(handle)
        if status == ABSENT:
            raise _errors.KeyGone(
                f"map {handle.name!r}: the key was deleted while it was locked; the new value "
                f"was not stored")
        if status != OK:
            raise_status(handle, status, &self.op)
        return 0

    @cython.critical_section
    def __exit__(self, kind, error, traceback):
        if self.state == SECTION_ENCODING or self.state == SECTION_ENDING:
            refuse_another_end(self.handle)
        if self.state != SECTION_OPEN:
            return False
        if not self._mine():
            self._finish()
            refuse_section(self.handle)
        if kind is None and self._changes():
            self._commit()
        else:
            self._abandon()
        return False

    def __dealloc__(self):
        if self.state == SECTION_OPEN:
            self._abandon()


cdef Status attempt_end(Op *op, void *arguments) noexcept:
    """End a section: OK, or ABSENT if the key was deleted while it was locked; CORRUPT: it is the
    parent's."""
    cdef LockedSection ended = <LockedSection> arguments
    cdef Status status
    if not ended._mine():
        return CORRUPT
    if ended.removing and ended.section.held == 0:
        return OK                              # _attempt_removal has done it
    if ended.removing:
        status = section_remove(op, &ended.section)
    else:
        status = ended._attempt_store()
    if status == OK:
        ended.section.held = 0
    return status
