# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# Part of _core.pyx: the state of a handle. Operations are functions of a handle, in the parts
# that follow; MapCore (map.pxi) offers them to Python as methods.

cdef enum Reads:               # what a handle may read
    READS_NONE                 # nothing: it is closed or write-only
    READS_ANY
    READS_WORDS                # anything, and the map is words_only

# How long an operation has waited, and how long it may.
cdef struct Waiting:
    uint64_t turn
    uint64_t retries           # in a row, none of them BUSY
    uint64_t swept, sweep_at, sweep_next       # of a sweep for room (sweeping.pxi)
    uint64_t evictions, found_none             # calls of evict_for_room; those in vain, in a row
    uint64_t passed_on         # the section in the way when this waiter woke the next one
    int64_t began
    int64_t limit_ns           # negative: no limit


@cython.internal
@cython.auto_pickle(False)
cdef class MapHandle:
    """The state of a handle, the object through which a process uses a map. MapCore attaches it."""

    cdef Map map
    cdef PyObject *attachment      # a counted reference, untyped: so this class needs no cyclic GC
    cdef Standing *standing        # the attachment's
    cdef bint is_user              # counted in attachment.users
    cdef readonly str name
    cdef bint closed_flag          # see is_closed
    cdef bint is_retired           # see attachment_retire
    cdef readonly bint write_only
    cdef Reads reads
    cdef bint writes_oddly         # it may not write, is a space's, or membarrier is refused
    cdef bint overwrites_flag      # see overwrites
    cdef Recycler recycler
    cdef Recycler numbers          # the ints that were returned last
    cdef uint64_t in_flight        # operations of this generation under way: the mapping stays
    cdef uint64_t generation       # the generation that in_flight counts
    cdef uint64_t inherited        # operations of earlier generations: some may still return here
    cdef uint64_t views            # objects that point into the mapping
    cdef uint64_t writes           # operations begun that may have written; iterators compare it
    cdef readonly uint32_t map_flags
    cdef readonly uint32_t map_extra
    cdef readonly bint ephemeral
    cdef readonly uint64_t recovered_at_open
    cdef object __weakref__
    cdef uint64_t pins_held        # by living views of this handle
    cdef uint64_t views_copied     # values that are copies for want of a pin

    def __cinit__(self, *_ignored, **_named):
        recycler_begin(&self.recycler)
        recycler_begin(&self.numbers)
        flag_store(&self.closed_flag, True)
        self.map.fd = -1

    def __dealloc__(self):
        free(self.map.path)
        recycler_end(&self.recycler)
        recycler_end(&self.numbers)


cdef inline bint is_closed(MapHandle handle) noexcept:
    """Whether close() was called, or the handle was never opened."""
    return flag_load(&handle.closed_flag)


cdef inline bint overwrites(MapHandle handle) noexcept:
    """A hint: the last update found its key, so the next one tries store_word."""
    return flag_load(&handle.overwrites_flag)


cdef int expect_open(MapHandle handle) except -1:
    if is_closed(handle):
        what = "space" if handle.map.is_space else "map"
        raise _errors.MapClosed(f"{what} {handle.name!r} is closed")
    return 0


cdef int expect_writable(MapHandle handle) except -1:
    """Raise ReadOnlyMap if the handle may only read."""
    if handle.map.read_only:
        raise _errors.ReadOnlyMap(
            f"map {handle.name!r} is open for reading only; open it without read_only=True")
    return 0


cdef int refuse_reading(MapHandle handle) except -1:
    expect_open(handle)
    raise _errors.WriteOnlyMap(f"map {handle.name!r} is open for writing only")


cdef int64_t timeout_ns(timeout) except? -2:
    """Seconds as nanoseconds; -1 for None, and for more than 30 years."""
    if timeout is None:
        return -1
    if isinstance(timeout, bool) or not (
            hasattr(timeout, "__float__") or hasattr(timeout, "__index__")):
        raise TypeError(f"timeout is seconds or None, not {type(timeout).__name__}")
    seconds = float(timeout)
    if not seconds >= 0:
        raise _errors.InvalidArgument(
            f"timeout must be None or a number of seconds from 0 on, not {timeout!r}")
    return -1 if seconds > 1e9 else <int64_t> (seconds * 1e9)


def deadline_after(timeout):
    """The deadline of a wait that begins now, on the clock CLOCK_MONOTONIC in ns; -1: none.

    Raises TypeError (not a number), InvalidArgument (negative, or NaN).
    """
    cdef int64_t lasts = timeout_ns(timeout)
    return lasts if lasts < 0 else clock_ns(CLOCK_MONOTONIC) + lasts
