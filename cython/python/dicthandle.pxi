# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# Part of _core.pyx: DictHandle, the state that a dict's handle has besides the handle of its map,
# and the steps of which a dict's operations consist. DictCore (dict.pxi) offers the operations to
# Python.
#
# A value in the map is [reference to the whole key] [deadline] and then the value's bytes or a
# reference to them. Which parts a map has follows from its special fields and the kinds of key and
# value (DictHandle.__init__). Each step here is one lookup or one store of read.pxd and write.pxd;
# an operation that needs several is a section.

from shmrhash import _arguments

cdef object MISSING = object()
cdef MapHandle NO_HANDLE = MapHandle.__new__(MapHandle)
cdef Codec NO_CODEC = codec_of((KEY_INT, None, None), False, 0)


cdef inline int64_t deadline_in(int64_t ttl_ns) noexcept nogil:
    """The deadline of a value that is stored now and lives so long; 0, no deadline, for 0."""
    return clock_ns(CLOCK_MONOTONIC) + ttl_ns if ttl_ns != 0 else 0


cdef Status attempt_remove(Op *op, void *value) noexcept:
    return map_delete(op, value)


cdef Status attempt_remove_found(Op *op, void *found) noexcept:
    """Delete the entry of op's key if it is still as it was found."""
    return map_delete_held(op, (<Found *> found).header, NULL)


