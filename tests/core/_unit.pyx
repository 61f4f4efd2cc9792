# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# Core functions that need no segment, wrapped as Python functions for the tests in this folder.
# Not part of the package.
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

cimport machine.atomics as core_atomics
cimport machine.hashing as core_hashing
cimport machine.number as core_number
cimport segment.layout as core_layout
cimport segment.words as core_words
cimport segment.classes as core_classes
cimport segment.geometry as core_geometry
cimport segment.header as core_header
cimport map.walk as core_walk
from segment.status cimport OK
from segment.classes cimport PoolView
from segment.geometry cimport Map

REGIONS = ["processes", "contexts", "element_words", "line_words", "buckets", "ring"]


# ---- atomics ----

def match7(list tags not None, uint32_t tag, uint32_t shift=0):
    """The bit mask of those of the seven tags that equal tag; the tags lie shift words after a
    boundary of 16 bytes."""
    cdef uint32_t[32] words
    cdef uint32_t *first = words
    if shift > 7:
        raise ValueError("at most 7 words")
    while <uint64_t> first & 15:
        first += 1
    for index in range(7):
        first[shift + index] = tags[index]
    return core_atomics.match7(first + shift, tag)


def multiply_fold(uint64_t a, uint64_t b):
    return core_atomics.multiply_fold(a, b)


def reverse_bits_u32(uint32_t word):
    return core_atomics.reverse_bits_u32(word)


