# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# Part of _core.pyx: values that a handle of a cache keeps decoded (copy=False), so that a hit only
# has to find out that the entry is the same.
#
# A header has a version, which every change raises (layout.pxd). So an entry that is found by its
# key, in the same element, under the same header of a LIVE element, has the value that was decoded:
# an operation that replaced, deleted, touched or evicted it would have changed the header.
# Deadlines are checked at each hit.
#
# Versions begin again if the memory of the element's block was given back. Before that, the
# releaser counts in pool.releases (pool.pxd). That count is read before an entry is found whose
# value is kept, and after one is found whose value is kept already: its header was loaded with
# acquire, from a store that came after the block was taken into use again, and so after the count.
# If it has risen, none of the kept values is used any more.

cdef enum:
    KEPT_MAX = 4096            # values; a power of two: a key's places follow from its hash
    # Places of a key, the newest value first. Of 1,000 keys that are read in turn 19 find no place
    # for their values; with one place for each of 1,024 hashes 626 found none.
    KEPT_WAYS = 4
    KEPT_BYTES_MAX = 16777216  # of all their encodings; a longer one is not kept


@cython.final
@cython.internal
@cython.auto_pickle(False)
cdef class KeptValue:
    cdef object value
    cdef uint64_t header       # 0: there is none
    cdef uint64_t element
    cdef uint64_t size

cdef KeptValue NOTHING_KEPT = KeptValue.__new__(KeptValue)


cdef inline Py_ssize_t first_place(uint32_t hash) noexcept nogil:
    return <Py_ssize_t> (hash & (KEPT_MAX // KEPT_WAYS - 1)) * KEPT_WAYS


cdef inline uint64_t releases_of(Map *map) noexcept nogil:
    return load_acquire_u64(&map.element_pool.shared.releases)


@cython.final
@cython.internal
@cython.auto_pickle(False)
cdef class KeptValues:
    """The values that one handle keeps. Changed under the GIL alone, or in a critical section."""

    cdef list places           # of KeptValue
    cdef uint64_t size         # of all encodings
    cdef uint64_t releases     # the count, before any of them was found

    def __cinit__(self):
        self._drop()

    cdef int _drop(self) except -1:
        old = self.places                      # whose values may have destructors: they go last
        self.places = [NOTHING_KEPT] * KEPT_MAX
        self.size = 0
        return 0

    cdef inline Py_ssize_t place_of(
            self, Map *map, const Found *found, uint32_t hash) noexcept:
        """Where the value of an entry is that was found just now; -1: it is not kept. Without a GIL
        another thread may replace it at once: get_if() finds out."""
        if FREE_THREADED:
            return 0
        return self._place_of(map, found, hash)

    cdef object get_if(self, Map *map, const Found *found, uint32_t hash):
        """The value of an entry that was found just now; MISSING if it is not kept."""
        cdef Py_ssize_t place
        with cython.critical_section(self):
            place = self._place_of(map, found, hash)
            return self.value_at(place) if place >= 0 else MISSING

    cdef inline Py_ssize_t _place_of(
            self, Map *map, const Found *found, uint32_t hash) noexcept:
        cdef KeptValue kept
        cdef Py_ssize_t place = first_place(hash)
        cdef int _
        if unlikely(self.places is None or len(self.places) != KEPT_MAX):
            return -1                          # the garbage collector has cleared it
        if unlikely(self.releases != releases_of(map)):
            return -1
        for _ in range(KEPT_WAYS):
            kept = <KeptValue> self.places[place]
            if kept.header == found.header and kept.element == found.index:
                return place
            place += 1
        return -1

    cdef inline object value_at(self, Py_ssize_t place):
        return (<KeptValue> self.places[place]).value

    cdef int keep(self, const Found *found, uint32_t hash, uint64_t releases, uint64_t size,
                  object value) except -1:
        """Keep a value that was decoded from an entry as it was found. releases: releases_of(),
        before it was found."""
        with cython.critical_section(self):
            return self._keep(found, hash, releases, size, value)

    cdef int _keep(self, const Found *found, uint32_t hash, uint64_t releases, uint64_t size,
                   object value) except -1:
        cdef KeptValue kept, other
        cdef Py_ssize_t first = first_place(hash)
        cdef Py_ssize_t place = first
        if element_state(found.header) != ELEMENT_LIVE or size > KEPT_BYTES_MAX:
            return 0
        if self.places is None or len(self.places) != KEPT_MAX:
            return 0
        if releases != self.releases or self.size + size > KEPT_BYTES_MAX:
            self._drop()
            self.releases = releases
        kept = KeptValue.__new__(KeptValue)
        kept.value = value
        kept.header = found.header
        kept.element = found.index
        kept.size = size
        # It goes first, and what stood there one place on, up to the place of an older value of the
        # same element or, if there is none, the last place, whose value goes.
        while place < first + KEPT_WAYS - 1 and (
                (<KeptValue> self.places[place]).element != found.index):
            place += 1
        other = <KeptValue> self.places[place]
        self.size += size - other.size
        while place > first:
            self.places[place] = self.places[place - 1]
            place -= 1
        self.places[first] = kept
        return 0