@cython.internal
@cython.auto_pickle(False)
@cython.no_gc_clear                # every method needs the handle and the codecs
cdef class DictHandle:
    """The layout of a dict's entries, and the steps of which its operations consist."""

    cdef readonly MapHandle handle  # the map below the dict
    cdef bint quick                # get_quickly knows keys and values of these kinds
    cdef bint changes_quickly      # change_quickly, too: a value that is stored is one word
    cdef bint removes_quickly      # remove_quickly knows the keys, and no entry expires
    cdef Codec key
    cdef Codec value
    cdef int key_kind              # of the codecs, for the short ways
    cdef int value_kind
    cdef uint32_t key_slot         # the number of the reference to the whole key; or NO_SLOT
    cdef uint32_t value_slot       # the number of the reference to the value; or NO_SLOT
    cdef uint32_t value_word       # the word at which an inline value begins
    cdef int64_t default_ttl_ns    # the default lifetime of entries; 0: no deadline
    cdef uint64_t value_bytes_max  # of a value that is an object

    def __cinit__(self, *_ignored, **_named):
        # Of a class whose __init__ does not call this one's: a map that is closed.
        self.handle = NO_HANDLE
        self.key = self.value = NO_CODEC

    def __init__(self, MapHandle handle not None, key, value, int64_t default_ttl_ns=0):
        cdef Map *map = &handle.map
        cdef uint32_t next_slot = 0
        cdef uint64_t words = 0
        self.handle = handle
        self.default_ttl_ns = default_ttl_ns
        self.key = codec_of(key, True, 0)
        self.value = codec_of(value, False, 0)
        self.key_kind = self.key.kind
        self.value_kind = self.value.kind
        self.key_slot = self.value_slot = NO_SLOT
        self.value_bytes_max = LENGTH_MAX
        if self.key.kind in (KEY_BYTES, KEY_STR, KEY_ENCODED):
            self.key_slot = next_slot
            next_slot += 1
            words += 1
        elif self.key.kind == KEY_FIXED:
            self.key.size = map.key_size
        words += (map.timer_word != 0) + (map.birth_word != 0) + (map.tags_word != 0)
        self.value_word = <uint32_t> words
        if self.value.kind >= VALUE_BYTES:
            self.value_slot = next_slot
            next_slot += 1
        elif self.value.kind == VALUE_FIXED:
            self.value.size = map.value_size - words * 8
        self.quick = self.key.kind in (KEY_STR, KEY_INT) and (
            self.value.kind in (VALUE_INT, VALUE_FLOAT))
        self.removes_quickly = self.key.kind in (KEY_STR, KEY_INT) and (
            map.timer_word == 0 and map.cache == NULL)
        self.changes_quickly = self.quick and self.removes_quickly
        if next_slot != map.ref_count or not self._sizes_fit(words):
            raise _errors.LayoutMismatch(
                f"map {handle.name!r} does not have the fields of a dict with such keys and values")

    cdef int64_t _deadline_after(self, ttl) except -1:
        """The deadline of a value that is stored now and lives ttl seconds; 0: the default one."""
        cdef int64_t ttl_ns
        if ttl is None:
            return 0
        if self.handle.map.timer_word == 0:
            self._refuse_ttl()
        ttl_ns = _arguments.ttl_ns(_arguments.checked_ttl(ttl))
        return deadline_in(ttl_ns) if ttl_ns != 0 else _arguments.NEVER_NS

    cdef object _refuse_ttl(self):
        raise _errors.InvalidArgument(
            f"map {self.handle.name!r} has no room for deadlines; create it with ttl=math.inf, or "
            f"a default in seconds")

    cdef bint _sizes_fit(self, uint64_t words) noexcept:
        """Whether the map's sizes are those of such keys and values, after this many words."""
        cdef Map *map = &self.handle.map
        if words >= map.value_words:
            return False
        if self.value.kind != VALUE_FIXED and map.value_size != words * 8 + 8:
            return False
        if self.key_slot != NO_SLOT:
            return map.key_size == 16
        if self.key.kind == KEY_INT or self.key.kind == KEY_FLOAT:
            return map.key_size == 8
        return self.key.kind == KEY_FIXED or map.key_size == 1

    cdef int _set_key(self, Op *op, KeyBytes *key) except -1:
        op.key = key.bytes
        op.hash = hash_key(self.handle.map.seeds, key.bytes, self.handle.map.key_size)
        return 0

    cdef int _begin(self, Op *op, KeyBytes *key, Waiting *waiting) except -1:
        """Begin an operation that writes."""
        self._set_key(op, key)
        return begin_raw(self.handle, op, waiting)

    cdef object _value_room(self, uint64_t *small, uint64_t **value):
        """Room for a copy of a value: small, or memory of the returned object, which must live."""
        if self.handle.map.value_words <= SPOT_WORDS:
            value[0] = small
            return None
        room = PyBytes_FromStringAndSize(NULL, <Py_ssize_t> self.handle.map.value_words * 8)
        value[0] = <uint64_t *> PyBytes_AS_STRING(room)
        return room

    cdef Status _find(self, Op *op, Found *found, uint64_t *value) noexcept:
        """Repeat entry_find until it returns OK, ABSENT or CORRUPT."""
        cdef Status status = RETRY
        cdef uint64_t _rounds
        for _rounds in range(READ_ROUNDS_MAX):
            status = entry_find(&self.handle.map, op.hash, op.key, found, value)
            if likely(status != RETRY):
                return status
            if _rounds & 63 == 63:
                with nogil:
                    sched_yield()
        return CORRUPT                         # no writers interfere this often

    cdef Status _find_deadline(self, KeyBytes *key, uint64_t *deadline) except? RETRY:
        """Find the deadline of a key's entry, expired or not: OK or ABSENT. An outdated entry has
        expired long ago."""
        cdef MapHandle handle = self.handle
        cdef uint64_t small[SPOT_WORDS]
        cdef uint64_t *value = NULL
        cdef Found found
        cdef Op op
        cdef Status status
        room = self._value_room(small, &value)
        self._set_key(&op, key)
        enter_to_read(handle, &op)
        status = self._find(&op, &found, value)
        leave_reading(handle, &op)
        if status == OK:
            deadline[0] = entry_deadline(&handle.map, value)
            if value_is_outdated(&handle.map, value):
                deadline[0] = BLANK_DEADLINE
        elif status != ABSENT:
            raise_status(handle, status, NULL)
        return status

    cdef object _decode(self, const Found *found, const uint64_t *value, Op *op, bint view=False):
        """The value of a found entry; MISSING if the entry has changed since it was found. view:
        without a copy, if possible. found is NULL if no other operation can change the entry."""
        cdef bytes copy
        if self.value_slot == NO_SLOT:
            return value_inline(self.value, <const uint8_t *> (value + self.value_word))
        ref = value[self.handle.map.ref_words[self.value_slot]]
        if view and self.value.kind == VALUE_VIEW and not self.handle.map.read_only:
            pinned = pinned_object(self.handle, op, found, ref)
            return MISSING if pinned is None else self.value.decode(memoryview(pinned))
        copy = object_copy(self.handle, op, found, ref)
        return MISSING if copy is None else value_decode(self.value, copy)

    cdef bint _read_further(
            self, uint32_t hash, uint64_t first, uint64_t second, uint64_t *number,
            uint64_t *deadline) noexcept:
        """The end of get_quickly, if not the first slot with the hash's tag has led to the key,
        which consists of these words."""
        cdef uint64_t words[2]
        words[0], words[1] = first, second
        return entry_read_fast(
            &self.handle.map, hash, <const uint8_t *> words, self.handle.map.key_size,
            self.value_word, number, deadline)

    cdef bint _cached_further(
            self, uint32_t hash, uint64_t first, uint64_t second, Found *found, uint64_t *number,
            uint64_t *deadline) noexcept:
        """The end of cached_quickly, if not the first slot with the hash's tag has led to the key,
        which consists of these words."""
        cdef uint64_t words[2]
        words[0], words[1] = first, second
        return cached_find_fast(
            &self.handle.map, hash, <const uint8_t *> words, self.handle.map.key_size,
            self.value_word, found, number, deadline)

    cdef bint _change_further(
            self, Op *op, uint64_t number, const NumberField *field, uint64_t *after) noexcept:
        """The end of change_quickly, if not the first slot with the hash's tag has led to the key.
        """
        return word_change_fast(op, op.map.key_size, self.value_word, number, field, after)

    cdef inline object _number(self, uint64_t bits):
        cdef double number
        if self.value_kind == VALUE_INT:
            return recycled_int(&self.handle.numbers, <int64_t> bits)
        memcpy(&number, &bits, 8)
        return number

    cdef object _get(self, KeyBytes *key):
        """The value of a key, or MISSING."""
        cdef MapHandle handle = self.handle
        cdef uint64_t small[SPOT_WORDS]
        cdef uint64_t *value = NULL
        cdef Found found
        cdef Op op
        cdef Status status = OK
        cdef bint over = False
        cdef uint64_t rounds = 0
        cdef object result = MISSING
        room = self._value_room(small, &value)
        self._set_key(&op, key)
        enter_to_read(handle, &op)
        try:
            while status == OK and not over and result is MISSING:
                status = self._find(&op, &found, value)
                if status == OK:               # of a dict: nothing in it is outdated
                    over = deadline_passed(entry_deadline(&handle.map, value))
                if status == OK and not over:
                    result = self._decode(&found, value, &op, True)
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
        return result

    cdef bint _expire_one(self, KeyBytes *key) except -1:
        """Delete an entry if it has expired; do not wait if another operation holds it."""
        cdef MapHandle handle = self.handle
        cdef uint64_t small[SPOT_WORDS]
        cdef uint64_t *value = NULL
        cdef Op op
        cdef Status status
        if load_relaxed_u64(&handle.map.header.frozen) != 0:
            return False
        room = self._value_room(small, &value)
        self._set_key(&op, key)
        enter_to_write(handle, &op)
        op.options = OP_RAW_FIELDS
        op_give_back(&op)
        status = entry_expire(&op, value)
        leave(handle, &op)
        return status == OK

    cdef Status _make_new_value(self, Op *op, const Span *span) noexcept:
        """Before the end of a section stores a value: make its object, if it is one. A key that is
        an object stays as the entry has it. BUSY, RETRY: call again; else as object_make."""
        cdef Status status
        if self.value_slot != NO_SLOT:
            status = object_make(op, self.value_slot, span.bytes, <uint64_t> span.size)
            if status != OK:
                return status
        op.options = OP_RAW_FIELDS
        if self.key_slot != NO_SLOT:
            op.options |= 1 << (OP_KEEP_SHIFT + self.key_slot)
        return OK

    cdef object _value_of(self, uint64_t *words, object thing, Py_buffer *view, Span *span):
        """Encode a value: into words if it is stored in the entry, else as a span. The returned
        object must live as long as the span is used."""
        cdef double number
        span.bytes = NULL
        if self.value.kind == VALUE_INT:
            words[self.value_word] = <uint64_t> self.value._integer(thing)
        elif self.value.kind == VALUE_FLOAT:
            number = self.value._number(thing)
            memcpy(words + self.value_word, &number, 8)
        elif self.value.kind == VALUE_BOOL:
            words[self.value_word] = self.value._truth(thing)
        elif self.value.kind == VALUE_FIXED:
            encoded = bytes(self.value._bytes_of(thing))
            memcpy(words + self.value_word, PyBytes_AS_STRING(encoded), self.value.size)
        elif self.value.kind == VALUE_STR:
            thing = self.value._text(thing, span)
        else:
            if self.value.kind != VALUE_BYTES:
                thing = self.value.encode(thing)
            if likely(PyBytes_CheckExact(thing)):
                span.bytes = <const uint8_t *> PyBytes_AS_STRING(thing)
                span.size = PyBytes_GET_SIZE(thing)
            else:
                span_view(thing, "value", view, span)
        if span.bytes != NULL and <uint64_t> span.size > self.value_bytes_max:
            raise _errors.TooLarge(
                f"a value has at most {self.value_bytes_max} bytes, not {span.size}")
        return thing

    cdef Status _store(
            self, object key, object thing, uint32_t flag, int64_t deadline,
            uint64_t tags=0) except? RETRY:
        """Store a value: OK, PRESENT or ABSENT. tags: of a cache's entry (births.pxd)."""
        cdef MapHandle handle = self.handle
        cdef uint64_t small[SPOT_WORDS]
        cdef uint64_t *words = NULL
        cdef KeyBytes key_bytes
        cdef Py_buffer view
        cdef Span span
        cdef Storing storing
        cdef Op op
        cdef Status status
        cdef Waiting waiting = new_waiting(handle)
        kept_key = key_encode(handle, self.key, key, &key_bytes)
        room = self._value_room(small, &words)
        memset(words, 0, handle.map.value_words * 8)
        view.buf = NULL
        if deadline == 0:
            deadline = deadline_in(self.default_ttl_ns)
        if handle.map.timer_word != 0:
            words[handle.map.timer_word - 1] = <uint64_t> deadline
        storing.key = &key_bytes
        storing.words = words
        storing.span = &span
        storing.flag = flag
        storing.key_slot = self.key_slot
        storing.value_slot = self.value_slot
        try:
            kept_value = self._value_of(words, thing, &view, &span)
            self._begin(&op, &key_bytes, &waiting)
            try:
                if likely(handle.map.cache == NULL):       # a call of its own can be inlined
                    status = repeat(handle, &op, attempt_store, &storing, &waiting)
                else:
                    value_bear(&handle.map, words, birth_now(&handle.map), tags)
                    status = repeat(handle, &op, attempt_cache_store, &storing, &waiting)
            finally:
                leave(handle, &op)
        finally:
            if view.buf != NULL:
                PyBuffer_Release(&view)
        note_overwriting(handle, not op.element_filled)
        if status != OK and status != PRESENT and status != ABSENT:
            raise_status(handle, status, &op)
        return status

    cdef object _remove(self, KeyBytes *key, bint wanted):
        """Delete a key; return its value if wanted, else None; MISSING if the key is absent."""
        cdef MapHandle handle = self.handle
        cdef uint64_t small[SPOT_WORDS]
        cdef uint64_t *value = NULL
        cdef Op op
        cdef Status status = RETRY
        cdef Waiting waiting = new_waiting(handle)
        cdef object result = None
        room = self._value_room(small, &value)
        self._begin(&op, key, &waiting)
        try:
            if wanted:
                op.options |= OP_KEEP_ELEMENT
            status = repeat(handle, &op, attempt_remove, value, &waiting)
            if status == OK and entry_expired(&handle.map, value):
                status = ABSENT
            if status == OK and wanted:
                result = self._decode(NULL, value, &op)
        finally:
            op.options = OP_RAW_FIELDS
            if op.generation == process_generation:
                op_give_back(&op)
            leave(handle, &op)
        if status == ABSENT:
            return MISSING
        if status != OK:
            raise_status(handle, status, &op)
        return result


cdef bytes raw_key_of(DictHandle owner, KeyBytes *key):
    """The bytes under which the map below a dict or cache stores a key."""
    return PyBytes_FromStringAndSize(
        <const char *> key.bytes, <Py_ssize_t> owner.handle.map.key_size)
