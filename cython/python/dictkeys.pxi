# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# Part of _core.pyx: the operations of a dict on one key, as Python sees them.

@cython.auto_pickle(False)
cdef class DictKeys(DictBase):
    """The operations on one key. SharedDict adds the conveniences."""

    cdef object _remove(self, KeyBytes *key, bint wanted):
        """Delete a key; return its value if wanted, else None; MISSING if the key is absent."""
        cdef uint64_t small[SPOT_WORDS]
        cdef uint64_t *value = NULL
        cdef Op op
        cdef Status status = RETRY
        cdef Waiting patience = self.handle._patience()
        cdef object result = None
        room = self._value_room(small, &value)
        self._begin(&op, key, &patience)
        try:
            if wanted:
                op.options |= OP_KEEP_ELEMENT
            while True:                        # ends with the timeout
                status = map_delete(&op, value)
                if status != RETRY and status != BUSY:
                    break
                self.handle._wait(&op, status, &patience)
            if status == OK and entry_expired(&self.handle.map, value):
                status = ABSENT
            if status == OK and wanted:
                result = self._take(NULL, value, &op)
        finally:
            op.options = OP_RAW_FIELDS
            if op.generation == process_generation:
                op_give_back(&op)
            self.handle._leave(&op)
        if status == ABSENT:
            return MISSING
        if status != OK:
            raise_status(self.handle, status, &op)
        return result

    def __getitem__(self, key):
        cdef KeyBytes key_bytes
        cdef uint64_t number = 0
        if self.quick and likely(self._get_fast(key, &number)):
            return self._number(number)
        kept = key_encode(self.handle, self.key, key, &key_bytes)
        found = self._get(&key_bytes)
        if found is MISSING:
            missing = getattr(type(self), "__missing__", None)     # as in a subclass of dict
            if missing is not None:
                return missing(self, key)
            raise _errors.KeyNotFound(key)
        return found

    def get(self, key, default=None):
        """Return the value of key, or default if key is absent.

        Takes no lock and never waits (R1). Expected O(1), and O(bytes of the value).

        Raises TypeError (the key is not of the dict's type), WriteOnlyMap, MapClosed.
        """
        cdef KeyBytes key_bytes
        cdef uint64_t number = 0
        if self.quick and self._get_fast(key, &number):
            return self._number(number)
        kept = key_encode(self.handle, self.key, key, &key_bytes)
        found = self._get(&key_bytes)
        return default if found is MISSING else found

    def __contains__(self, key):
        cdef KeyBytes key_bytes
        cdef uint64_t number = 0
        if self.quick and self._get_fast(key, &number):
            return True
        try:
            kept = key_encode(self.handle, self.key, key, &key_bytes)
        except (TypeError, OverflowError, UnicodeError, _errors.TooLarge):
            hash(key)                          # as a dict: an unhashable key is an error
            return False
        return self._find_deadline(&key_bytes, &number) == OK and not deadline_passed(number)

    def __setitem__(self, key, value):
        self._store(key, value, UPDATE_ANY, 0)

    def __delitem__(self, key):
        cdef KeyBytes key_bytes
        kept = key_encode(self.handle, self.key, key, &key_bytes)
        if self._remove(&key_bytes, False) is MISSING:
            raise _errors.KeyNotFound(key)

    def __len__(self):
        return len(self.handle)

    def set(self, key, value, ttl=None):
        """Store a value that expires after ttl seconds. None: the dict's default; inf: never.

        Atomic (W1), whatever the value's size. Expected O(1), and O(bytes of the value).

        Raises InvalidArgument (the dict was created without ttl), and what d[key] = value raises.
        """
        self._store(key, value, UPDATE_ANY, self._deadline_after(ttl))

    def _put(self, key, value, uint32_t flags=0, int64_t deadline_ns=0):
        """Store a value; return whether it was stored, which BPF_NOEXIST and BPF_EXIST may forbid.

        deadline_ns: the CLOCK_MONOTONIC time at which the entry expires; 0: after the dict's
        default, or never if it has none.
        Atomic (W1), whatever the value's size. Expected O(1), and O(bytes of the value).

        Raises MapFull, SegmentFull and OutOfMemory (nothing was stored),
        LockTimeout, TypeError and OverflowError (the key or value is not of the dict's type),
        ReadOnlyMap, MapClosed.
        """
        if flags > UPDATE_EXIST:
            raise _errors.InvalidArgument(
                f"flags {flags} are not valid: BPF_ANY, BPF_NOEXIST or BPF_EXIST")
        return self._store(key, value, flags, deadline_ns) == OK

    def setdefault(self, key, default=None, ttl=None):
        """Return the value of key; if key is absent, store default and return it. ttl: as for
        set(); it applies only to an entry that this call inserts.

        Atomic (W1): of several concurrent callers one stores its default, and all return that one.

        Raises what set() raises.
        """
        cdef uint64_t _rounds
        cdef int64_t deadline_ns = self._deadline_after(ttl)
        for _rounds in range(READ_ROUNDS_MAX):         # again if another caller stored the key
            found = self.get(key, MISSING)
            if found is not MISSING:
                return found
            if self._store(key, default, UPDATE_NOEXIST, deadline_ns) == OK:
                return default
        raise_status(self.handle, CORRUPT, NULL)

    def pop(self, key, *default):
        """Delete key and return its value; if key is absent, return default.

        Atomic (W1): no other caller gets the same value. A value that cannot be decoded is deleted
        all the same.

        Raises KeyNotFound (ENOENT: absent, and no default), LockTimeout, TypeError, ReadOnlyMap,
        MapClosed.
        """
        cdef KeyBytes key_bytes
        if len(default) > 1:
            raise TypeError(f"pop takes a key and a default, not {1 + len(default)} arguments")
        kept = key_encode(self.handle, self.key, key, &key_bytes)
        found = self._remove(&key_bytes, True)
        if found is not MISSING:
            return found
        if default:
            return default[0]
        raise _errors.KeyNotFound(key)

    def ttl(self, key):
        """Return the seconds until an entry expires; None if it has no deadline.

        Raises KeyNotFound (ENOENT), TypeError, MapClosed.
        """
        cdef uint64_t when = self._deadline_ns(key)
        cdef int64_t left
        if when == 0 or when == <uint64_t> _arguments.NEVER_NS:
            return None
        left = <int64_t> when - clock_ns(CLOCK_MONOTONIC)
        return left / 1e9 if left > 0 else 0.0

    def _deadline_ns(self, key):
        """The CLOCK_MONOTONIC time in ns at which an entry expires; 0: never.

        Raises KeyNotFound (ENOENT), TypeError, MapClosed.
        """
        cdef KeyBytes key_bytes
        cdef uint64_t when = 0
        kept = key_encode(self.handle, self.key, key, &key_bytes)
        if self._find_deadline(&key_bytes, &when) != OK or deadline_passed(when):
            raise _errors.KeyNotFound(key)
        return when

    def _raw_key(self, key):
        """The bytes under which the map below the dict stores a key."""
        cdef KeyBytes key_bytes
        kept = key_encode(self.handle, self.key, key, &key_bytes)
        return PyBytes_FromStringAndSize(
            <const char *> key_bytes.bytes, <Py_ssize_t> self.handle.map.key_size)

    def touch(self, key, ttl=None):
        """Make an entry expire ttl seconds from now; return False if key is absent.

        ttl: None is the dict's default, inf is never.

        Raises InvalidArgument (the dict was created without ttl), LockTimeout, TypeError,
        ReadOnlyMap, MapClosed.
        """
        cdef int64_t deadline_ns = self._deadline_after(ttl)
        if self.handle.map.timer_word == 0:
            self._refuse_ttl()
        if deadline_ns == 0:
            deadline_ns = deadline_in(self.default_ttl_ns)
        return self._touch_until(key, deadline_ns)

    def _touch_until(self, key, int64_t deadline_ns):
        cdef KeyBytes key_bytes
        cdef uint64_t small[SPOT_WORDS]
        cdef uint64_t *value = NULL
        cdef Op op
        cdef Status status = RETRY
        cdef Waiting patience = self.handle._patience()
        kept = key_encode(self.handle, self.key, key, &key_bytes)
        room = self._value_room(small, &value)
        self._begin(&op, &key_bytes, &patience)
        try:
            while True:                        # ends with the timeout
                status = entry_touch(&op, <uint64_t> deadline_ns, value)
                if status != RETRY and status != BUSY:
                    break
                self.handle._wait(&op, status, &patience)
        finally:
            self.handle._leave(&op)
        if status != OK and status != ABSENT:
            raise_status(self.handle, status, &op)
        return status == OK

    def clear(self):
        """Delete every entry. Insertions of new keys wait until clear() has finished.

        Each deletion is atomic, the whole is not. If the process dies before the end, the process
        that recovers it deletes the remaining entries.

        Raises LockTimeout, ReadOnlyMap, MapClosed.
        """
        self.handle.clear()

    def add(self, key, delta, default=None):
        """Add delta to the number under key; return the sum.

        If key is absent and default is given, default + delta is stored. For values that are int
        (64-bit, wrapping around) or float. Atomic (W1). Expected O(1).

        Raises KeyNotFound (ENOENT: absent, and default is None), TypeError (other values), and what
        d[key] = value raises.
        """
        cdef KeyBytes key_bytes
        cdef Op op
        cdef Apply apply
        cdef Status status = RETRY
        cdef uint64_t after = 0
        cdef Waiting patience = self.handle._patience()
        cdef bytearray fresh = None
        if self.value.kind != C_VALUE_INT and self.value.kind != C_VALUE_FLOAT:
            raise TypeError("add is for values that are int or float")
        kept = key_encode(self.handle, self.key, key, &key_bytes)
        self._field(&apply, delta)
        if default is not None:
            fresh = bytearray(self.handle.map.value_words * 8)
            after = field_compute(&apply.field, field_bits(&apply.field, default))
            memcpy(PyByteArray_AS_STRING(fresh) + apply.field.offset, &after, 8)
            apply.initial = <uint8_t *> PyByteArray_AS_STRING(fresh)
            if self.handle.map.timer_word != 0:
                (<uint64_t *> apply.initial)[self.handle.map.timer_word - 1] = <uint64_t> (
                    deadline_in(self.default_ttl_ns))
        self._begin(&op, &key_bytes, &patience)
        try:
            while True:                        # ends with the timeout
                status = self._attempt_add(&op, &key_bytes, &apply)
                if is_final(status) and not self.handle._recovered_room(status, &op, &patience):
                    break
                self.handle._wait(&op, status, &patience)
        finally:
            self.handle._leave(&op)
        if status == ABSENT:
            raise _errors.KeyNotFound(key)
        if status != OK:
            raise_status(self.handle, status, &op)
        return field_number(&apply.field, apply.after)

    cdef int _field(self, Apply *apply, object delta) except -1:
        """Describe the addition: the field of the value that holds the number, and the operand."""
        apply.field.offset = self.value_word * 8
        apply.field.size = 8
        apply.field.operation = FIELD_ADD
        apply.field.kind = FIELD_SIGNED if self.value.kind == C_VALUE_INT else FIELD_FLOAT
        if self.value.kind == C_VALUE_INT:
            self.value._integer(delta)         # raises if it has more than 64 signed bits
        apply.field.operand = field_bits(&apply.field, delta)
        apply.initial = NULL
        return 0

    cdef Status _attempt_add(self, Op *op, KeyBytes *key, Apply *apply) noexcept nogil:
        cdef Status status
        if self.handle.map.timer_word != 0:
            status = self._attempt_expire(op)
            if status == BUSY or status == RETRY or status == CORRUPT:
                return status
        if key.is_long and apply.initial != NULL:
            status = object_make(op, self.key_slot, key.whole, key.length)
            if status != OK:
                return status
        return map_apply(op, &apply.field, apply.initial, &apply.after)

    def view(self, key):
        """Return a read-only memoryview of a value's bytes in the segment, without copying them.

        The bytes neither change nor are freed while the memoryview exists, whatever happens to the
        key; if the process dies, its views no longer keep them. A child of os.fork() keeps the
        bytes for itself, whatever its parent does. Costs about as much as a lookup, at any size.
        While the handle has 1,024 views, or the map 65,536, the memoryview is of a copy instead.

        Raises KeyNotFound (ENOENT), InvalidArgument (values that are stored in the entry),
        ReadOnlyMap (a read-only handle cannot keep other processes from reusing the memory),
        TypeError, MapClosed.
        """
        cdef KeyBytes key_bytes
        cdef uint64_t small[SPOT_WORDS]
        cdef uint64_t *value = NULL
        cdef Found found
        cdef Op op
        cdef Status status = OK
        cdef uint64_t rounds = 0
        cdef object pinned = None
        if self.value_slot == NO_SLOT:
            raise _errors.InvalidArgument(
                "views are for values stored as objects (bytes, str, ...), not in the entry")
        self.handle._expect_writable()
        kept = key_encode(self.handle, self.key, key, &key_bytes)
        room = self._value_room(small, &value)
        self._set_key(&op, &key_bytes)
        self.handle._enter_to_read(&op)
        try:
            op_give_back(&op)
            while status == OK and pinned is None:     # again if the entry changed during the turn
                status = self._find(&op, &found, value)
                if status == OK and entry_expired(&self.handle.map, value):
                    status = ABSENT
                if status == OK:
                    pinned = pinned_object(
                        self.handle, &op, &found,
                        value[self.handle.map.ref_words[self.value_slot]])
                rounds += 1
                if rounds > READ_ROUNDS_MAX:   # no writers interfere this often
                    status = CORRUPT
        finally:
            self.handle._leave_reading(&op)
        if status == ABSENT:
            raise _errors.KeyNotFound(key)
        if status != OK:
            raise_status(self.handle, status, NULL)
        return memoryview(pinned)
