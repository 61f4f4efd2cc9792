# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# Part of _core.pyx: segments as files, before and without a handle.
#
# segment_bytes and segment_prepare are for the creation of a segment, segment_holders is for
# questions about one without attaching to it, and the removal functions are for unlinking its name.

cdef extern from "machine/fork_guard.h":
    int fork_guard_install()

if generation_install() != 0 or fork_guard_install() != 0:
    raise MemoryError("pthread_atfork() has no memory for a handler")

MAGIC_BYTES = (<uint64_t> MAGIC).to_bytes(8, "little")
SCHEMA_BYTES_MAX = SCHEMA_MAX
LONG_KEY_MARK = KEY_IS_LONG    # the last byte of a stored key whose bytes are an object


cdef str os_error():
    return (<bytes> strerror(errno)).decode(errors="replace")


cdef refuse_mapping(str name, uint64_t size, const char *missing):
    """Raise the exception that says why a segment cannot be mapped."""
    cdef int number = errno
    if missing != NULL:
        raise _errors.Unsupported(_errors.missing_message(name, (<bytes> missing).decode(), number))
    raise _errors.limit_reached(name, size, number)


cdef Status compute_segment(
        Map *map, uint64_t features, uint64_t key_size, uint64_t value_size, uint64_t max_entries,
        uint64_t depot_count, uint64_t max_bytes) noexcept:
    """The geometry of a whole segment. FULL if no address space can hold it."""
    cdef Status status = geometry_compute_for(
        map, features, key_size, value_size, max_entries, depot_count)
    if status == OK and max_bytes != 0:
        status = geometry_add_objects(map, max_bytes)
    if status == OK and features & FEATURE_CACHE:
        status = geometry_add_cache(map, features)
    return status


cdef uint64_t features_of(bint is_space, bint is_cache, bint has_tags, bint whole) noexcept:
    return (FEATURE_CELLS if is_space else 0) | (FEATURE_CACHE if is_cache else 0) | (
        FEATURE_TAGS if has_tags else 0) | (FEATURE_WHOLE if whole else 0)


def segment_bytes(
        key_size, value_size, max_entries, depot_count, max_bytes=0, bint is_cache=False,
        bint has_tags=False):
    """The size in bytes of a segment with this geometry; None if no address space can hold it."""
    cdef Map map
    if compute_segment(
            &map, features_of(False, is_cache, has_tags, is_cache and max_bytes != 0), key_size,
            value_size, max_entries, depot_count, max_bytes) != OK:
        return None
    return map.segment_bytes


def cache_bytes(
        key_size, value_size, max_entries, depot_count, max_bytes, bint has_tags=False):
    """(least, entries): the least max_bytes of a cache with this geometry, and the bytes that all
    of it but objects takes at most. (0, 0) if no address space can hold it."""
    cdef Map map
    cdef uint64_t features = features_of(False, True, has_tags, True)
    if compute_segment(
            &map, features, key_size, value_size, max_entries, depot_count, max_bytes) != OK:
        return 0, 0
    entries = geometry_bytes_most(&map) - max_bytes // PAGE_BYTES * PAGE_BYTES
    geometry_limit_all(&map, features)
    return geometry_bytes_least(&map), entries


