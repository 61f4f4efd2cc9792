# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# Part of _core.pyx: CacheCore, the part of Cache that is in the core. A cache has the layout of a
# dict, so it stores and deletes like one (dicthandle.pxi); where a dict would be full, it evicts
# entries (evicting.pxi). It has lookups of its own, which mark the entries that they find, count
# hits and misses, and treat values that cannot be decoded as absent.


@cython.auto_pickle(False)
cdef class CacheCore(DictHandle):
    """The operations of a cache."""

    cdef bint keeps            # values that get() and get_or_compute() have decoded
    cdef KeptValues kept       # of this handle; None until something is to be kept
    cdef bint finds_kept       # by kept_quickly: keys of these kinds
    cdef object never_kept     # a type of values that change when they are used
    cdef bint traced           # every lookup has to be seen by Python

    __class_getitem__ = classmethod(GenericAlias)

    def __init__(self, MapHandle handle not None, key, value, int64_t default_ttl_ns=0,
                 uint64_t value_bytes_max=0, bint copy=True):
        DictHandle.__init__(self, handle, key, value, default_ttl_ns)
        if handle.map.cache == NULL or handle.map.birth_word == 0 or (
                handle.map.birth_word != handle.map.timer_word + 1):
            raise _errors.LayoutMismatch(f"segment {handle.name!r} is not a cache")
        self.quick = self.quick and handle.map.tags_word == 0
        if value_bytes_max != 0 and value_bytes_max < self.value_bytes_max:
            self.value_bytes_max = value_bytes_max
        self.keeps = not copy
        self.finds_kept = self.keeps and self.key_kind in (KEY_STR, KEY_INT)
        if self.keeps:
            self._begin_keeping()

    cdef int _begin_keeping(self) except -1:
        # Numbers are made anew as quickly; views of arrays keep memory from being evicted.
        with cython.critical_section(self):
            if self.kept is None and self.value.kind in (
                    VALUE_FIXED, VALUE_BYTES, VALUE_STR, VALUE_ENCODED):
                self.kept = KeptValues()
        return 0

    cdef object _find_value(self, KeyBytes *key, bint keeps):
        """The value of a key, which may be one that is kept; or MISSING."""
        cdef Map *map = &self.handle.map
        cdef Context *context
        cdef Found found
        cdef uint64_t number = 0
        cdef uint64_t deadline = 0
        cdef uint64_t idle = 0
        cdef uint32_t hash
        cdef bint is_number = self.value.kind == VALUE_INT or self.value.kind == VALUE_FLOAT
        cdef Py_ssize_t place = 0
        cdef bint hit
        keeps = keeps and self.kept is not None
        if (keeps or is_number) and likely(
                self.handle.reads != READS_NONE and not map.read_only and map.tags_word == 0):
            idle = context_lent(self.handle) if FREE_THREADED else map.local.idle_context
        if idle == 0:
            return self._look(key, keeps)
        context = context_at(map, idle - 1)
        context_begin(context)
        hash = hash_key(map.seeds, key.bytes, map.key_size)
        hit = cached_find_fast(
            map, hash, key.bytes, map.key_size, self.value_word, &found, &number, &deadline)
        if hit and not is_number:
            place = self.kept.place_of(map, &found, hash)
        hit = hit and place >= 0 and not deadline_passed(deadline)
        if hit:
            entry_used(map, found.element)
        context_end(context)
        if FREE_THREADED:
            context_returned(self.handle, idle)
        if hit and FREE_THREADED and not is_number:
            value = self.kept.get_if(map, &found, hash)
            if value is not MISSING:
                return value
        elif hit:
            return self._number(number) if is_number else self.kept.value_at(place)
        return self._look(key, keeps)

    cdef object _look(self, KeyBytes *key, bint keeps=False):
        """The value of a key, or MISSING; the entry is marked as read. One that cannot be decoded
        is deleted. keeps: keep the value."""
        cdef MapHandle handle = self.handle
        cdef uint64_t small[SPOT_WORDS]
        cdef uint64_t *value = NULL
        cdef Found found
        cdef Op op
        cdef Status status = OK
        cdef bint over = False
        cdef bint unreadable = False
        cdef uint64_t rounds = 0
        cdef object result = MISSING
        cdef uint64_t releases = 0
        room = self._value_room(small, &value)
        self._set_key(&op, key)
        enter_to_read(handle, &op)
        try:
            while status == OK and not over and result is MISSING:
                if keeps:
                    releases = releases_of(&handle.map)
                status = self._find(&op, &found, value)
                over = status == OK and entry_expired(&handle.map, value)
                if status == OK and not over:
                    if not handle.map.read_only:
                        entry_used(&handle.map, found.element)
                    if keeps:
                        result = self.kept.get_if(&handle.map, &found, op.hash)
                        if result is not MISSING:
                            keeps = False
                            break
                    try:
                        result = self._decode(&found, value, &op, True)
                    except (MemoryError, _errors.Error):
                        raise
                    except Exception:
                        unreadable = True
                        break
                    renew(handle, &op)
                rounds += 1
                if rounds > READ_ROUNDS_MAX:   # no writers interfere this often
                    status = CORRUPT
        finally:
            leave_reading(handle, &op)
        if status != OK and status != ABSENT:
            raise_status(handle, CORRUPT, NULL)
        if over and not handle.map.read_only:
            self._expire_one(key)
        if unreadable and not handle.map.read_only:
            remove_unreadable(self, key, &found)
        if keeps and result is not MISSING and type(result) is not self.never_kept:
            self.kept.keep(&found, op.hash, releases, self.value.size if self.value_slot == NO_SLOT
                           else ref_length(value[handle.map.ref_words[self.value_slot]]), result)
        return result

    cdef inline object _get_counted(self, object key):
        """The value of a key, or MISSING, counted as a hit or a miss."""
        cdef uint64_t number = 0
        if self.quick and likely(cached_quickly(self, key, &number)):
            return self._number(number)
        return self._get_slowly(key)

    cdef object _get_slowly(self, object key):
        """_get_counted for any key and value."""
        cdef KeyBytes key_bytes
        if self.finds_kept and self.kept is not None:
            found = kept_quickly(self, self.kept, key)
            if found is not MISSING:
                return found
        kept = key_encode(self.handle, self.key, key, &key_bytes)
        found = self._find_value(&key_bytes, self.keeps)
        count_one(self.handle, COUNT_MISSES if found is MISSING else COUNT_HITS)
        return found

    cdef bint _set(self, object key, object value, uint32_t flag, int64_t deadline_ns,
                   uint64_t tags) except -1:
        """Store a value. If it does not fit, the key is deleted: an old value would be wrong."""
        cdef KeyBytes key_bytes
        cdef bint stored
        try:
            stored = self._store(key, value, flag, deadline_ns, tags) == OK
            if stored:
                count_one(self.handle, COUNT_SETS)
            return stored
        except (_errors.TooLarge, _errors.OutOfMemory, _errors.SegmentFull, _errors.MapFull):
            count_one(self.handle, COUNT_REJECTED)
            if flag != UPDATE_NOEXIST:
                kept = key_encode(self.handle, self.key, key, &key_bytes)
                self._remove(&key_bytes, False)
            raise

    cdef object _compute(self, Claim claim, function, ttl, stale):
        """The result of function(), stored under the claimed key unless the claim was cut off, or
        the value does not fit."""
        try:
            value = function()
        except BaseException:
            claim.give_up()
            raise
        claim.keep(value, ttl, stale)
        return value

    cdef object _claim_or_wait(self, key, function, ttl, stale, tags, wait, when_late):
        """The value of an absent key, for get_or_compute()."""
        cdef Claim claim
        cdef KeyBytes key_bytes
        cdef int _
        for _ in range(CLAIM_TRIES_MAX):       # again if the value was gone before it was read
            claim = Claim(self, key, wait, tags=tags)
            try:
                claimed = claim.wait()
            except _errors.LockTimeout:
                if claim.in_the_way == 0 or when_late == "raise":
                    raise
                claim.steal()
                continue
            if claimed:
                return self._compute(claim, function, ttl, stale)
            if claim.is_unclaimed:
                break
            kept = key_encode(self.handle, self.key, key, &key_bytes)
            found = self._look(&key_bytes)
            if found is not MISSING:
                count_one(self.handle, COUNT_WAITED)
                return found
        found = function()
        count_one(self.handle, COUNT_COMPUTED)
        return found

    def get_or_compute(self, key, function, ttl=None, *, stale=0.0, early=0.0, tags=(), wait=10.0,
                       when_late="compute"):
        """Return the value of key; if it is absent, call function(), store what it returns, and
        return that. ttl: as for set(), from the end of the computation on; or a function of the
        result that returns one, or False for a result that is not to be stored. tags: as for set().

        If several processes and threads ask for a key at once, one of them computes, and the others
        wait for its result. While the key has a value, no caller waits. If function() raises, its
        caller gets the exception, and the next waiter computes. If the computing process dies, a
        waiter takes over within 50 ms. If a computation takes more than wait seconds, one of the
        waiters computes, too, and the late result is not stored; or, with when_late="raise", the
        waiters get LockTimeout. If the key is deleted, stored or invalidated during the
        computation, the result is returned to the callers that asked before, and not stored; a
        result that does not fit is not stored, either.

        stale: for how many seconds after its ttl a value is still returned, by get() too. The first
        call that finds such a value computes it again, and the others return the old one without
        waiting. early: a call computes a value again before its ttl is over, at random, the sooner
        the longer the computation took and the greater early is (1.0 is usual; XFetch), while the
        others return the old one. In both cases an entry that was stored, deleted or touched during
        the computation stays as it is.

        Computations may ask for other keys. A key that this thread computes already, or whose
        computation waits for this thread, is computed without waiting, and its result is not stored
        by this call; the same holds if every entry of the cache is being computed, or if seven
        eighths of its contexts (info()["contexts_max"]) are in use or kept by processes.
        Computations that wait for each other by way of two caches wait for wait seconds.

        Costs a get() if the key has a value, and otherwise about three stores. Raises what
        function() raises, LockTimeout (when_late="raise"), InvalidArgument (ttl, stale, early,
        tags, when_late), TypeError (the key is not of the cache's type), ReadOnlyMap, MapClosed,
        and what set() raises for a value that cannot be encoded.
        """
        cdef Claim claim
        found = self._get_counted(key)
        if found is not MISSING:
            if stale or early:
                _arguments.expect_staleness(stale, early)
                claim = begin_refresh(self, key, stale, early, None, None, tags)
                if claim is not None:
                    return self._compute(claim, function, ttl, stale)
            return found
        _arguments.expect_staleness(stale, early)
        if not callable(ttl):
            self._deadline_after(ttl)          # raises now, not after the computation
        _arguments.expect_when_late(when_late)
        return self._claim_or_wait(key, function, ttl, stale, tags, wait, when_late)

    def get(self, key, default=None):
        """Return the value of key, or default if it is absent, has expired, or cannot be decoded.

        Never waits (R1), and always returns a complete value (R2). Counts as a hit or a miss, and
        an entry that is found is evicted later than one that is not. An entry that cannot be
        decoded, as after a deploy, is deleted. Expected O(1), and O(bytes of the value).

        Raises TypeError (the key is not of the cache's type), MapClosed.
        """
        cdef uint64_t number = 0
        if self.quick and likely(cached_quickly(self, key, &number)):
            return self._number(number)
        found = self._get_slowly(key)
        return default if found is MISSING else found

    def get_many(self, keys):
        """Return a dict of those of these keys that are present, with their values.

        Costs a get() for each key, and is atomic for each key, not for all of them.

        Raises what get() raises.
        """
        cdef dict present = {}
        for key in keys:
            found = self._get_counted(key)
            if found is not MISSING:
                present[key] = found
        return present

    def set(self, key, value, ttl=None, *, tags=()):
        """Store a value that expires after ttl seconds. None: the cache's default; inf: never.
        tags: up to four str, for invalidate(), in a cache that was made with tags=True.

        Atomic (W1), whatever the value's size; every later get() of any process returns the value,
        until it is replaced, deleted or evicted. If there is no room, entries are evicted: as many
        as needed, and no more than twice as many. If the value cannot be stored at all, the key is
        deleted, since its old value would be wrong. Expected O(1), and O(bytes of the value).

        Raises TooLarge (of more bytes than max_value_bytes), SegmentFull and OutOfMemory
        (even an empty cache has no room for it), LockTimeout, InvalidArgument (ttl, tags),
        TypeError and OverflowError (the key or value is not of the cache's type), what pickling
        raises, ReadOnlyMap, MapClosed.
        """
        self._set(key, value, UPDATE_ANY, self._deadline_after(ttl), tags_word(self.handle, tags))

    def set_many(self, mapping, ttl=None, *, tags=()):
        """Store the items of a mapping, or of (key, value) pairs; return a list of the keys whose
        values do not fit. ttl, tags: as for set().

        Costs a set() for each item, and is atomic for each item, not for all of them.

        Raises what set() raises, except TooLarge, SegmentFull and OutOfMemory.
        """
        cdef list refused = []
        cdef int64_t deadline_ns = self._deadline_after(ttl)
        cdef uint64_t word = tags_word(self.handle, tags)
        for key, value in (mapping.items() if hasattr(mapping, "items") else mapping):
            try:
                self._set(key, value, UPDATE_ANY, deadline_ns, word)
            except (_errors.TooLarge, _errors.OutOfMemory, _errors.SegmentFull):
                refused.append(key)
        return refused

    def add(self, key, value, ttl=None, *, tags=()):
        """Store a value if key is absent or has expired; return whether it was stored. ttl, tags:
        as for set().

        Atomic (W1): of several concurrent callers one stores its value. Expected O(1).

        Raises what set() raises; then the key stays as it is.
        """
        return self._set(
            key, value, UPDATE_NOEXIST, self._deadline_after(ttl), tags_word(self.handle, tags))

    def replace(self, key, value, ttl=None, *, tags=()):
        """Store a value if key is present; return whether it was stored. ttl, tags: as for set().

        A key whose value is being computed is absent, and stays claimed. Atomic (W1). Expected
        O(1).

        Raises what set() raises; after TooLarge, too, the key is deleted.
        """
        return self._set(
            key, value, UPDATE_EXIST, self._deadline_after(ttl), tags_word(self.handle, tags))

    def delete(self, key):
        """Delete key; return whether it was present. Atomic (W1).

        Raises LockTimeout, TypeError, ReadOnlyMap, MapClosed.
        """
        cdef KeyBytes key_bytes
        kept = key_encode(self.handle, self.key, key, &key_bytes)
        return self._remove(&key_bytes, False) is not MISSING

    def pop(self, key, default=None):
        """Delete key and return its value; return default if it is absent or cannot be decoded.

        Atomic (W1): no other caller gets the same value. Not counted as a hit or a miss.

        Raises LockTimeout, TypeError, ReadOnlyMap, MapClosed.
        """
        cdef KeyBytes key_bytes
        kept = key_encode(self.handle, self.key, key, &key_bytes)
        try:
            found = self._remove(&key_bytes, True)
        except (MemoryError, _errors.Error):
            raise
        except Exception:
            return default
        return default if found is MISSING else found

    def __contains__(self, key):
        cdef KeyBytes key_bytes
        cdef uint64_t deadline = 0
        kept = key_encode(self.handle, self.key, key, &key_bytes)
        return self._find_deadline(&key_bytes, &deadline) == OK and not deadline_passed(deadline)

    def __len__(self):
        return len(self.handle)

    def incr(self, key, delta=1, default=None):
        """Add delta to the number under key; return the sum. The deadline stays.

        If key is absent and default is given, default + delta is stored, with the cache's ttl. For
        caches of int values (64-bit, wrapping around) or float values. Atomic (W1). Expected O(1).

        Raises KeyNotFound (ENOENT: absent, and default is None), TypeError (other values),
        OverflowError, LockTimeout, ReadOnlyMap, MapClosed.
        """
        return add_to(self, key, delta, default)

    def ttl(self, key):
        """Return the seconds until an entry expires; None if it has no deadline.

        Costs a lookup, which is not counted.

        Raises KeyNotFound (ENOENT), TypeError, MapClosed.
        """
        return seconds_left(deadline_of(self, key))

    def touch(self, key, ttl=None):
        """Make an entry expire ttl seconds from now; return False if key is absent.

        ttl: None is the cache's default, inf is never. Atomic (W1).

        Raises InvalidArgument (ttl), LockTimeout, TypeError, ReadOnlyMap, MapClosed.
        """
        cdef int64_t deadline_ns = self._deadline_after(ttl)
        if deadline_ns == 0:
            deadline_ns = deadline_in(self.default_ttl_ns)
        return touch_until(self, key, deadline_ns)

    def expire(self):
        """Delete every entry that has expired or was invalidated; return how many. Costs a walk
        over the cache.

        You need not call it: such entries are absent at once, and their room is used by new ones.
        It gives their memory back sooner.

        Raises ReadOnlyMap, MapClosed.
        """
        return expire_all(self.handle)

    def clear(self):
        """Invalidate every entry, at once and by one store: it is absent for every process.

        Atomic: every entry that was stored before the call, and the result of every computation
        that began before it (get_or_compute), is never found after it. O(1), about 0.3
        microseconds. The memory is used again as others store, which removes what was invalidated
        little by little, and first where room is needed; len() counts it until then. expire() gives
        the memory back now.

        Raises ReadOnlyMap, FrozenMap, MapClosed.
        """
        invalidate_slot(self.handle, 0)

    def invalidate(self, *tags):
        """Invalidate every entry with one of these tags: it is absent for every process.

        Atomic for each tag, as clear(), which it resembles in all else. A tag is one of 65,535
        slots, by its hash: an entry of another tag with the same slot goes, too.

        Raises InvalidArgument (the cache was made without tags=True), TypeError, ReadOnlyMap,
        FrozenMap, MapClosed.
        """
        slots = []
        for tag in tags:                       # all, before anything is invalidated: it may raise
            slots.append(tag_number(self.handle, tag))
        for slot in slots:
            invalidate_slot(self.handle, slot)

    def _raw_key(self, key):
        """The bytes under which the map below the cache stores a key."""
        cdef KeyBytes key_bytes
        kept = key_encode(self.handle, self.key, key, &key_bytes)
        return raw_key_of(self, &key_bytes)

    def _peek(self, key, default):
        """get() that does not count as a hit or miss, but as a value that was waited for."""
        cdef KeyBytes key_bytes
        kept = key_encode(self.handle, self.key, key, &key_bytes)
        found = self._look(&key_bytes)
        if found is MISSING:
            return default
        count_one(self.handle, COUNT_WAITED)
        return found

    def _begin_refresh(self, key, double stale, double early, list others, task, tags):
        return begin_refresh(self, key, stale, early, others, task, tags)

    def _section(self, key, timeout, *default):
        """A LockedEntry of key, which on entry inserts the default, if given, for an absent key."""
        return LockedEntry(self, key, timeout, default[0] if default else NO_DEFAULT)

    def _entries(self, int what, bint skipping=False):
        """An iterator over the keys (what: 0), values (1) or both (2), as DictCore's; 3: over the
        keys, and those that have expired or are being computed."""
        return DictEntries(self, what, skipping)

    def _trace(self, bint traced):
        """From now on memoized functions ask by get_or_compute() alone, which a trace replaces; or
        no longer."""
        self.traced = traced

    def _counts(self):
        """The counts of all processes, in the order of CacheCounts."""
        return cache_counts(self.handle)
