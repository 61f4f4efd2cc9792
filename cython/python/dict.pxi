# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# Part of _core.pyx: DictCore and CounterCore, the parts of SharedDict and SharedCounter that are in
# the core. Their methods are short, because the parts included before this one do the work.


@cython.auto_pickle(False)
cdef class DictCore(DictHandle):
    """The operations of a dict."""

    __class_getitem__ = classmethod(GenericAlias)

    @property
    def _default_ttl_ns(self):
        return self.default_ttl_ns

    # What the short ways leave over: methods, because a C compiler would inline functions, and keep
    # registers for them in each call.

    cdef object _search(self, object key, object default, bint missing_raises):
        """The value of a key; if it is absent, default, or what d[key] then gives."""
        cdef KeyBytes key_bytes
        kept = key_encode(self.handle, self.key, key, &key_bytes)
        found = self._get(&key_bytes)
        if found is not MISSING:
            return found
        if not missing_raises:
            return default
        missing = getattr(type(self), "__missing__", None)     # as in a subclass of dict
        if missing is not None:
            return missing(self, key)
        raise _errors.KeyNotFound(key)

    cdef int _store_any(self, object key, object value) except -1:
        if not (self.changes_quickly and store_quickly(self, key, value)):
            self._store(key, value, UPDATE_ANY, 0)
        return 0

    cdef int _delete(self, object key) except -1:
        cdef KeyBytes key_bytes
        cdef Status status
        if self.removes_quickly:
            status = remove_quickly(self, key)
            if likely(status == OK):
                return 0
            if status == ABSENT:
                raise _errors.KeyNotFound(key)
        kept = key_encode(self.handle, self.key, key, &key_bytes)
        if self._remove(&key_bytes, False) is MISSING:
            raise _errors.KeyNotFound(key)
        return 0

    def __getitem__(self, key):
        cdef uint64_t number = 0
        if self.quick and likely(get_quickly(self, key, &number)):
            return self._number(number)
        return self._search(key, None, True)

    def get(self, key, default=None):
        """Return the value of key, or default if key is absent.

        Takes no lock and never waits (R1). Expected O(1), and O(bytes of the value).

        Raises TypeError (the key is not of the dict's type), WriteOnlyMap, MapClosed.
        """
        cdef uint64_t number = 0
        if self.quick and likely(get_quickly(self, key, &number)):
            return self._number(number)
        return self._search(key, default, False)

    def __contains__(self, key):
        cdef KeyBytes key_bytes
        cdef uint64_t number = 0
        if self.quick and get_quickly(self, key, &number):
            return True
        try:
            kept = key_encode(self.handle, self.key, key, &key_bytes)
        except (TypeError, OverflowError, UnicodeError, _errors.TooLarge):
            hash(key)                          # as a dict: an unhashable key is an error
            return False
        return self._find_deadline(&key_bytes, &number) == OK and not deadline_passed(number)

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
        return view_of(self, key)

    def __setitem__(self, key, value):
        if unlikely(not overwrite_quickly(self, key, value)):
            self._store_any(key, value)

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

    def exchange(self, key, value, ttl=None):
        """Store a value and return the one that it replaced. ttl: as for set().

        Atomic (W1): each stored value is returned to one caller at most.

        Raises KeyNotFound (ENOENT: absent; nothing is stored), and what set() raises.
        """
        return exchange_value(self, key, value, ttl)

    def add(self, key, delta, default=None):
        """Add delta to the number under key; return the sum.

        If key is absent and default is given, default + delta is stored. For values that are int
        (64-bit, wrapping around) or float. Atomic (W1). Expected O(1).

        Raises KeyNotFound (ENOENT: absent, and default is None), TypeError (other values), and what
        d[key] = value raises.
        """
        cdef uint64_t after = 0
        if likely(count_quickly(self, key, delta, &after)):
            return <int64_t> after
        return add_to(self, key, delta, default)

    def min(self, key, number, default=None):
        """Replace the number under key by number if number is less; return the number stored.

        If key is absent and default is given, the less of default and number is stored. All else is
        as for add(); an int has to fit into 64 bits, and a NaN stays.

        Raises what add() raises.
        """
        return add_to(self, key, number, default, FIELD_MIN)

    def max(self, key, number, default=None):
        """Replace the number under key by number if number is greater; return the number stored.

        Arguments and errors are those of min().

        Raises what add() raises.
        """
        return add_to(self, key, number, default, FIELD_MAX)

    def __delitem__(self, key):
        self._delete(key)

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

    def popitem(self):
        """Delete some entry and return it as (key, value). Entries that cannot be decoded are
        skipped and stay.

        Raises KeyNotFound (ENOENT: the dict is empty), LockTimeout, ReadOnlyMap, MapClosed, and
        what decoding raises (no entry can be decoded).
        """
        return pop_any(self)

    # Deadlines.

    def ttl(self, key):
        """Return the seconds until an entry expires; None if it has no deadline.

        Raises KeyNotFound (ENOENT), TypeError, MapClosed.
        """
        return seconds_left(deadline_of(self, key))

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
        return touch_until(self, key, deadline_ns)

    def _deadline_ns(self, key):
        """The CLOCK_MONOTONIC time in ns at which an entry expires; 0: never.

        Raises KeyNotFound (ENOENT), TypeError, MapClosed.
        """
        return deadline_of(self, key)

    def _touch_until(self, key, int64_t deadline_ns):
        return touch_until(self, key, deadline_ns)

    def expire(self):
        """Delete every entry that has expired; return how many.

        Raises ReadOnlyMap, FrozenMap, MapClosed.
        """
        return expire_all(self.handle)

    # The dict as a whole.

    def __len__(self):
        return len(self.handle)

    def clear(self):
        """Delete every entry. Insertions of new keys wait until clear() has finished.

        Each deletion is atomic, the whole is not. If the process dies before the end, the process
        that recovers it deletes the remaining entries.

        Raises LockTimeout, ReadOnlyMap, MapClosed.
        """
        clear_map(self.handle)

    def _entries(self, int what, bint skipping=False):
        """An iterator over the keys (what: 0), values (1) or both (2).

        An entry that is present during the whole iteration is yielded exactly once, through every
        resize (I1). An entry that cannot be decoded raises, and the iterator then continues with
        the next entry; with skipping it is left out.

        Raises WriteOnlyMap, MapClosed, and what decoding raises.
        """
        return DictEntries(self, what, skipping)

    def _section(self, key, timeout, *default):
        """A LockedEntry of key, which on entry inserts the default, if given, for an absent key."""
        return LockedEntry(self, key, timeout, default[0] if default else NO_DEFAULT)

    def _raw_key(self, key):
        """The bytes under which the map below the dict stores a key."""
        cdef KeyBytes key_bytes
        kept = key_encode(self.handle, self.key, key, &key_bytes)
        return raw_key_of(self, &key_bytes)


@cython.auto_pickle(False)
cdef class CounterCore(DictCore):
    """What a counter adds to a dict."""

    def inc(self, key, by=1):
        """Add to the count of key, atomically (W1); return the sum.

        Raises TypeError (a key or a number of another type), MapFull, SegmentFull, LockTimeout.
        """
        cdef uint64_t after = 0
        if likely(count_quickly(self, key, by, &after)):
            return <int64_t> after
        return add_to(self, key, by, 0)
