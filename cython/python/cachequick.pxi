# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# Part of _core.pyx: the short ways of a cache's hits, as dictquick.pxi has them for a dict: each
# does what CacheCore._look would do, and counts a hit, or does nothing.

cdef bint cached_quickly(DictHandle owner, object key, uint64_t *number) noexcept:
    """Find a number under a short ASCII str or an int, by the path that nearly every lookup takes.
    False: it was not found, and the caller has to take the general path.

    The two kinds of keys are written out, as in get_quickly."""
    cdef Map *map = &owner.handle.map
    cdef Context *context
    cdef Found found
    cdef uint64_t words[2]
    cdef uint64_t deadline = 0
    cdef uint64_t idle = 0
    cdef uint32_t hash
    cdef bint hit
    if unlikely(owner.handle.reads == READS_NONE or map.read_only):
        return False
    if owner.key_kind == KEY_STR:
        if unlikely(not PyUnicode_CheckExact(key) or not text_digest(key, words)):
            return False
        context = read_begin(owner, &idle)
        if unlikely(context == NULL):
            return False
        hash = hash_key(map.seeds, <const uint8_t *> words, 16)
        hit = cached_find_first(map, hash, <const uint8_t *> words, 16, owner.value_word,
                                &found, number, &deadline)
    else:
        words[1] = 0
        if unlikely(not PyLong_CheckExact(key) or not int_word(key, words)):
            return False
        context = read_begin(owner, &idle)
        if unlikely(context == NULL):
            return False
        hash = hash_key(map.seeds, <const uint8_t *> words, 8)
        hit = cached_find_first(map, hash, <const uint8_t *> words, 8, owner.value_word,
                                &found, number, &deadline)
    if unlikely(not hit):
        hit = owner._cached_further(hash, words[0], words[1], &found, number, &deadline)
    hit = likely(hit) and not deadline_passed(deadline)
    if likely(hit):
        entry_used(map, found.element)
        count_hit(owner.handle)
    read_end(owner, context, idle)
    return hit


cdef object kept_quickly(DictHandle owner, KeptValues kept, object key):
    """A value that is kept, under a short ASCII str or an int, counted as a hit; or MISSING, and
    the caller has to take the general path."""
    cdef Map *map = &owner.handle.map
    cdef Context *context
    cdef Found found
    cdef uint64_t words[2]
    cdef uint64_t number = 0
    cdef uint64_t deadline = 0
    cdef uint64_t idle = 0
    cdef uint64_t size = 16 if owner.key_kind == KEY_STR else 8
    cdef uint32_t hash
    cdef Py_ssize_t place = -1
    words[1] = 0
    if FREE_THREADED or unlikely(
            owner.handle.reads == READS_NONE or map.read_only or map.tags_word != 0
            or not key_quickly(owner, key, words)):
        return MISSING
    context = read_begin(owner, &idle)
    if unlikely(context == NULL):
        return MISSING
    hash = hash_key(map.seeds, <const uint8_t *> words, size)
    if likely(cached_find_fast(map, hash, <const uint8_t *> words, size, owner.value_word, &found,
                               &number, &deadline)) and not deadline_passed(deadline):
        place = kept.place_of(map, &found, hash)
    if likely(place >= 0):
        entry_used(map, found.element)
        count_hit(owner.handle)
    read_end(owner, context, idle)
    return kept.value_at(place) if likely(place >= 0) else MISSING