def copy_in_and_out(bytes value not None, uint64_t offset=0):
    """Copy value, offset bytes after a word's start, into words that were all ones, and from there
    to an address with the same offset. Returns the words and one word more, and the copy with the
    bytes before and after it."""
    cdef uint64_t[32] words
    cdef char[256] private
    cdef char[256] copy
    cdef uint64_t size = len(value)
    if size + offset > 224:
        raise ValueError("at most 224 bytes")
    for index in range(32):
        words[index] = <uint64_t> -1
    memset(copy, 0xEE, 256)
    memcpy(private + 8 + offset, <char *> value, size)
    core_atomics.copy_in(words, private + 8 + offset, size)
    core_atomics.copy_out(copy + 8 + offset, words, size)
    whole = (<char *> words)[:(size + 7) // 8 * 8 + 8]
    return whole, copy[offset:offset + size + 16]


def words_equal(bytes words not None, bytes value not None, uint64_t offset=0):
    """Whether value, offset bytes after a word's start, equals the words."""
    cdef uint64_t[32] shared
    cdef char[256] private
    if len(words) > 256 or len(value) + offset > 256 or len(words) < len(value):
        raise ValueError("at most 256 bytes, and as many words")
    memcpy(shared, <char *> words, len(words))
    memcpy(private + offset, <char *> value, len(value))
    return bool(core_atomics.words_equal(shared, private + offset, len(value)))


# ---- layout ----

def sizes():
    """The size of each shared structure."""
    return {
        "Region": sizeof(core_layout.Region), "Pool": sizeof(core_layout.Pool),
        "Statistics": sizeof(core_layout.Statistics), "Header": sizeof(core_layout.Header),
        "ProcessSlot": sizeof(core_layout.ProcessSlot), "Context": sizeof(core_layout.Context),
        "Bucket": sizeof(core_layout.Bucket), "Depot": sizeof(core_layout.Depot),
    }


def word_locked(uint64_t word):
    return bool(core_words.word_locked(word))


def word_owner(uint64_t word):
    return core_words.word_owner(word)


def word_taken(uint64_t word, uint32_t context):
    return core_words.word_taken(word, context)


def word_released(uint64_t word):
    return core_words.word_released(word)


def word_held_by(uint64_t word, uint32_t context):
    return bool(core_words.word_held_by(word, context))


def bucket_level_plus1(uint64_t header):
    return core_words.bucket_level_plus1(header)


def bucket_with_level(uint64_t header, uint32_t level_plus1):
    return core_words.bucket_with_level(header, level_plus1)


def bucket_next_version(uint64_t header):
    return <uint64_t> (header + core_layout.BUCKET_VERSION_ONE)


def element_state(uint64_t header):
    return core_words.element_state(header)


def element_header(uint64_t before, uint32_t state, uint64_t lock_bits):
    return core_words.element_header(before, state, lock_bits)


def lock_bits(uint32_t context):
    return core_words.lock_bits(context)


def depot_word(uint32_t head, uint32_t count, uint32_t credit):
    return core_words.depot_word(head, count, credit)


def depot_parts(uint64_t word):
    return core_words.depot_head(word), core_words.depot_count(word), core_words.depot_credit(word)


def block_word(uint32_t state, uint32_t fresh, uint32_t free_count, uint32_t head):
    return core_words.block_word(state, fresh, free_count, head)


def block_parts(uint64_t word):
    return (core_words.block_state(word), core_words.block_fresh(word), core_words.block_free(word),
            core_words.block_head(word))


# ---- geometry ----

cdef dict pool_facts(PoolView *pool):
    return {
        "stride": pool.stride, "capacity": pool.capacity, "block_bytes": pool.block_bytes,
        "block_count": pool.block_count, "object_count": pool.object_count,
    }


def class_of(uint64_t length):
    """The class of objects of length bytes."""
    return core_classes.class_of(length)


def class_facts(uint64_t max_bytes, uint64_t depot_count):
    """The pool of each class in a map with objects, and what a depot of it parks at most."""
    cdef Map map
    memset(&map, 0xA5, sizeof(map))        # so that a field it does not set is not zero by chance
    if core_geometry.geometry_compute(&map, 8, 8, 100, depot_count) != OK:
        return None
    if core_geometry.geometry_add_objects(&map, max_bytes) != OK:
        return None
    return [
        pool_facts(&map.classes[which]) | {
            "kind": map.classes[which].kind, "reserved": map.classes[which].reserved,
            "bytes": core_classes.class_bytes(which), "depot_high": map.classes[which].depot_high,
            "has_depots": core_classes.pool_has_depots(&map.classes[which]),
        } for which in range(core_classes.CLASS_COUNT)]


def object_place(uint64_t max_bytes, uint32_t which, uint64_t index):
    """How far an object of a class lies from the first."""
    cdef Map map
    memset(&map, 0xA5, sizeof(map))
    if core_geometry.geometry_compute(&map, 8, 8, 100, 2) != OK:
        return None
    core_geometry.geometry_add_objects(&map, max_bytes)
    map.classes[which].base = NULL
    return <uint64_t> core_geometry.pool_object(&map.classes[which], index)


def run_pages_of(uint64_t length):
    """The pages of a run that holds length bytes."""
    return core_classes.pages_of(length)


def element_stride(uint64_t key_size, uint64_t value_size):
    return core_classes.element_stride(key_size, value_size)


def geometry(uint64_t key_size, uint64_t value_size, uint64_t max_entries, uint64_t depot_count):
    """The result of geometry_compute; None if no address space holds the map."""
    cdef Map map
    memset(&map, 0xA5, sizeof(map))        # so that a field it does not set is not zero by chance
    if core_geometry.geometry_compute(
            &map, key_size, value_size, max_entries, depot_count) != OK:
        return None
    return {
        "key_words": map.key_words, "value_words": map.value_words, "stride": map.stride,
        "element_max": map.element_max, "line_max": map.line_max, "bucket_max": map.bucket_max,
        "context_stride": map.context_stride, "depot_count": map.depot_count,
        "depot_high": map.depot_high, "depot_batch": map.depot_batch,
        "element_pool": pool_facts(&map.element_pool), "line_pool": pool_facts(&map.line_pool),
        "region_offset": {REGIONS[at]: map.region_offset[at] for at in range(6)},
        "region_bytes": {REGIONS[at]: map.region_bytes[at] for at in range(6)},
        "depots_offset": map.depots_offset, "lines_offset": map.lines_offset,
        "elements_offset": map.elements_offset, "segment_bytes": map.segment_bytes,
    }


# ---- field ----

def field_compute(
        uint32_t kind, uint32_t size, uint32_t operation, uint64_t operand, uint64_t bits):
    """The bits of a field after an operation."""
    cdef core_number.NumberField field
    memset(&field, 0xA5, sizeof(field))
    field.kind, field.size, field.operation, field.operand = kind, size, operation, operand
    return core_number.field_compute(&field, bits)


def field_mask(uint32_t size):
    cdef core_number.NumberField field
    field.size = size
    return core_number.field_mask(&field)


def sign_extended(uint64_t bits, uint32_t size):
    return core_number.sign_extended(bits, size)


def float_of(uint64_t bits, uint32_t size):
    return core_number.float_of(bits, size)


def bits_of(double number, uint32_t size):
    return core_number.bits_of(number, size)


# ---- hashing ----

def hash_key(tuple seeds not None, bytes key not None):
    cdef uint64_t[4] words = seeds
    return core_hashing.hash_key(words, <const uint8_t *> <char *> key, len(key))


def hash_keys(tuple seeds not None, bytes keys not None, uint64_t key_size):
    """The hashes, 4 bytes each, of keys that lie one after the other."""
    cdef uint64_t[4] words = seeds
    cdef uint64_t count = len(keys) // key_size
    cdef const uint8_t *at = <const uint8_t *> <char *> keys
    cdef uint64_t index
    hashes = bytearray(count * 4)
    cdef uint32_t *results = <uint32_t *> <char *> hashes
    for index in range(count):
        results[index] = core_hashing.hash_key(words, at + index * key_size, key_size)
    return hashes


# ---- order and walk ----

def bucket_range_last(uint64_t order, uint32_t level):
    return core_walk.bucket_range_last(order, level)


def order_next(uint64_t order, uint64_t bucket, uint64_t count):
    return core_walk.order_next(order, bucket, count)


# ---- segment ----

def bucket_level(uint64_t count, uint64_t index):
    return core_header.bucket_level(count, index)


def buckets_for(uint64_t max_entries, uint64_t presize):
    """How many buckets a map has at first for `presize` expected entries, and at most."""
    cdef Map map
    core_geometry.geometry_compute(&map, 8, 8, max_entries, 2)
    return core_header.buckets_for(&map, presize), map.bucket_max
