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
    KEPT_MAX = 1024            # values; a power of two: a key's place follows from its hash
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

    cdef inline bint has(self, Map *map, const Found *found, uint32_t hash) noexcept:
        """Whether the value of an entry that was found just now is kept. Without a GIL another
        thread may replace it at once: get_if() finds out."""
        if FREE_THREADED:
            return True
        return self._has(map, found, hash)

    cdef object get_if(self, Map *map, const Found *found, uint32_t hash):
        """The value of an entry that was found just now; MISSING if it is not kept."""
        with cython.critical_section(self):
            return self.get(hash) if self._has(map, found, hash) else MISSING

    cdef inline bint _has(self, Map *map, const Found *found, uint32_t hash) noexcept:
        cdef KeptValue kept
        if unlikely(self.places is None or len(self.places) != KEPT_MAX):
            return False                       # the garbage collector has cleared it
        kept = <KeptValue> self.places[hash & (KEPT_MAX - 1)]
        return (kept.header == found.header and kept.element == found.index
                and self.releases == releases_of(map))

    cdef inline object get(self, uint32_t hash):
        return (<KeptValue> self.places[hash & (KEPT_MAX - 1)]).value

    cdef int keep(self, const Found *found, uint32_t hash, uint64_t releases, uint64_t size,
                  object value) except -1:
        """Keep a value that was decoded from an entry as it was found. releases: releases_of(),
        before it was found."""
        with cython.critical_section(self):
            return self._keep(found, hash, releases, size, value)

    cdef int _keep(self, const Found *found, uint32_t hash, uint64_t releases, uint64_t size,
                   object value) except -1:
        cdef KeptValue kept
        cdef uint64_t place = hash & (KEPT_MAX - 1)
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
        self.size += size - (<KeptValue> self.places[place]).size
        self.places[place] = kept
        return 0
