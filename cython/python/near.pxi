# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# Part of _core.pyx: NearCore, the part of NearCache that is in the core: a hit, and the deletions
# that an invalidation makes.
#
# Two maps belong to a near cache. The words have a line for each node of the server, by number:
# LINE_EPOCH, two random words, under which the present entries are stored; LINE_VALID, the time
# until which these may be served (the lease); and words that only the tracker and people read. The
# entries are a cache whose keys are places: the digest of a key (hashing.pxd) XOR the epoch. So one
# store, of a new epoch, discards every entry of a node: entries stored under another epoch have
# places that no reader looks up, and are evicted in time.
#
# A hit has three steps, in this order (docs/explanation/near.md):
#
#   1. the clock;
#   2. the node's line, as a whole: the lease must end after the moment of step 1;
#   3. the entry at the place that this line's epoch gives.
#
# Lease before entry: the tracker first deletes and then extends the lease, so a reader that sees a
# lease sees every deletion that was made before it was extended. In the other order a reader could
# find an old entry, be stopped, and then see the lease that a tracker extended after it had deleted
# that entry.
#
# A value is stored as the server sent it. An absent key has the empty value; an empty value, and
# one that begins with NEAR_ESCAPE, has NEAR_ESCAPE before it.

cdef enum:
    LINE_EPOCH = 0
    LINE_VALID = 2             # CLOCK_MONOTONIC in ns; 0: no lease
    LINE_WORDS = 10
    NEAR_ESCAPE = 0xC1         # begins no UTF-8, MessagePack, pickle, JSON or compressed value

cpdef enum:
    NEAR_LINE_BYTES = 80       # LINE_WORDS * 8

cdef uint64_t NO_NODE = 0xFFFFFFFFFFFFFFFFULL

# Over a cluster the node of a key is that of its slot: CRC-16/XMODEM of the key, or of its part in
# braces. The table of nodes is a hint: under a wrong node nothing is found that is wrong
# (shmrhash/_near/clusterwatch.py).
cdef enum:
    NEAR_SLOTS = 16384
    NEAR_OPENS = 0x7B          # {
    NEAR_CLOSES = 0x7D         # }
    NEAR_NO_NUMBER = 0xFF      # in the table: the node of this slot is not known

cdef uint32_t near_crc_table[256]


cdef void near_crc_prepare() noexcept nogil:
    """Fill in the table of the CRC of each byte."""
    cdef uint32_t byte, crc
    cdef int bit
    for byte in range(256):
        crc = byte << 8
        for bit in range(8):
            crc = (crc << 1) ^ (0x1021 if crc & 0x8000 else 0)
        near_crc_table[byte] = crc & 0xFFFF


near_crc_prepare()


cdef uint32_t near_slot(const uint8_t *key, Py_ssize_t size) noexcept nogil:
    """The slot of a key. One step for each byte."""
    cdef const uint8_t *begin = <const uint8_t *> memchr(key, NEAR_OPENS, size)
    cdef const uint8_t *end
    cdef uint32_t crc = 0
    cdef Py_ssize_t index
    if unlikely(begin != NULL):
        begin += 1
        end = <const uint8_t *> memchr(begin, NEAR_CLOSES, size - (begin - key))
        if end != NULL and end != begin:
            key = begin
            size = end - begin
    for index in range(size):
        crc = ((crc << 8) & 0xFFFF) ^ near_crc_table[(crc >> 8) ^ key[index]]
    return crc & (NEAR_SLOTS - 1)


