# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# Part of _core.pyx: walking over the entries of a dict; looking up single entries by the bytes of
# their keys; exchange(), pop() and popitem(), which return the value that they take away.

cdef enum:
    LOST_MAX = 20000           # found entries that popitem loses to other callers
    NOT_ASCII = 0x8080808080808080ULL
    KEYS_EVEN_EXPIRED = 3      # what entry_of() returns: the key, also of what has expired


cdef object key_of(DictHandle owner, bytes raw, const Found *found, const uint64_t *value, Op *op):
    """The key of a found entry; MISSING if the entry has changed since it was found."""
    cdef const uint8_t *source = <const uint8_t *> PyBytes_AS_STRING(raw)
    cdef uint64_t length = owner.handle.map.key_size
    cdef bytes whole
    if owner.key_slot != NO_SLOT:
        length = source[15]
        if length == KEY_IS_LONG:
            whole = object_copy(
                owner.handle, op, found, value[owner.handle.map.ref_words[owner.key_slot]])
            if whole is None:
                return MISSING
            return key_decode(
                owner.key, <const uint8_t *> PyBytes_AS_STRING(whole), PyBytes_GET_SIZE(whole))
        if unlikely(length > KEY_INLINE_MAX):
            raise_status(owner.handle, CORRUPT, NULL)
    return key_decode(owner.key, source, <Py_ssize_t> length)


cdef object key_of_bytes(DictHandle owner, bytes raw):
    """The key that the map stores as these bytes; None: they are not all of it."""
    cdef const uint8_t *source = <const uint8_t *> PyBytes_AS_STRING(raw)
    cdef uint64_t length = owner.handle.map.key_size
    if owner.key_slot != NO_SLOT:
        length = source[15]
        if length == KEY_IS_LONG:
            return None
        if unlikely(length > KEY_INLINE_MAX):
            raise_status(owner.handle, CORRUPT, NULL)
    return key_decode(owner.key, source, <Py_ssize_t> length)


cdef object entry_of(DictHandle owner, bytes raw, int what):
    """An entry's key (what: 0), value (1) or both (2); MISSING if it is gone or has expired. With
    KEYS_EVEN_EXPIRED the key, even if it has expired, as that of a computation has (claiming.pxi).
    """
    cdef uint64_t small[SPOT_WORDS]
    cdef uint64_t *value = NULL
    cdef KeyBytes key
    cdef Found found
    cdef Op op
    cdef Status status = OK
    cdef uint64_t rounds = 0
    cdef object result = MISSING
    cdef object name = None
    key.bytes = <const uint8_t *> PyBytes_AS_STRING(raw)
    room = owner._value_room(small, &value)
    owner._set_key(&op, &key)
    enter_to_read(owner.handle, &op)
    try:
        while status == OK and result is MISSING:
            status = owner._find(&op, &found, value)
            if status == OK and what != KEYS_EVEN_EXPIRED and (
                    entry_expired(&owner.handle.map, value)):
                status = ABSENT
            if status == OK:
                result = name = key_of(owner, raw, &found, value, &op) if what != 1 else None
            if status == OK and (what == 1 or what == 2) and result is not MISSING:
                result = owner._decode(&found, value, &op)    # copied: a walk would pin too many
            renew(owner.handle, &op)
            rounds += 1
            if rounds > READ_ROUNDS_MAX:       # no writers interfere this often
                status = CORRUPT
    finally:
        leave_reading(owner.handle, &op)
    if status != OK and status != ABSENT:
        raise_status(owner.handle, CORRUPT, NULL)
    return (name, result) if what == 2 and result is not MISSING else result


