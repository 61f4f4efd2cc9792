# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# Part of _core.pyx: the iterators of a dict, and the operations that are sections of its keys.


cdef enum:
    LOST_MAX = 20000          # found entries that popitem loses to other callers


@cython.auto_pickle(False)
cdef class DictCore(DictKeys):
    """The iterators, the sections, and the operations that use these."""

    def _section(self, key, timeout, *default):
        """A DictSection of key, which on entry inserts the default, if given, for an absent key."""
        return DictSection(self, key, timeout, default[0] if default else NO_DEFAULT)

    def exchange(self, key, value, ttl=None):
        """Store a value and return the one that it replaced. ttl: as for set().

        Atomic (W1): each stored value is returned to one caller at most.

        Raises KeyNotFound (ENOENT: absent; nothing is stored), and what set() raises.
        """
        cdef int64_t deadline_ns = self._deadline_after(ttl)
        cdef DictSection section = DictSection(self, key, None, NO_DEFAULT)
        section.__enter__()
        before = section.current
        section.value = value
        if self.handle.map.timer_word != 0:
            if deadline_ns == 0:
                deadline_ns = deadline_in(self.default_ttl_ns)
            section.words[self.handle.map.timer_word - 1] = <uint64_t> deadline_ns
        section.__exit__(None, None, None)
        return before

    cdef object _entry(self, bytes raw, int what):
        """An entry's key (what: 0), value (1) or both (2); MISSING if it is gone or has expired."""
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
        room = self._value_room(small, &value)
        self._set_key(&op, &key)
        self.handle._enter_to_read(&op)
        try:
            while status == OK and result is MISSING:
                status = self._find(&op, &found, value)
                if status == OK and entry_expired(&self.handle.map, value):
                    status = ABSENT
                if status == OK:
                    result = name = self._key_of(raw, &found, value, &op) if what != 1 else None
                if status == OK and what != 0 and result is not MISSING:
                    result = self._take(&found, value, &op)    # copied: a walk would pin too many
                self.handle._renew(&op)
                rounds += 1
                if rounds > READ_ROUNDS_MAX:   # no writers interfere this often
                    status = CORRUPT
        finally:
            self.handle._leave_reading(&op)
        if status != OK and status != ABSENT:
            raise_status(self.handle, CORRUPT, NULL)
        return (name, result) if what == 2 and result is not MISSING else result

    cdef object _key_of(
            self, bytes raw, const Found *found, const uint64_t *value, Op *op):
        """The key of a found entry; MISSING if the entry has changed since it was found."""
        cdef const uint8_t *source = <const uint8_t *> PyBytes_AS_STRING(raw)
        cdef uint64_t length = self.handle.map.key_size
        cdef bytes whole
        if self.key_slot != NO_SLOT:
            length = source[15]
            if length == KEY_IS_LONG:
                whole = object_copy(
                    self.handle, op, found, value[self.handle.map.ref_words[self.key_slot]])
                if whole is None:
                    return MISSING
                return key_decode(
                    self.key, <const uint8_t *> PyBytes_AS_STRING(whole), PyBytes_GET_SIZE(whole))
        return key_decode(self.key, source, <Py_ssize_t> length)

    def _entries(self, int what, bint skipping=False):
        """An iterator over the keys (what: 0), values (1) or both (2).

        An entry that is present during the whole iteration is yielded exactly once, through every
        resize (I1). An entry that cannot be decoded raises, and the iterator then continues with
        the next entry; with skipping it is left out.

        Raises WriteOnlyMap, MapClosed, and what decoding raises.
        """
        return DictEntries(self, what, skipping)

    def expire(self):
        """Delete every entry that has expired; return how many.

        Raises ReadOnlyMap, FrozenMap, MapClosed.
        """
        return self.handle.expire()

    cdef object _pop_raw(self, bytes raw, KeyBytes *key):
        """Delete a key and return its value; MISSING if the key is absent. A value that is an
        object is decoded while the key is locked, and the entry stays if decoding raises."""
        cdef DictSection section
        cdef RawKey name
        if self.value_slot == NO_SLOT:
            return self._remove(key, True)
        name = RawKey.__new__(RawKey)
        name.raw = raw
        section = DictSection(self, name, None, NO_DEFAULT)
        try:
            section.__enter__()
            found = section.current
            section.removing = True
            section.__exit__(None, None, None)
        except _errors.KeyNotFound:            # also KeyGone
            return MISSING
        return found

    def popitem(self):
        """Delete some entry and return it as (key, value). Entries that cannot be decoded are
        skipped and stay.

        Raises KeyNotFound (ENOENT: the dict is empty), LockTimeout, ReadOnlyMap, MapClosed, and
        what decoding raises (no entry can be decoded).
        """
        cdef KeyBytes key_bytes
        cdef uint64_t when = 0
        cdef uint64_t lost = 0
        cdef uint64_t before
        while lost < LOST_MAX:                 # again if other callers took all that was found
            before = lost
            undecoded = None
            for raw in raw_keys(self.handle):
                key_bytes.bytes = <const uint8_t *> PyBytes_AS_STRING(raw)
                try:
                    name = self._entry(raw, 0)
                    if name is MISSING and self._find_deadline(&key_bytes, &when) == OK and (
                            deadline_passed(when)):
                        self._expire_one(&key_bytes)
                        continue
                    found = MISSING if name is MISSING else self._pop_raw(raw, &key_bytes)
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
            if lost == before or len(self) == 0:
                raise _errors.KeyNotFound("popitem(): the dict is empty")
        raise_status(self.handle, CORRUPT, NULL)      # the walk finds keys that no lookup finds


@cython.final
@cython.internal
@cython.auto_pickle(False)
cdef class DictEntries:
    """The iterator that _entries() returns. An entry that raises does not end it."""

    cdef DictCore owner
    cdef object raws
    cdef int what
    cdef bint skipping

    def __cinit__(self, DictCore owner not None, int what, bint skipping):
        self.owner = owner
        self.raws = raw_keys(owner.handle)
        self.what = what
        self.skipping = skipping

    def __iter__(self):
        return self

    def __next__(self):
        for raw in self.raws:                  # ends with the walk
            try:
                found = self.owner._entry(raw, self.what)
            except Exception as error:
                if not self.skipping or not decoding_failed(error):
                    raise
                continue
            if found is not MISSING:
                return found
        raise StopIteration


cdef bint decoding_failed(object error):
    """Whether an error comes from decoding one entry's bytes, and not from the map."""
    return isinstance(error, _errors.SegmentCorrupt) or not isinstance(
        error, (_errors.Error, MemoryError))
