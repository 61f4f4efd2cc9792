# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# Part of _core.pyx: MapCore, the part of RHashMap that is in the core. Its methods are short,
# because the functions of the parts included before it do the work.

cdef enum:
    F_LOCK = 4                 # BPF_F_LOCK


cdef examine(MapHandle handle, int fd):
    cdef Header header
    cdef stat_t file_status
    cdef Status status = ABSENT
    cdef ssize_t got
    memset(&header, 0, sizeof(header))
    if fstat(fd, &file_status) != 0:
        raise _errors.SegmentMissing(f"segment {handle.name!r}: {os_error()}")
    handle.map.device = file_status.st_dev
    handle.map.inode = file_status.st_ino
    got = pread(fd, &header, sizeof(header), 0)
    if got == sizeof(header):
        status = segment_examine(&handle.map, &header, <uint64_t> file_status.st_size)
    if status == ABSENT:
        raise _errors.LayoutMismatch(
            f"{handle.name!r} is not a shmrhash segment ({file_status.st_size} bytes, no magic "
            f"number); choose another name or remove the file")
    if status == PRESENT:
        raise _errors.LayoutMismatch(
            f"segment {handle.name!r} has layout version {header.layout_version}, this build "
            f"reads {LAYOUT_VERSION}; unlink and recreate it, or use the version that wrote it")
    if status != OK:
        raise _errors.SegmentCorrupt(
            f"segment {handle.name!r} has a damaged header or the wrong size "
            f"({file_status.st_size} bytes); unlink and recreate it")
    handle.map_flags = header.map_flags
    handle.map_extra = header.map_extra
    handle.ephemeral = header.ephemeral


