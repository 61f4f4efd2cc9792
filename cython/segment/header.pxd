# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# The segment as a whole: its first contents, and the examination of its header before anything in
# it is used (H1).
#
# A segment is filled while it has no name, so no other process sees it half made; the files are
# handled by shmrhash/_segment.py. The examination uses a private copy of the header: the numbers
# that decide the geometry are range-checked, everything else is computed from them and compared.
from libc.stdint cimport uint32_t, uint64_t, uint8_t
from libc.string cimport memcpy
from machine.atomics cimport multiply_fold, read_u64
from segment.status cimport Status, OK, ABSENT, PRESENT, CORRUPT
from segment.layout cimport (
    LAYOUT_VERSION, PAGE_BYTES, LINE_BYTES, HEADER_BYTES, DEPOT_MAX, BUCKET_COUNT_MIN,
    PAYLOAD_SHIFT, MAGIC, FEATURES_KNOWN, FEATURE_CACHE, FEATURE_CELLS, FEATURE_WHOLE, CELL_BYTES,
    CELL_KEY_BYTES, REGION_CONTEXTS, REGION_BUCKETS, REGION_COUNT, REGION_RING, Header,
)
from segment.words cimport bucket_with_level
from segment.classes cimport round_up
from segment.geometry cimport (
    Map, geometry_compute_for, geometry_add_objects, geometry_add_cache, geometry_limit_all,
    bucket_at,
)
from segment.fields cimport fields_place

cdef enum:
    CHECKED_BYTES = 88         # of the header, before the checksum
    KEY_SIZE_MAX = 65535       # rhashtable's key_len has 16 bits
    ENTRIES_MAX = 0x80000000   # 1 << 31, the kernel's limit
    PAIR_SIZE_LIMIT = 4194256  # key_size + value_size must stay below it: KMALLOC_MAX_SIZE of 4 MiB
                               # less 48, the kernel's struct htab_elem (measured on a 6.18 kernel)

cdef inline uint64_t header_checksum(const Header *header) noexcept nogil:
    cdef const uint8_t *at = <const uint8_t *> header
    cdef uint64_t sum = 0x9E3779B97F4A7C15ULL
    cdef uint64_t offset
    for offset in range(0, CHECKED_BYTES, 8):
        sum = multiply_fold(sum ^ read_u64(at + offset), 0xD6E8FEB86659FD93ULL) + offset
    return sum

cdef inline uint64_t fields_checksum(const Header *header) noexcept nogil:
    """A checksum of max_bytes and the special fields. The schema is not in it: it is the program's,
    and the core does not read it."""
    cdef const uint8_t *at = <const uint8_t *> &header.max_bytes
    cdef uint64_t sum = 0x9E3779B97F4A7C15ULL
    cdef uint64_t offset
    for offset in range(0, <uint64_t> &(<Header *> NULL).fields_checksum - <uint64_t> &(
            <Header *> NULL).max_bytes, 8):
        sum = multiply_fold(sum ^ read_u64(at + offset), 0xD6E8FEB86659FD93ULL) + offset
    return sum

cdef inline uint64_t buckets_for(Map *map, uint64_t entries) noexcept nogil:
    """How many buckets hold entries at the load at which growth begins."""
    cdef uint64_t count = (entries * 2 + 6) // 7
    if count < BUCKET_COUNT_MIN:
        count = BUCKET_COUNT_MIN
    return count if count < map.bucket_max else map.bucket_max

cdef inline uint64_t first_bytes(Map *map, uint32_t region, uint64_t bucket_count) noexcept nogil:
    """How many bytes of a region are committed at creation."""
    cdef uint64_t wanted = PAGE_BYTES
    if region == REGION_RING:                  # when a process first watches everything
        return 0
    if region == REGION_CONTEXTS:
        wanted = map.context_stride
    elif region == REGION_BUCKETS:
        wanted = bucket_count * LINE_BYTES
    return round_up(wanted, PAGE_BYTES)