@cython.final
@cython.internal
@cython.auto_pickle(False)
cdef class DictEntries:
    """The iterator that _entries() returns. An entry that raises does not end it.

    Entries that are whole in the map, and that are decoded without calling Python, are made from
    what the walk has read ahead. The others are looked up by the key that the walk has read."""

    cdef DictHandle owner
    cdef EntryIterator walk
    cdef int what
    cdef bint skipping
    cdef bint ahead
    cdef PyObject *last_pair

    def __cinit__(self, DictHandle owner not None, int what, bint skipping):
        cdef Map *map = &owner.handle.map
        Py_INCREF(None)
        self.last_pair = <PyObject *> None
        self.owner = owner
        self.what = what
        self.skipping = skipping
        self.ahead = not skipping and map.timer_word == 0 and map.cache == NULL and (
            owner.key.kind <= KEY_STR) and (what == 0 or owner.value.kind <= VALUE_BOOL)
        self.walk = EntryIterator(
            owner.handle, "items" if self.ahead and what != 0 else "keys", True)

    def __dealloc__(self):
        Py_XDECREF(self.last_pair)

    def __iter__(self):
        return self

    cdef object _look_up(self):
        """The next entry as it is now; MISSING if its key is absent."""
        cdef MapHandle handle = self.owner.handle
        cdef uint64_t before = handle.writes
        raw = PyBytes_FromStringAndSize(
            <const char *> entry_key(self.walk, self.walk.at), <Py_ssize_t> handle.map.key_size)
        self.walk.at += 1
        found = entry_of(self.owner, raw, self.what)
        if self.walk.writes == before and handle.writes == before + 1:
            self.walk.writes += 1              # the one operation of this handle was the lookup
        return found

    def __next__(self):
        if FREE_THREADED:                      # see EntryIterator, of which this has its own
            with cython.critical_section(self):
                return self._next()
        return self._next()

    cdef inline object _next(self):
        cdef EntryIterator walk = self.walk
        while entry_is_ahead(walk):            # ends with the walk
            if self.ahead and likely(not entry_is_stale(walk)) and likely(
                    key_is_whole(self.owner, entry_key(walk, walk.at))):
                return decoded_ahead(self, self.owner, walk)
            try:
                found = self._look_up()
            except Exception as error:
                if not self.skipping or not decoding_failed(error):
                    raise
                continue
            if found is not MISSING:
                return found
        raise StopIteration


cdef inline bint key_is_whole(DictHandle owner, const uint8_t *raw) noexcept:
    """Whether the bytes that the map stores as a key are all of it."""
    return owner.key_slot == NO_SLOT or raw[15] <= KEY_INLINE_MAX


cdef inline PyObject *int_ahead(EntryIterator walk, Recycler *spare, int64_t number) noexcept:
    if unlikely(walk.collected):
        return new_int(number)
    return new_recycled_int(spare, number)


cdef inline PyObject *key_ahead(
        DictHandle owner, EntryIterator walk, const uint8_t *raw) except NULL:
    """key_decode for a key that is whole, as a new reference; a short ASCII str is made without
    decoding it."""
    cdef Py_ssize_t size
    if owner.key_kind == KEY_INT:
        return int_ahead(walk, &walk.spare_keys, <int64_t> read_u64(raw))
    size = <Py_ssize_t> owner.handle.map.key_size
    if owner.key_slot != NO_SLOT:
        size = raw[15]
        # One character: Python has an object for each, which decoding returns.
        if owner.key_kind == KEY_STR and likely(size >= 2) and likely(
                (read_u64(raw) | read_u64(raw + 8)) & NOT_ASCII == 0):
            if unlikely(walk.collected):
                return text_new(raw, size)
            return new_recycled_text(&walk.spare_keys, raw, size)
    name = key_decode(owner.key, raw, size)
    Py_INCREF(name)
    return <PyObject *> name


cdef inline PyObject *value_ahead(
        DictHandle owner, EntryIterator walk, const uint8_t *value) except NULL:
    """The value that is stored at this place, as a new reference."""
    if owner.value_kind == VALUE_INT:
        return int_ahead(walk, &walk.spare_values, <int64_t> read_u64(value))
    found = value_inline(owner.value, value)
    Py_INCREF(found)
    return <PyObject *> found


cdef inline object decoded_ahead(DictEntries self, DictHandle owner, EntryIterator walk):
    """The next entry, as the walk has read it. Nothing here runs Python until the copies exist."""
    cdef uint64_t at = walk.at
    cdef const uint8_t *raw = entry_key(walk, at)
    cdef PyObject *name
    walk.at = at + 1
    if self.what == 0:
        return object_taken(key_ahead(owner, walk, raw))
    found = object_taken(value_ahead(owner, walk, entry_value(walk, at) + owner.value_word * 8))
    if self.what == 1:
        return found
    name = key_ahead(owner, walk, raw)
    Py_INCREF(found)
    return recycled_pair(&self.last_pair, name, <PyObject *> found)


cdef bint decoding_failed(object error):
    """Whether an error comes from decoding one entry's bytes, and not from the map."""
    return isinstance(error, _errors.SegmentCorrupt) or not isinstance(
        error, (_errors.Error, MemoryError))


