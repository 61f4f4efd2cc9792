# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# Part of _core.pyx: ending several sections in one step. journal.pxd describes the protocol.

@cython.final
@cython.internal
@cython.auto_pickle(False)
cdef class Journal:
    """The sections that change something at the end of locked_many(), two or more. After the
    commit nothing can fail; before it, sections_end() abandons the sections."""

    cdef MapHandle handle
    cdef list sections             # after _encode(), those that delete their key come last
    cdef Member *members           # the same, for the core
    cdef Py_ssize_t count
    cdef Py_ssize_t at             # the member whose key is being deleted

    def __cinit__(self, list sections):
        self.handle = (<LockedSection> sections[0]).handle
        self.count = len(sections)
        self.sections = sections
        self.members = <Member *> calloc(self.count, sizeof(Member))
        if self.members == NULL:
            raise MemoryError("no memory for the end of locked_many()")

    def __dealloc__(self):
        free(self.members)

    cdef bint _mine(self) noexcept:
        """Whether this process locked the keys: not if program code, or a signal handler, forked,
        and this is the child."""
        return (<LockedSection> self.sections[0])._mine()

    cdef int _expect_mine(self) except -1:
        """Raise in a child of fork."""
        if not self._mine():
            refuse_section(self.handle)
        return 0

    cdef int _encode(self) except -1:
        """Encode the values, which may run the program's code. Afterwards no code or thread of the
        program can change the sections any more."""
        cdef LockedSection section
        cdef list storing = []
        cdef list removing = []
        for section in self.sections:
            if not section.removing:
                section._encode()
        for section in self.sections:
            section._end_encoding()
        for section in self.sections:
            (removing if section.removing else storing).append(section)
        self.sections = storing + removing
        return 0

    cdef int _prepare(self) except -1:
        """Do what may fail, or wait: make objects, see that the buckets of deletions are free."""
        cdef LockedSection section
        cdef Waiting waiting
        cdef Status status
        for section in self.sections:
            waiting = new_waiting(self.handle)
            op_begin(&section.op)
            try:
                # As in LockedSection._commit.
                repeat(self.handle, &section.op, attempt_settle, NULL, &waiting)
                status = repeat(
                    self.handle, &section.op, attempt_prepare, <void *> section, &waiting)
            finally:
                if section.op.generation == process_generation:
                    op_end(&section.op)
                self._expect_mine()
            if status != OK:
                raise_status(self.handle, status, &section.op)
        return 0

    cdef int _begin(self) except -1:
        """Begin an operation of every section, and describe the sections to the core."""
        cdef LockedSection section
        cdef Py_ssize_t at
        for at in range(self.count):
            section = <LockedSection> self.sections[at]
            op_begin(&section.op)
            self.members[at].op = &section.op
            self.members[at].section = &section.section
            if not section.removing:
                self.members[at].value = section._bytes()
        return 0

    cdef Status _commit(self) except? RETRY:
        """Commit, and store the new values. ABSENT: a key was deleted; all sections are open."""
        cdef LockedSection section
        cdef Op *op = self.members[self.count - 1].op
        cdef Status status = RETRY
        cdef Waiting waiting = new_waiting(self.handle)
        if load_relaxed_u64(&self.handle.map.header.frozen) != 0:
            raise _errors.FrozenMap(
                f"map {self.handle.name!r} was frozen while the keys were locked; the sections "
                f"changed nothing")
        for section in self.sections:
            if not section.removing:
                section._expect_alive()
        while status == RETRY:                 # again after close(): the handle stays attached
            try:
                status = repeat(self.handle, op, attempt_journal, <void *> self, &waiting)
            except _errors.MapClosed:
                pass
            self._expect_mine()
        return status

    cdef object _remove(self, Py_ssize_t at):
        """Delete the key of a committed member, however long its bucket is held. Returns an
        exception that interrupted this, for the caller to raise when all is done."""
        cdef Waiting waiting = new_waiting(self.handle)
        cdef Status status = RETRY
        cdef object interrupted = None
        waiting.limit_ns = -1
        self.at = at
        while status == RETRY:                 # ends when the bucket's owner goes on, or dies
            try:
                status = repeat(self.handle, self.members[at].op, attempt_member_removal,
                                <void *> self, &waiting)
            except BaseException as error:
                if not isinstance(error, _errors.MapClosed):
                    interrupted = error
            self._expect_mine()
        if status != OK:
            raise_status(self.handle, CORRUPT, self.members[at].op)
        return interrupted

    cdef int end(self) except -1:
        """End the sections in one step."""
        cdef LockedSection section
        cdef Status status = RETRY
        cdef object interrupted = None
        cdef bint begun = False
        cdef Py_ssize_t at
        try:
            self._encode()
            self._prepare()
            self._begin()
            begun = True
            status = self._commit()
            if status == OK:
                for at in range(self.count):
                    if self.members[at].value == NULL:
                        interrupted = self._remove(at) or interrupted
        finally:
            for section in self.sections:
                if begun:
                    section._finish()
                else:
                    section._abandon()
        if status == ABSENT:
            raise _errors.KeyGone(
                f"map {self.handle.name!r}: a key was deleted while it was locked; no value was "
                f"stored")
        if status != OK:
            raise_status(self.handle, status, NULL)
        if interrupted is not None:
            raise interrupted
        return 0


cdef Status attempt_prepare(Op *op, void *arguments) noexcept:
    """Before the commit: make the objects of a section's value, or look at its bucket."""
    cdef LockedSection section = <LockedSection> arguments
    if not section._mine():
        return CORRUPT
    return journal_bucket_is_free(op) if section.removing else section._attempt_objects()


cdef Status attempt_journal(Op *op, void *arguments) noexcept:
    """Commit the journal, and store the values."""
    cdef Journal journal = <Journal> arguments
    cdef Status status = CORRUPT
    if journal._mine():
        status = journal_commit(journal.members, journal.count)
    if status == OK:
        journal_store(journal.members, journal.count)
    return status


cdef Status attempt_member_removal(Op *op, void *arguments) noexcept:
    cdef Journal journal = <Journal> arguments
    return member_remove(&journal.members[journal.at]) if journal._mine() else CORRUPT


def sections_end(list sections not None):
    """End sections of one map in one step: all that they change is stored, or nothing.

    Raises what the end of one section raises; KeyGone: nothing is stored.
    """
    cdef LockedSection section
    cdef list ending = []
    cdef list changing = []
    for section in sections:
        if section._begin_end():               # else it was rolled back
            ending.append(section)
    try:
        for section in ending:
            if not section._mine():
                refuse_section(section.handle)
        for section in ending:
            if section.state == SECTION_ENCODING:
                changing.append(section)
        if len(changing) == 1:
            (<LockedSection> changing[0])._commit()
        elif changing:
            Journal(changing).end()
    finally:
        for section in ending:
            section._abandon()
            section._forget_value()
