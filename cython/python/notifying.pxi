# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# Part of _core.pyx: a descriptor that is readable when a key may have changed. listener.pxd
# describes the protocol; shmrhash/_awaiting.py gives the descriptor to an event loop.

cdef enum:
    SLICE_NS = 250000000       # a waiter looks by itself this often: a killed writer may not ring

cdef int64_t wait_slice_ns = SLICE_NS


def set_wait_slice(int64_t slice_ns):
    """For tests: set how long a waiter sleeps at most before it looks by itself; return how long it
    was before."""
    global wait_slice_ns
    before = wait_slice_ns
    wait_slice_ns = slice_ns
    return before


@cython.final
@cython.auto_pickle(False)
@cython.no_gc
cdef class Notifier:
    """The waits of one event loop, or of one Watch, in one map of this process.

    Attributes: alive, whether it still can tell: not in a child of fork, nor after the map's last
    handle is closed.
    """

    cdef Ear ear
    cdef uint64_t generation
    cdef readonly bint late        # moved() has told of all bells: a slice is over

    def __cinit__(self, MapHandle handle not None):
        cdef Op op
        self.ear.fd = -1
        expect_open(handle)
        self.generation = process_generation
        self.ear.fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)
        if self.ear.fd < 0:
            raise _errors.SystemFailure(f"map {handle.name!r}: eventfd: {os_error()}")
        begin_looking(handle, &op)             # an ear that is open is closed by attachment_retire
        self._open(&(<Attachment> handle.attachment).listener, handle)
        end_use(handle)

    cdef void _open(self, Listener *listener, MapHandle handle) noexcept:
        state_lock()
        listener_prepare(listener, &(<Attachment> handle.attachment).map, process_generation)
        ear_open(&self.ear, listener)
        state_unlock()

    def __dealloc__(self):
        self._close()

    cdef void _close(self) noexcept:
        state_lock()
        if self._alive():
            ear_close(&self.ear)
        self.ear.listener = NULL
        if self.ear.fd >= 0:
            close_fd(self.ear.fd)
            self.ear.fd = -1
        state_unlock()

    cdef bint _alive(self) noexcept:
        """As long as the caller has the state lock, it stays so."""
        return self.ear.listener != NULL and self.generation == process_generation

    cdef int _go_on(self) except -1:
        cdef int error = 0
        state_lock()
        if forks_under_way == 0 and self._alive():     # else the loops are told when it is over
            error = listener_go_on(self.ear.listener, wait_slice_ns)
        state_unlock()
        if error != 0:
            raise _errors.SystemFailure(
                f"a thread that listens for changes: {strerror(error).decode()}")
        return 0

    @property
    def alive(self):
        return bool(self._alive())

    def fileno(self):
        return self.ear.fd

    def moved(self):
        """Empty the descriptor. Returns the numbers of the bells whose keys are to be looked at."""
        cdef uint32_t at
        cdef uint64_t count
        cdef bint all_of_them
        cdef bint[BELL_COUNT] moved            # nothing of Python's under the mutex
        if self.ear.fd < 0 or self.generation != process_generation:
            return []                          # a child shares the descriptor with its parent
        state_lock()
        eventfd_read(self.ear.fd, &count)
        if not self._alive():
            state_unlock()
            return []
        pthread_mutex_lock(&self.ear.listener.mutex)
        all_of_them = self.ear.look_at_all or self.ear.listener.naps
        self.ear.look_at_all = False
        self.late = all_of_them
        for at in range(BELL_COUNT):
            moved[at] = ear_moved(&self.ear, at, all_of_them)
        pthread_mutex_unlock(&self.ear.listener.mutex)
        state_unlock()
        self._go_on()
        return [at for at in range(BELL_COUNT) if moved[at]]

    def close(self):
        """Close the descriptor."""
        self._close()


def notifier_key(MapHandle handle not None):
    """Equal for handles whose waits one Notifier can have."""
    return attachment_key(handle)


def listeners_stop():
    """Before a fork: end the threads that listen for changes."""
    cdef PyObject *at
    state_lock()
    at = attachments_first
    while at != NULL:                          # each attachment once
        listener_stop(&(<Attachment> at).listener, process_generation)
        at = (<Attachment> at).behind
    state_unlock()


def listeners_go_on():
    """In the parent, after a fork: tell all loops, which then see that there are threads again."""
    cdef PyObject *at
    state_lock()
    at = attachments_first
    while at != NULL:                          # each attachment once
        if (<Attachment> at).listener.generation == process_generation:
            ears_tell(&(<Attachment> at).listener, True)
        at = (<Attachment> at).behind
    state_unlock()