# For waiting (shmrhash/_handle.py). Of a cache, what cannot be decoded is absent, as for get().

cdef object entry_or_missing(DictHandle owner, bytes raw, int what):
    """entry_of() for a waiter."""
    try:
        return entry_of(owner, raw, what)
    except Exception as error:
        if owner.handle.map.cache == NULL or not decoding_failed(error):
            raise
        return MISSING


def entry_at(DictHandle owner not None, bytes raw not None):
    """The key and the value of the entry with these bytes of a key; None: it is absent."""
    found = entry_or_missing(owner, raw, 2)
    return None if found is MISSING else found


def value_at(DictHandle owner not None, key, default):
    """get() that of a cache neither counts nor keeps the entry from being evicted."""
    cdef KeyBytes key_bytes
    kept = key_encode(owner.handle, owner.key, key, &key_bytes)
    raw = PyBytes_FromStringAndSize(
        <const char *> key_bytes.bytes, <Py_ssize_t> owner.handle.map.key_size)
    found = entry_or_missing(owner, raw, 1)
    return default if found is MISSING else found


def key_at(DictHandle owner not None, bytes raw not None):
    """The key with these bytes; None: they are not all of it, or, of a cache, not those of a key
    (claiming.pxi: shadows)."""
    try:
        return key_of_bytes(owner, raw)
    except Exception as error:
        if owner.handle.map.cache == NULL or not decoding_failed(error):
            raise
        return None


def long_keys(DictHandle owner not None):
    """The keys of present entries that are longer than their bytes in the map, by these."""
    cdef dict found = {}
    if owner.key_slot != NO_SLOT:
        for raw in EntryIterator(owner.handle, "keys", True):
            if (<bytes> raw)[15] == KEY_IS_LONG:
                key = entry_or_missing(owner, raw, 0)
                if key is not MISSING:
                    found[bytes(raw)] = key
    return found


cdef object exchange_value(DictHandle owner, object key, object value, object ttl):
    cdef int64_t deadline_ns = owner._deadline_after(ttl)
    cdef LockedEntry section = LockedEntry(owner, key, None, NO_DEFAULT)
    section.__enter__()
    before = section.current
    section.value = value
    if owner.handle.map.timer_word != 0:
        if deadline_ns == 0:
            deadline_ns = deadline_in(owner.default_ttl_ns)
        section.words[owner.handle.map.timer_word - 1] = <uint64_t> deadline_ns
    section.__exit__(None, None, None)
    return before


cdef object pop_raw(DictHandle owner, bytes raw, KeyBytes *key):
    """Delete a key and return its value; MISSING if the key is absent. A value that is an
    object is decoded while the key is locked, and the entry stays if decoding raises."""
    cdef LockedEntry section
    cdef RawKey name
    if owner.value_slot == NO_SLOT:
        return owner._remove(key, True)
    name = RawKey.__new__(RawKey)
    name.raw = raw
    section = LockedEntry(owner, name, None, NO_DEFAULT)
    try:
        section.__enter__()
        found = section.current
        section.removing = True
        section.__exit__(None, None, None)
    except _errors.KeyNotFound:                # also KeyGone
        return MISSING
    return found


cdef object pop_any(DictHandle owner):
    cdef KeyBytes key_bytes
    cdef uint64_t when = 0
    cdef uint64_t lost = 0
    cdef uint64_t before
    while lost < LOST_MAX:                     # again if other callers took all that was found
        before = lost
        undecoded = None
        for raw in EntryIterator(owner.handle, "keys", True):
            key_bytes.bytes = <const uint8_t *> PyBytes_AS_STRING(raw)
            try:
                name = entry_of(owner, raw, 0)
                if name is MISSING and owner._find_deadline(&key_bytes, &when) == OK and (
                        deadline_passed(when)):
                    owner._expire_one(&key_bytes)
                    continue
                found = MISSING if name is MISSING else pop_raw(owner, raw, &key_bytes)
            except Exception as error:
                if not decoding_failed(error):
                    raise
                undecoded = undecoded or error
                continue
            if found is not MISSING:
                return name, found
            lost += 1
        if undecoded is not None:
            raise undecoded
        if lost == before or len(owner.handle) == 0:
            raise _errors.KeyNotFound("popitem(): the dict is empty")
    raise_status(owner.handle, CORRUPT, NULL)      # the walk finds keys that no lookup finds
