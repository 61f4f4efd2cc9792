# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# Part of _core.pyx: what makes entries of a cache outdated, by one store each (births.pxd), and the
# deletion of entries that cannot be decoded.

cdef enum:
    TAG_BITS = 16


cdef uint64_t tags_word(MapHandle handle, object tags) except? 0:
    """The word that says which tags an entry has. Raises InvalidArgument, TypeError."""
    cdef uint64_t word = 0
    cdef int count = 0
    if tags is None or (type(tags) is tuple and not tags):
        return 0
    if isinstance(tags, str):
        raise TypeError("tags are a tuple or list of str, such as ('user:1',), not a str")
    for tag in tags:
        word = word << TAG_BITS | tag_number(handle, tag)
        count += 1
        if count > ENTRY_TAGS_MAX:
            raise _errors.InvalidArgument(
                f"cache {handle.name!r}: an entry has at most {ENTRY_TAGS_MAX} tags, not more")
    return word


cdef uint64_t tag_number(MapHandle handle, object tag) except 0:
    """The slot of a tag. Raises InvalidArgument (the cache has no tags), TypeError."""
    if handle.map.tags_word == 0:
        raise _errors.InvalidArgument(
            f"cache {handle.name!r} was made without tags: create it with tags=True")
    if not isinstance(tag, str):
        raise TypeError(f"a tag is a str, not {type(tag).__name__}")
    # Not tag.encode(), which a subclass may have replaced.
    raw = PyUnicode_AsEncodedString(tag, "utf-8", "surrogatepass")
    return tag_slot(&handle.map, <const uint8_t *> PyBytes_AS_STRING(raw),
                    <uint64_t> PyBytes_GET_SIZE(raw))


cdef int invalidate_slot(MapHandle handle, uint64_t slot) except -1:
    """Make the entries with a tag outdated; 0: all entries."""
    cdef Map *map = &handle.map
    cdef Op op
    enter_to_write(handle, &op)                # its recovery rings the bells, if it dies here
    with nogil:
        invalidate(map, map.tag_words + slot if slot != 0 else &map.cache.cleared)
        # What a turn of sweeping may have seen is out of date; pairs with the fence in rest_claim.
        fence_seq_cst()
        store_relaxed_u64(&map.header.sweep_rest, 0)
        store_relaxed_u64(
            &map.header.sweep, load_relaxed_u64(&map.header.sweep) | SWEEP_FOUND)
        ring_lose(map)
        bells_ring_all(map)
    leave(handle, &op)
    return 0


cdef int remove_unreadable(DictHandle owner, KeyBytes *key, Found *found) except -1:
    """Delete an entry that could not be decoded, unless it has changed, and count it."""
    cdef MapHandle handle = owner.handle
    cdef Op op
    cdef Waiting waiting = new_waiting(handle)
    cdef Status status
    if load_relaxed_u64(&handle.map.header.frozen) != 0:
        return 0
    owner._begin(&op, key, &waiting)
    try:
        status = repeat(handle, &op, attempt_remove_found, found, &waiting)
        count_one(handle, COUNT_UNREADABLE)
    finally:
        leave(handle, &op)
    if status != OK and status != ABSENT:
        raise_status(handle, status, &op)
    return 0