cdef inline uint64_t bucket_level(uint64_t count, uint64_t index) noexcept nogil:
    """The level of bucket index among count: the least L with index < 2^L and index + 2^L >= count.
    """
    cdef uint64_t level = 0
    while index + (1ULL << level) < count or index >= (1ULL << level):     # at most 32 turns
        level += 1
    return level

cdef inline void segment_fill(Map *map, const Header *wanted, uint64_t bucket_count) noexcept nogil:
    """Write a new segment's contents into committed zeros. map is bound to the segment."""
    cdef Header *header = map.header
    cdef uint64_t index
    cdef uint32_t region
    memcpy(header, wanted, sizeof(Header))
    header.magic = MAGIC
    header.layout_version = LAYOUT_VERSION
    header.header_bytes = HEADER_BYTES
    header.segment_bytes = map.segment_bytes
    header.checksum = header_checksum(header)
    header.fields_checksum = fields_checksum(header)
    header.table = bucket_count << PAYLOAD_SHIFT
    header.credits = header.max_entries << PAYLOAD_SHIFT
    for region in range(REGION_COUNT):
        header.regions[region].usable = first_bytes(map, region, bucket_count)
        header.regions[region].allocated = header.regions[region].usable
    for index in range(bucket_count):
        bucket_at(map, index).header = bucket_with_level(
            0, <uint32_t> bucket_level(bucket_count, index) + 1)

cdef inline Status segment_examine(
        Map *map, const Header *header, uint64_t file_bytes) noexcept nogil:
    """Compute map's geometry from a private copy of a header.

    ABSENT: not a segment of this library; PRESENT: another layout version; CORRUPT: damaged; FULL:
    no address space could hold it.
    """
    cdef Status status
    cdef uint32_t region
    if header.magic != MAGIC:
        return ABSENT
    if header.layout_version != LAYOUT_VERSION or (
            header.features & ~<uint64_t> FEATURES_KNOWN):
        return PRESENT
    if header.fields_checksum != fields_checksum(header):
        return CORRUPT
    if header.checksum != header_checksum(header) or header.header_bytes != HEADER_BYTES:
        return CORRUPT
    if not (0 < header.key_size <= KEY_SIZE_MAX and 0 < header.value_size
            and <uint64_t> header.key_size + header.value_size < PAIR_SIZE_LIMIT
            and 0 < header.max_entries <= <uint64_t> ENTRIES_MAX
            and 0 < header.depot_count <= DEPOT_MAX
            and header.depot_count & (header.depot_count - 1) == 0):
        return CORRUPT
    status = geometry_compute_for(
        map, header.features, header.key_size, header.value_size, header.max_entries,
        header.depot_count)
    if status != OK:
        return status
    if header.max_bytes != 0:
        status = geometry_add_objects(map, header.max_bytes)
        if status != OK:
            return status
    if header.features & FEATURE_CACHE:
        status = geometry_add_cache(map, header.features)
        if status != OK:
            return status
    if header.features & FEATURE_WHOLE and not (
            header.features & FEATURE_CACHE and header.max_bytes != 0
            and geometry_limit_all(map, header.features)):
        return CORRUPT
    if not fields_place(map, header):
        return CORRUPT
    map.is_space = header.features & FEATURE_CELLS
    if map.is_space and not (header.key_size == CELL_KEY_BYTES and header.value_size == CELL_BYTES
                             and header.max_bytes == 0 and header.field_count == 0):
        return CORRUPT
    if header.segment_bytes != map.segment_bytes or file_bytes != map.segment_bytes:
        return CORRUPT
    for region in range(REGION_COUNT):
        if (header.regions[region].usable > map.region_bytes[region]
                or header.regions[region].usable % PAGE_BYTES != 0
                or header.regions[region].usable < first_bytes(map, region, BUCKET_COUNT_MIN)):
            return CORRUPT
    if not BUCKET_COUNT_MIN <= header.table >> PAYLOAD_SHIFT <= map.bucket_max or (
            header.credits >> PAYLOAD_SHIFT > header.max_entries):
        return CORRUPT
    memcpy(map.seeds, header.seeds, sizeof(map.seeds))
    return OK