def segment_prepare(int fd, str name not None, *, uint32_t key_size, uint32_t value_size,
                    uint64_t max_entries, uint32_t map_flags, uint32_t map_extra,
                    uint32_t depot_count, bint ephemeral, bytes seeds not None, uint64_t created_ns,
                    commit, uint64_t max_bytes=0, tuple fields=(), bytes schema=b"",
                    bint is_space=False, bint is_cache=False, bint has_tags=False):
    """Fill the nameless file fd with an empty map. commit(offset, size) allocates or raises.

    fields: (kind, offset) of the special fields, which the caller has checked.
    """
    cdef Map map
    cdef Header header
    cdef uint64_t bucket_count
    cdef uint32_t region
    cdef void *base
    memset(&map, 0, sizeof(map))
    memset(&header, 0, sizeof(header))
    header.features = features_of(is_space, is_cache, has_tags, is_cache and max_bytes != 0)
    compute_segment(
        &map, header.features, key_size, value_size, max_entries, depot_count, max_bytes)
    geometry_limit_all(&map, header.features)
    bucket_count = buckets_for(&map, map_extra)
    header.key_size = key_size
    header.value_size = value_size
    header.max_entries = max_entries
    header.map_flags = map_flags
    header.map_extra = map_extra
    header.depot_count = depot_count
    header.ephemeral = ephemeral
    header.created_ns = created_ns
    header.max_bytes = max_bytes
    header.field_count = <uint32_t> len(fields)
    header.schema_bytes = <uint32_t> len(schema)
    for index in range(len(fields)):
        header.fields[index].kind, header.fields[index].offset = fields[index]
    memcpy(header.seeds, PyBytes_AS_STRING(seeds), sizeof(header.seeds))
    commit(0, HEADER_BYTES)
    commit(map.depots_offset, round_up(depot_count * LINE_BYTES, PAGE_BYTES))
    if max_bytes:
        commit(map.objects_offset, map.region_offset[REGION_PINS] - map.objects_offset)
    if is_cache:
        commit(map.cache_offset, map.cache_bytes)
    for region in range(REGION_COUNT):
        if first_bytes(&map, region, bucket_count) != 0:
            commit(map.region_offset[region], first_bytes(&map, region, bucket_count))
    base = map_aligned(map.segment_bytes, PROT_READ | PROT_WRITE, fd)
    if base == MAP_FAILED:
        refuse_mapping(name, map.segment_bytes, NULL)
    geometry_bind(&map, <uint8_t *> base)
    segment_fill(&map, &header, bucket_count)
    memcpy(map.base + SCHEMA_OFFSET, PyBytes_AS_STRING(schema), len(schema))
    munmap(base, map.segment_bytes)


def segment_holders(int fd):
    """(alive, dead, readers, ephemeral) of a segment's file, without mapping it; None if the file
    is no segment of this version or cannot be read.

    alive: how many processes live, without those at their end (process_leaves). dead: how many dead
    ones still have slots, whether they were killed or ended. readers: whether a handle for reading
    is open. Raises SegmentCorrupt if the header is damaged.
    """
    cdef Map map
    cdef Header header
    cdef stat_t file_status
    cdef Status status
    cdef ProcessSlot slots[PROCESS_MAX]
    cdef uint64_t index, size
    cdef bint gone
    alive = dead = 0
    if fstat(fd, &file_status) != 0 or pread(fd, &header, sizeof(header), 0) != sizeof(header):
        return None
    status = segment_examine(&map, &header, <uint64_t> file_status.st_size)
    if status == ABSENT or status == PRESENT:
        return None
    if status != OK:
        raise _errors.SegmentCorrupt("the header is damaged; unlink and recreate it")
    size = header.regions[REGION_PROCESSES].usable
    if size > sizeof(slots) or pread(fd, slots, size, HEADER_BYTES) != <ssize_t> size:
        return None
    for index in range(size // sizeof(ProcessSlot)):
        if slots[index].used:
            gone = claim_is_dead(fd, index, slots[index].used)
            alive += not gone and not slots[index].used & CLAIM_LEAVING
            dead += gone
    return (alive, dead, byte_lock(fd, F_OFD_GETLK, F_WRLCK, READER_BYTE) != 0,
            bool(header.ephemeral))


def removal_begin(int fd):
    """Keep processes from attaching while a name is removed, until fd is closed. False: another
    process is removing it. A process that may only read the file cannot take the lock exclusively;
    its shared lock is not waited for."""
    return (byte_lock(fd, F_OFD_SETLK, F_WRLCK, REMOVAL_BYTE) == 0
            or byte_is_shared(fd, REMOVAL_BYTE))


def removal_is_under_way(int fd):
    """Whether a process is removing the name of this file. fd must not hold REMOVAL_BYTE."""
    return byte_lock(fd, F_OFD_GETLK, F_RDLCK, REMOVAL_BYTE) == 1