@cython.auto_pickle(False)
cdef class NearCore:
    """The operations of a near cache that are in the core."""

    cdef readonly CacheCore _entries
    cdef readonly MapHandle _words
    cdef Codec _value
    cdef int64_t _grace_ns     # for how long after the lease a hit may be returned
    cdef uint64_t _node        # of every key; or NO_NODE
    cdef bytes _slots          # the nodes by slot, a byte each; neither: get() looks for no hits
    cdef uint64_t _generation  # of the process in which hits may be returned; 0: none

    def __init__(self, CacheCore entries not None, MapHandle words not None, value,
                 int64_t grace_ns):
        if words.map.key_size != 8 or words.map.value_size != NEAR_LINE_BYTES:
            raise _errors.LayoutMismatch(f"segment {words.name!r} is not a near cache's")
        self._entries = entries
        self._words = words
        self._value = codec_of(value, False, 0)
        if self._value.kind < VALUE_BYTES:
            raise _errors.InvalidArgument(
                "values of a near cache are bytes, str, or of a type that is stored as bytes of "
                "any length")
        self._grace_ns = grace_ns
        self._node = NO_NODE
        self._slots = None
        self._generation = 0

    cdef object _span(self, object key, Span *span):
        """Set span to the bytes of a key. The returned object must live as long as it is used."""
        if likely(PyUnicode_CheckExact(key) and PyUnicode_IS_COMPACT_ASCII(key)):
            span.bytes = <const uint8_t *> PyUnicode_DATA(key)
            span.size = PyUnicode_GET_LENGTH(key)
            return key
        if PyUnicode_Check(key):
            key = key.encode()
        elif not PyBytes_CheckExact(key):
            if not PyObject_CheckBuffer(key):
                raise TypeError(f"a key must be str or bytes, not {type(key).__name__}")
            key = bytes(key)
        span.bytes = <const uint8_t *> PyBytes_AS_STRING(key)
        span.size = PyBytes_GET_SIZE(key)
        return key

    cdef int _find_node(self, object key, uint64_t *node) except -1:
        """Set node to the number of a key's node by its slot, if it is known."""
        cdef Span span
        kept = self._span(key, &span)
        cdef bytes nodes
        cdef uint8_t number
        with cython.critical_section(self):    # another thread may store other nodes
            nodes = self._slots
        if nodes is not None:
            number = PyBytes_AS_STRING(nodes)[near_slot(span.bytes, span.size)]
            if number != NEAR_NO_NUMBER:
                node[0] = number
        return 0

    cdef int _place_at(self, object key, const uint64_t *epoch, KeyBytes *place) except -1:
        """Fill in the place of a key under an epoch."""
        cdef Span span
        kept = self._span(key, &span)
        key_digested(self._entries.handle, place, span)
        place.words[0] ^= epoch[0]
        place.words[1] ^= epoch[1]
        place.is_long = False                  # the whole key is stored nowhere
        return 0

    cdef object _stored(self, KeyBytes *place):
        """What is stored at a place, which counts as a hit; or MISSING."""
        found = self._entries._look(place)
        if likely(found is not MISSING):
            count_one(self._entries.handle, COUNT_HITS)
        return found

    cdef object _hit(self, object key, uint64_t node):
        """The value of a key, None if it is known to be absent, MISSING if nothing is known."""
        cdef KeyBytes place
        cdef uint64_t line[LINE_WORDS]
        cdef int64_t now = clock_ns(CLOCK_MONOTONIC)
        if unlikely(read_value(self._words, <const uint8_t *> &node, line) != OK):
            return MISSING
        if unlikely(now >= <int64_t> line[LINE_VALID]) and (
                line[LINE_VALID] == 0 or now - self._grace_ns >= <int64_t> line[LINE_VALID]):
            return MISSING
        # The line is read before the entry: element_unchanged has an acquire fence after the words
        # of the line, which pairs with the releases by which the tracker extends the lease after it
        # has deleted.
        self._place_at(key, line + LINE_EPOCH, &place)
        return self._stored(&place)

    cdef object _decoded(self, object stored):
        """The value from its stored bytes; None: absent."""
        cdef bytes found = <bytes> stored
        cdef const uint8_t *first = <const uint8_t *> PyBytes_AS_STRING(found)
        if unlikely(PyBytes_GET_SIZE(found) == 0):
            return None
        if unlikely(first[0] == NEAR_ESCAPE):
            found = found[1:]
        return value_decode(self._value, found)

    def get(self, key, default=None):
        """Return the value of key, or default if the server has none.

        The value comes from this machine's memory if it is there and fresh enough, else from the
        server, which is asked once for all processes and threads of the machine. The value is one
        that the key had at the server at some moment not longer than max_stale before the call
        (N1). A hit never waits, and costs about 0.2 microseconds; a miss costs a round trip.

        Raises what the client raises, Unavailable (on_outage="raise"), TypeError (the key is
        neither str nor bytes), what decoding the value raises, MapClosed.
        """
        cdef uint64_t node
        if likely(self._generation == process_generation):
            node = self._node
            if node == NO_NODE and self._slots is not None:
                self._find_node(key, &node)
            if likely(node != NO_NODE):
                stored = self._hit(key, node)
                if likely(stored is not MISSING):
                    found = self._decoded(stored)
                    return default if found is None else found
        return self._get_slowly(key, default)

    # For shmrhash/_near.

    def _arm(self, int64_t node):
        """In this process get() looks for hits itself from now on, if all keys have one node; -1:
        they have several."""
        with cython.critical_section(self):
            self._node = NO_NODE if node < 0 else <uint64_t> node
            self._slots = None
            self._generation = process_generation

    def _arm_slots(self, bytes nodes not None):
        """In this process get() looks for hits itself from now on, at the node of the key's slot.
        nodes: the number of each slot's node, in a byte; NEAR_NO_NUMBER: it is not known."""
        if PyBytes_GET_SIZE(nodes) != NEAR_SLOTS:
            raise _errors.InvalidArgument(f"there are {NEAR_SLOTS} slots")
        with cython.critical_section(self):
            self._slots = nodes
            self._node = NO_NODE
            self._generation = process_generation

    def _disarm(self):
        """From now on get() calls _get_slowly() at once."""
        self._generation = 0

    @property
    def _is_armed(self):
        """Whether _arm() was called in this process."""
        return self._generation == process_generation

    def _look(self, key, uint64_t node, missing):
        """A hit of this node: the value, None if the key is absent there, or missing."""
        stored = self._hit(key, node)
        return missing if stored is MISSING else self._decoded(stored)

    def _missed(self):
        """Count a miss."""
        cdef Op op
        enter_to_read(self._entries.handle, &op)
        count_one(self._entries.handle, COUNT_MISSES)
        leave_reading(self._entries.handle, &op)

    def _place(self, key, const uint8_t[::1] epoch not None):
        """The key in _entries under which a key is stored."""
        cdef KeyBytes place
        cdef uint64_t words[2]
        if epoch.shape[0] != 16:
            raise _errors.InvalidArgument("an epoch has 16 bytes")
        memcpy(words, &epoch[0], 16)
        self._place_at(key, words, &place)
        return PyBytes_FromStringAndSize(<const char *> place.words, 16)

    def _decode(self, bytes value not None):
        """The value that the server's bytes mean."""
        return value_decode(self._value, value)

    def _encode(self, value):
        """The bytes that mean a value."""
        cdef Span span
        if self._value.kind == VALUE_STR:
            kept = self._value._text(value, &span)
            return PyBytes_FromStringAndSize(<const char *> span.bytes, span.size)
        if self._value.kind != VALUE_BYTES:
            return bytes(self._value.encode(value))
        if not PyObject_CheckBuffer(value):
            raise TypeError(f"value must be bytes or another buffer, not {type(value).__name__}")
        return bytes(value)
