# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# Part of _core.pyx: MemoCore, the part of a memoized function that is in the core: a hit. The key
# of a call with plain arguments is made here, as shmrhash/_memoize.py makes it; whatever else a
# call needs is done there.


@cython.auto_pickle(False)
@cython.no_gc_clear                # a destructor may call the function to the end
cdef class MemoCore:
    """A function whose results are in a cache, for calls that find theirs."""

    cdef CacheCore cache
    cdef object slowly         # what a call calls that is no hit here
    # Of a result that is an exception, in its attribute error. It is not kept decoded: raising an
    # exception adds to its traceback, and code that catches it may add to it, too.
    cdef object error_type
    cdef bytes head            # the encoded key, up to the arguments; empty: slowly() does it all
    cdef bint keeps

    def __cinit__(self, CacheCore cache not None, slowly, error_type, bytes head not None,
                  bint keeps):
        self.cache = cache
        self.slowly = slowly
        self.error_type = error_type
        self.head = head if cache.key.plain and len(head) < PLAIN_ROOM - 4 else b""
        self.keeps = keeps
        cache.never_kept = error_type
        if keeps:
            cache._begin_keeping()

    def __call__(self, *args, **kwargs):
        if likely(not kwargs):
            found = self._hit(args)
            if likely(found is not MISSING):
                if unlikely(type(found) is self.error_type):
                    raise found.error
                return found
        return self.slowly(*args, **kwargs)

    cdef object _hit(self, tuple args):
        """The result of a call with these arguments, counted as a hit; or MISSING."""
        cdef uint8_t room[PLAIN_ROOM]
        cdef Py_ssize_t size = PyBytes_GET_SIZE(self.head)
        cdef Py_ssize_t item
        cdef KeyBytes key
        cdef Span span
        if size == 0 or self.cache.traced:
            return MISSING
        memcpy(room, PyBytes_AS_STRING(self.head), <size_t> size)
        item = plain_key(args, room + size + 1, PLAIN_ROOM - size - 3, PLAIN_DEPTH)
        if item < 0:
            return MISSING
        room[size] = <uint8_t> item
        size += 1 + item
        room[size] = 1                         # no arguments by name: an empty tuple
        room[size + 1] = c't'
        span.bytes = room
        span.size = size + 2
        key_digested(self.cache.handle, &key, span)
        return self._counted(&key)

    cdef object _counted(self, KeyBytes *key):
        found = self.cache._find_value(key, self.keeps)
        if found is not MISSING:
            count_one(self.cache.handle, COUNT_HITS)
        return found

    def hit(self, tuple args not None, default):
        """The result of a call with these arguments, counted as a hit; or default."""
        found = self._hit(args)
        return default if found is MISSING else found

    def hit_of(self, key, default):
        """The result under a key, counted as a hit; or default."""
        cdef KeyBytes key_bytes
        if self.cache.traced:
            return default
        kept = key_encode(self.cache.handle, self.cache.key, key, &key_bytes)
        found = self._counted(&key_bytes)
        return default if found is MISSING else found