@cython.auto_pickle(False)
cdef class MapCore(MapHandle):
    """The operations of a map.

    Attributes: name (of the segment), map_flags and map_extra (as given at creation), ephemeral
    (whether the last process to close the map removes its name), recovered_at_open (how many dead
    processes were recovered when this handle was opened).
    """

    def __cinit__(self, int fd, str name not None, bytes path not None, bint read_only,
                  timeout, bint without_trace=False, owner=None, **_ignored):
        self.name = name
        self.map.path = strdup(path)
        self.map.read_only = self.map.file_read_only = read_only
        self.map.peeks = without_trace
        self.map.fd = fd                       # owned from here on
        self.map.timeout_ns = timeout_ns(timeout)
        if fd == REJOIN:
            if not rejoin(self, <const char *> path, len(path), owner):
                return                         # it stays closed
        else:
            examine(self, fd)
            attach(self)
        flag_store(&self.closed_flag, False)
        self.reads = READS_WORDS if self.map.words_only else READS_ANY
        self.writes_oddly = read_only or self.map.is_space or not self.map.use_membarrier
        if self.writes_oddly and not read_only:
            self.reads = READS_ANY             # keeps off store_word, which does not ask
        if fd == REJOIN:
            return                             # the process is registered, and met the dead before
        if not read_only:
            expect_registered(self)
            with nogil:
                self.recovered_at_open = recover_all(&self.map)
        else:
            reader_has_context(self)

    def __dealloc__(self):
        detach(self)
        if self.map.fd >= 0:                   # it was never attached
            close_fd(self.map.fd)

    def close(self):
        """Close the handle. It detaches once other threads' operations and all views have ended."""
        if not is_closed(self):
            flag_store(&self.closed_flag, True)
            self.reads = READS_NONE
            if FREE_THREADED:
                fence_seq_cst()                # see count_add
            if count_of(&self.in_flight) != 0 and not self.map.read_only:
                bells_ring_all(&self.map)      # threads that wait by this handle learn of it
            if self.generation != process_generation:
                inherit_uses(self)
            detach_if_idle(self)

    @property
    def closed(self):
        """Whether close() was called."""
        return bool(is_closed(self))

    @property
    def key_size(self):
        """Bytes of each key."""
        return self.map.key_size

    @property
    def value_size(self):
        """Bytes of each value."""
        return self.map.value_size

    @property
    def max_entries(self):
        """The hard limit on the number of entries."""
        return self.map.max_entries

    @property
    def max_bytes(self):
        """Bytes of memory that the map's objects may take, or the whole segment of a cache; 0: the
        map has no objects."""
        return self.map.max_bytes

    @property
    def read_only(self):
        """Whether the handle may only read."""
        return bool(self.map.read_only)

    @property
    def _is_space(self):
        """Whether the values are cells, of a Sync."""
        return bool(self.map.is_space)

    @property
    def timeout(self):
        """Seconds to wait for a lock whose owner is alive; None means without limit."""
        return None if self.map.timeout_ns < 0 else self.map.timeout_ns / 1e9

    @property
    def _is_cache(self):
        """Whether the map evicts entries when it is full."""
        expect_open(self)
        return self.map.cache != NULL

    @property
    def schema(self):
        """The description of the entries, as bytes, that the creator of the map stored in it."""
        cdef uint32_t size
        expect_open(self)
        size = self.map.header.schema_bytes
        return PyBytes_FromStringAndSize(
            <const char *> self.map.base + SCHEMA_OFFSET,
            size if size < SCHEMA_MAX else SCHEMA_MAX)

    # One key: looking it up, storing, deleting.

    def __getitem__(self, key):
        value = lookup_value(self, key)
        if value is None:
            raise _errors.KeyNotFound(key)
        return value

    def __contains__(self, key):
        return contains_key(self, key)

    def get(self, key, default=None):
        """Return the value of key as bytes, or default if the key is absent; else as lookup().

        Raises InvalidArgument, TypeError, MapClosed, SegmentCorrupt.
        """
        value = lookup_value(self, key)
        return default if value is None else value

    def lookup(self, key, flags=0):
        """Return the value of key as bytes, or None if the key is absent.

        Takes no lock and never waits for a writer (R1); the value is complete, as one write stored
        it (R2). Expected O(1): two cache lines for a present key, one for an absent key. With flags
        BPF_F_LOCK it waits until no section and no write holds the element (L1).

        Raises InvalidArgument (flags, or a key of another size), TypeError (not a buffer),
        MapClosed, SegmentCorrupt; with BPF_F_LOCK LockTimeout, DeadlockError.
        """
        if flags != 0:
            if flags != F_LOCK:
                bad_flags(self, flags, "lookup takes 0 or BPF_F_LOCK")
            return lookup_unlocked(self, key)
        return lookup_value(self, key)

    def __setitem__(self, key, value):
        update_value(self, key, value, 0)

    def update(self, key, value, flags=0):
        """Store value (value_size bytes) under key.

        flags: BPF_ANY inserts or replaces, BPF_NOEXIST only inserts, BPF_EXIST only replaces.
        Atomic: a concurrent lookup returns the old value or the new one (R2), and so does every
        lookup after the writer was killed during the update (C1). Replacing a value never fails for
        lack of room (W2). Expected O(1); an insert may commit up to 256 KiB of memory and split two
        buckets (G1). Waits, without the GIL, for a process that is changing the same element or
        bucket.

        Raises KeyExists (BPF_NOEXIST), KeyNotFound (BPF_EXIST), MapFull (E2BIG), SegmentFull
        (ENOMEM), LockTimeout (EBUSY), InvalidArgument, TypeError, ReadOnlyMap, MapClosed.
        """
        cdef uint32_t flag = 0
        if flags != 0:
            if flags not in (1, 2, F_LOCK, F_LOCK | 1, F_LOCK | 2):
                bad_flags(self, flags, "update takes BPF_ANY, BPF_NOEXIST or BPF_EXIST, each with "
                                       "or without BPF_F_LOCK", True)
            flag = <uint32_t> flags & ~<uint32_t> F_LOCK    # every update waits for sections
        update_value(self, key, value, flag)

    def __delitem__(self, key):
        if delete_key(self, key, NULL) != OK:
            raise _errors.KeyNotFound(key)

    def delete(self, key):
        """Remove key and its value.

        Atomic (W1). Expected O(1); may merge two buckets and give memory back. Waits, without the
        GIL, for a process that is changing the same element or bucket. It does not wait for a
        locked section on the key: that is cut off, and learns so at its end.

        Raises KeyNotFound (ENOENT), LockTimeout (EBUSY), InvalidArgument, TypeError, ReadOnlyMap,
        MapClosed.
        """
        if delete_key(self, key, NULL) != OK:
            raise _errors.KeyNotFound(key)

    def lookup_and_delete(self, key, flags=0):
        """Remove key and return its last value as bytes; no other caller gets the same value.

        Atomic (W1). Cost and waiting are those of delete(), but with flags BPF_F_LOCK it waits for
        a locked section on the key to end instead of cutting it off.

        Raises KeyNotFound (ENOENT), LockTimeout (EBUSY), DeadlockError, InvalidArgument,
        TypeError, ReadOnlyMap, MapClosed.
        """
        cdef bytes value
        if flags != 0 and flags != F_LOCK:
            bad_flags(self, flags, "lookup_and_delete takes 0 or BPF_F_LOCK", True)
        value = PyBytes_FromStringAndSize(NULL, <Py_ssize_t> self.map.value_size)
        if delete_key(self, key, PyBytes_AS_STRING(value), flags != 0) != OK:
            raise _errors.KeyNotFound(key)
        return value

    def pop(self, key, *default):
        """Remove key and return its value; if key is absent, return default.

        Atomic (W1): no other caller gets the same value. Otherwise as lookup_and_delete().

        Raises KeyNotFound (ENOENT: absent, and no default), LockTimeout, InvalidArgument,
        TypeError, ReadOnlyMap, MapClosed.
        """
        if len(default) > 1:
            raise TypeError(f"pop takes a key and one default, not {len(default)}")
        cdef bytes value = PyBytes_FromStringAndSize(NULL, <Py_ssize_t> self.map.value_size)
        if delete_key(self, key, PyBytes_AS_STRING(value)) == OK:
            return value
        if not default:
            raise _errors.KeyNotFound(key)
        return default[0]

    # One key: changes that depend on the value before.

    def setdefault(self, key, default):
        """Return the value of key; if key is absent, insert default and return it.

        Atomic (W1): of several concurrent callers one inserts its default, and all return that
        value. Only the insertion waits, as add() does.

        Raises MapFull, SegmentFull, LockTimeout, InvalidArgument, TypeError, ReadOnlyMap,
        MapClosed.
        """
        while True:                            # again if another caller inserted the key
            value = lookup_value(self, key)
            if value is not None:
                return value
            try:
                update_value(self, key, default, 1)
            except _errors.KeyExists:
                continue
            return bytes(default)

    def compare_and_swap(self, key, expected, new):
        """Store new under key if its value equals expected; return whether new was stored.

        If expected is None, new is stored only if key is absent; otherwise an absent key gives
        False. Atomic (W1), for values of any size. Expected O(1). Waits as add() does.

        Raises MapFull, SegmentFull (expected is None), LockTimeout, DeadlockError, InvalidArgument
        (sizes), TypeError, ReadOnlyMap, MapClosed.
        """
        if expected is not None:
            return bool(swap_value(self, key, expected, new, NULL))
        try:
            update_value(self, key, new, 1)
        except _errors.KeyExists:
            return False
        return True

    def exchange(self, key, new):
        """Store new under key and return the value it replaced, as bytes.

        Atomic (W1): each stored value is returned to one caller at most. Expected O(1). Waits as
        add() does.

        Raises KeyNotFound (ENOENT), LockTimeout, DeadlockError, InvalidArgument, TypeError,
        ReadOnlyMap, MapClosed.
        """
        cdef bytes old = PyBytes_FromStringAndSize(NULL, <Py_ssize_t> self.map.value_size)
        if not swap_value(self, key, None, new, <uint8_t *> PyBytes_AS_STRING(old)):
            raise _errors.KeyNotFound(key)
        return old

    def add(self, key, delta, *, default=None, Py_ssize_t offset=0, fmt="q"):
        """Add delta to a number in key's value; return the sum.

        The number is stored at byte offset of the value, little-endian. fmt is its format, as in
        the struct module: b B h H i I q Q (integers of 1, 2, 4, 8 bytes, which wrap around), f d.
        If key is absent and default is given, a value of zeros with default + delta in the field
        is inserted. Atomic (W1): no other change comes between reading and writing the number.
        Expected O(1). While another process changes the entry, or has it locked, this call waits
        with the GIL released.

        Raises KeyNotFound (ENOENT: absent, and default is None), MapFull, SegmentFull, LockTimeout,
        DeadlockError, InvalidArgument (key size, no such field in the value), TypeError,
        ReadOnlyMap, MapClosed.
        """
        return add_number(self, key, delta, default, offset, fmt)

    def min(self, key, number, *, default=None, Py_ssize_t offset=0, fmt="q"):
        """Replace a number in key's value by number if number is less; return the number stored.

        Arguments and errors are those of add(); number has to fit into the field. A NaN stays.

        Raises what add() raises.
        """
        return apply_number(self, key, number, FIELD_MIN, default, offset, fmt)

    def max(self, key, number, *, default=None, Py_ssize_t offset=0, fmt="q"):
        """Replace a number in key's value by number if number is greater; return the number stored.

        Arguments and errors are those of add(); number has to fit into the field. A NaN stays.

        Raises what add() raises.
        """
        return apply_number(self, key, number, FIELD_MAX, default, offset, fmt)

    def or_(self, key, bits, *, default=None, Py_ssize_t offset=0, fmt="Q"):
        """Set bits of an integer in key's value; return the integer stored.

        Arguments and errors are those of add(); bits has to fit into the field, and fmt has to be
        that of an integer.

        Raises what add() raises.
        """
        return apply_number(self, key, bits, FIELD_OR, default, offset, fmt)

    def and_(self, key, bits, *, default=None, Py_ssize_t offset=0, fmt="Q"):
        """Clear all bits but these of an integer in key's value; return the integer stored.

        Arguments and errors are those of add(); bits has to fit into the field, and fmt has to be
        that of an integer.

        Raises what add() raises.
        """
        return apply_number(self, key, bits, FIELD_AND, default, offset, fmt)

    # Special fields: objects and deadlines.

    def _fields(self):
        """(kind, offset) of each special field."""
        expect_open(self)
        return tuple(
            (self.map.field_kinds[index], self.map.field_words[index] * 8)
            for index in range(self.map.field_count))

    def kptr_get(self, key, Py_ssize_t offset):
        """Return the bytes of the object in the Kptr field at byte offset of key's value, or None.

        Raises KeyNotFound (ENOENT), InvalidArgument (no such field), ReadOnlyMap, MapClosed.
        """
        return exchange_object(self, key, None, offset, True)

    def kptr_xchg(self, key, data, Py_ssize_t offset):
        """Store an object in the Kptr field at byte offset of key's value, or empty the field;
        return the bytes of the object that was there, or None.

        data: the object's bytes, a contiguous buffer of up to 256 MiB - 64 bytes; None empties the
        field.

        Atomic (W1): each object is returned to one caller at most. Expected O(1), and O(bytes) of
        both objects.

        Raises KeyNotFound (ENOENT), InvalidArgument (no such field), TooLarge, OutOfMemory and
        SegmentFull (nothing changed), LockTimeout, TypeError, ReadOnlyMap, MapClosed.
        """
        return exchange_object(self, key, data, offset, False)

    def timer_set(self, key, int64_t deadline_ns):
        """Set the time at which key's entry expires; return False if key is absent.

        deadline_ns: a CLOCK_MONOTONIC time in ns; 0 for never.

        From that time on the entry is absent for every operation, and writers that find it delete
        it. Atomic. Expected O(1).

        Raises InvalidArgument (no Timer field), LockTimeout, TypeError, ReadOnlyMap, MapClosed.
        """
        return set_deadline(self, key, deadline_ns)

    def expire(self):
        """Delete every expired entry; return how many were deleted. Costs a walk over the map.

        Raises ReadOnlyMap, FrozenMap, MapClosed.
        """
        return expire_all(self)

    def _parts(self, bytes key):
        """All that is stored under a key, read in one step (objects.pxi)."""
        return parts_of(self, key)

    # The map as a whole.

    def __len__(self):
        cdef uint64_t index
        cdef uint64_t credits
        expect_open(self)
        credits = load_acquire_u64(&self.map.header.credits) >> PAYLOAD_SHIFT
        for index in range(self.map.depot_count):
            credits += depot_credit(load_acquire_u64(&self.map.depots[index].word))
        return <Py_ssize_t> (self.map.max_entries - credits) if (
            credits < self.map.max_entries) else 0

    def clear(self):
        """Delete all entries, one after another: each deletion is atomic, the whole is not.

        Until it ends, inserting a new key raises MapBusy; updates and deletions go on. If the
        process dies before the end, the process that recovers it deletes the remaining entries.
        Costs about as much as a delete() of each entry; memory goes back as blocks run empty.

        Raises MapBusy (another caller is clearing the map), LockTimeout, ReadOnlyMap, MapClosed.
        """
        clear_map(self)

    def freeze(self):
        """Forbid every change of the map, by any process and handle, permanently.

        Returns when all operations that began before it have ended. Locked sections that are open
        store nothing and end with FrozenMap. Costs a system call.

        Raises FrozenMap (EPERM: frozen already), ReadOnlyMap, LockTimeout (EBUSY: an operation that
        began before does not end; the map is not frozen), Unsupported (no membarrier), MapClosed.
        """
        freeze_map(self)

    @property
    def frozen(self):
        """Whether a process has frozen the map. Raises MapClosed."""
        expect_open(self)
        return load_relaxed_u64(&self.map.header.frozen) != 0

    def _check(self):
        """Check all invariants in one walk; return (problem, where, exact, figures)."""
        return check_all(self)

    def _facts(self):
        """The figures that info() is made of."""
        return map_facts(self)

    def _objects(self):
        """The figures of info() about objects; None if the map has none. Exact at rest."""
        return object_facts(self)

    def _cache_counts(self):
        """What all processes counted of a cache; None if the map is none."""
        return cache_counts(self)

    def _claims(self):
        """How many keys of a cache are claimed. Exact at rest."""
        return claims_now(self)

    def _processes(self):
        """A dict about each process that uses the map, or was killed while it did."""
        return processes_in(self)

    def _recover(self):
        """Recover every dead process; return how many there were."""
        return recover_dead(self)

    # The handle's file and its process.

    def _descriptor(self):
        """The segment's descriptor, for fstat; the handle still owns it. Raises SystemFailure."""
        return descriptor_of(self)

    def _identity(self):
        """Device and inode of the segment's file, also after close()."""
        return self.map.device, self.map.inode

    def _path_bytes(self):
        return <bytes> self.map.path

    def _note_name(self):
        """Note that the handle's path was seen to name the map after the handle had attached, when
        no removal of the name was under way (rejoining.pxi)."""
        note_name(self)

    def _expect_writable(self):
        """Raise ReadOnlyMap if the handle may only read."""
        expect_writable(self)

    def _forbid_reading(self):
        """Make this handle write-only from now on."""
        self.write_only = True
        self.reads = READS_NONE
