/* A reader of shmrhash's maps in plain C: opens a map, looks keys up, walks over all entries, while
 * other processes write. It never writes to the file, takes no lock that a writer waits for, and
 * needs nothing but read permission, Linux, a C11 compiler with __int128, and this file.
 *
 * docs/reference/format.md describes the format; tests/reader compares every number and offset here
 * with the definition in cython/segment, and reads maps that Python is changing.
 *
 * How a read is whole (R2). An element's header has a version and a state. A copy of key and value
 * counts only if the header was the same before and after it. A slot must still name the element
 * after the header was read. A miss counts only if the bucket's header, lock bits aside, was the
 * same before and after the search. No loop waits for a process: each has a bound.
 *
 * While a map is open here, its shared lock on one byte of the file keeps the memory of elements
 * from being given back, so a read cannot meet a hole.
 *
 * The caller decides whether to trust the file's owner, who could truncate it: that kills a reader
 * by SIGBUS. Results below are 1 (found), 0 (absent) or a negative errno.
 */
#ifndef SHMRHASH_READER_H
#define SHMRHASH_READER_H

#ifndef _GNU_SOURCE
#error "define _GNU_SOURCE before the first #include: the reader needs F_OFD_SETLK"
#endif
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#if !defined(__linux__) || __SIZEOF_POINTER__ != 8 || __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "maps exist on 64-bit little-endian Linux only"
#endif

enum {
    SHMR_LAYOUT_VERSION = 6,
    SHMR_PAGE_BYTES = 4096,
    SHMR_LINE_BYTES = 64,
    SHMR_HEADER_BYTES = 4096,
    SHMR_PROCESS_MAX = 1024,
    SHMR_CONTEXT_MAX = 4096,
    SHMR_CONTEXT_BYTES = 272,
    SHMR_DEPOT_MAX = 256,
    SHMR_SLOT_COUNT = 7,
    SHMR_LINK_SLOT = 6,
    SHMR_BUCKET_COUNT_MIN = 4,
    SHMR_ELEMENT_LIVE = 2,
    SHMR_ELEMENT_UPD = 3,
    SHMR_ELEMENT_LOCKED = 5,
    SHMR_BLOCK_READY = 1,
    SHMR_REGION_CONTEXTS = 1,
    SHMR_SPECIAL_TIMER = 2,
    SHMR_SPECIAL_KPTR = 3,
    SHMR_SPECIAL_MAX = 8,
    SHMR_SCHEMA_OFFSET = 2048,
    SHMR_SCHEMA_MAX = 1536,
    SHMR_CLASS_SMALL = 48,
    SHMR_CLASS_BLOCKS = 72,
    SHMR_CLASS_COUNT = 85,
    SHMR_EVEN_COUNT = 16,
    SHMR_BLOCK_OBJECT_MAX = 32768,
    SHMR_BLOCK_HEADER = 8,
    SHMR_RUN_HEADER = 64,
    SHMR_RUN_BYTES_MIN = 65536,
    SHMR_LENGTH_BITS = 30,
    SHMR_PIN_MAX = 65536,
    SHMR_OBJECTS_HEADER_BYTES = 12288,
    SHMR_BLOCK_BYTES_SMALL = 16384,
    SHMR_BLOCK_BYTES_LARGE = 65536,
    SHMR_POOL_BYTES_SMALL = 67108864,
    SHMR_BLOCK_SHARE = 2048,
    SHMR_REST_SHARE = 64,
    SHMR_BLOCK_CAPACITY_MAX = 4095,
    SHMR_PARKED_MAX = 255,
    SHMR_LINE_SPARE_COUNT = 16384,
    SHMR_READER_BYTE = 2 * SHMR_PROCESS_MAX + 1,
    SHMR_KEY_INLINE_MAX = 15,
    SHMR_KEY_IS_LONG = 255,
    SHMR_TRIES_MAX = 100000 /* of one read; then -EAGAIN */
};
#define SHMR_MAGIC 0x31485352524D4853ULL
#define SHMR_LOCK_MASK 0xFFFFULL
#define SHMR_LINK_BASE 0xF0000000ULL
#define SHMR_LENGTH_MAX 0xFFFFFC0ULL
#define SHMR_OBJECT_INDEX_MAX 0xFFFFFFFFULL
#define SHMR_SEGMENT_BYTES_MAX 0x400000000000ULL
#define SHMR_RING_ENTRIES_MAX 4096
#define SHMR_RING_ENTRIES_MIN 16
#define SHMR_RING_BYTES_MAX 1048576

typedef struct { uint32_t kind, offset; } shmr_field_place;
typedef struct { uint64_t lock, usable, allocated, _reserved[5]; } shmr_region;
typedef struct { uint64_t frontier, hint, kept_block, ready_count, releases, _reserved[3]; } shmr_pool;

typedef struct {
    uint64_t magic;
    uint32_t layout_version, header_bytes, key_size, value_size;
    uint64_t max_entries;
    uint32_t map_flags, map_extra, depot_count, ephemeral;
    uint64_t seeds[4];
    uint64_t segment_bytes, checksum, frozen, starving, clearing, waited, max_bytes;
    uint32_t field_count, schema_bytes;
    shmr_field_place fields[8];
    uint64_t created_ns, features, fields_checksum, _reserved_a, sweep_rest, sweep;
    uint64_t table, fences, _reserved_b[6];
    uint64_t credits, _reserved_c[7];
    shmr_region regions[6];
} shmr_header; /* its beginning, as far as a reader needs it */

typedef struct {
    uint64_t header;
    uint32_t tags[7], indices[7];
} shmr_bucket;

typedef struct { shmr_region words; shmr_pool pool; } shmr_object_class;
typedef struct {
    uint64_t budget, _reserved_a[7], pins_active, pins_hint, retirements, _reserved_b[5];
    shmr_region pins;
    shmr_object_class classes[85];
} shmr_objects;

typedef struct { uint64_t stride, capacity, block_bytes, block_count, count; } shmr_blocks;

typedef struct {
    const uint8_t *base;
    const shmr_header *header;
    int fd;
    uint64_t bytes, key_size, value_size, key_words, value_words, depot_count;
    uint64_t bucket_max, context_stride, timer_word; /* word of the deadline, plus 1; or 0 */
    shmr_blocks elements, lines, classes[85];
    uint64_t contexts_at, buckets_at, lines_at, elements_at, objects_at;
    uint64_t class_words_at[85], class_words_bytes[85], class_at[85];
    uint64_t seeds[4];
} shmr_map;

/* ---- small things ---- */

#define shmr_relaxed(p) __atomic_load_n((p), __ATOMIC_RELAXED)
#define shmr_acquire(p) __atomic_load_n((p), __ATOMIC_ACQUIRE)
/* Keeps the loads before it before those after it: pairs with the release fences of writers. */
#define shmr_fence() __atomic_thread_fence(__ATOMIC_ACQUIRE)

static inline uint64_t shmr_up(uint64_t value, uint64_t multiple)
{
    return (value + multiple - 1) / multiple * multiple;
}

static inline uint64_t shmr_tail(const uint8_t *at, uint64_t size)
{
    uint64_t word = 0;
    if (size >= 8)
        memcpy(&word, at, 8);
    for (uint64_t i = 0; size < 8 && i < size; i++)
        word |= (uint64_t)at[i] << (8 * i);
    return word;
}

static inline uint64_t shmr_fold(uint64_t a, uint64_t b)
{
    __extension__ typedef unsigned __int128 shmr_u128;
    shmr_u128 product = (shmr_u128)a * b;
    return (uint64_t)product ^ (uint64_t)(product >> 64);
}

static inline uint32_t shmr_hash(const shmr_map *map, const void *key)
{
    const uint64_t *s = map->seeds;
    const uint8_t *at = key;
    uint64_t left = map->key_size, state;
    if (left == 8 || left == 4) {
        state = shmr_fold(shmr_tail(at, left) ^ s[0], 0x9E3779B97F4A7C15ULL) ^ s[2];
    } else {
        state = s[2] ^ left;
        for (; left > 16; at += 16, left -= 16)
            state = shmr_fold(shmr_tail(at, 8) ^ s[0], shmr_tail(at + 8, 8) ^ state);
        state = shmr_fold(shmr_tail(at, left) ^ s[0] ^ s[3],
                          (left > 8 ? shmr_tail(at + 8, left - 8) : 0) ^ state) ^ s[0];
    }
    state = shmr_fold(state, s[1]);
    return (uint32_t)(state ^ state >> 32);
}

static inline uint32_t shmr_reversed(uint32_t bits)
{
    uint32_t result = 0;
    for (int i = 0; i < 32; i++)
        result |= (bits >> i & 1) << (31 - i);
    return result;
}

static inline uint32_t shmr_level1(uint64_t bucket_header) { return bucket_header >> 16 & 0x3F; }
static inline uint32_t shmr_state(uint64_t element_header) { return element_header >> 16 & 7; }

static inline const shmr_bucket *shmr_line(const shmr_map *map, uint64_t part, uint64_t index)
{
    return (const shmr_bucket *)(map->base + part + index * SHMR_LINE_BYTES);
}

static inline const uint64_t *shmr_element(const shmr_map *map, uint64_t index)
{
    return (const uint64_t *)(map->base + map->elements_at + index * map->elements.stride);
}

/* ---- the geometry: everything is computed from six numbers of the header ---- */

static inline uint64_t shmr_stride(uint64_t key_size, uint64_t value_size)
{
    uint64_t packed = 8 + shmr_up(key_size, 8) + shmr_up(value_size, 8), unit = 1;
    while (unit < packed)
        unit <<= 1;
    unit /= 32;
    unit = unit < 8 ? 8 : unit > SHMR_PAGE_BYTES ? SHMR_PAGE_BYTES : unit;
    return shmr_up(packed, unit);
}

static inline void shmr_blocks_of(shmr_blocks *pool, uint64_t stride, uint64_t count, int lines)
{
    uint64_t unit = SHMR_PAGE_BYTES, groups = 1, rest;
    for (rest = stride; rest % 2 == 0 && unit > 1; rest /= 2)
        unit /= 2;
    if (!lines)
        groups = (count * stride <= SHMR_POOL_BYTES_SMALL ? SHMR_BLOCK_BYTES_SMALL
                                                          : SHMR_BLOCK_BYTES_LARGE) / (unit * stride);
    if (groups == 0)
        groups = 1;
    while (unit * groups > SHMR_BLOCK_CAPACITY_MAX)
        groups -= 1;
    pool->stride = stride;
    pool->capacity = unit * groups;
    pool->block_bytes = pool->capacity * stride;
    pool->block_count = (count + pool->capacity - 1) / pool->capacity;
    pool->count = pool->block_count * pool->capacity;
}

/* The blocks of a class that has several objects in a block, which may leave a rest. */
static inline void shmr_class_blocks(
    shmr_blocks *pool, uint64_t bytes, uint64_t count, uint64_t max_bytes)
{
    uint64_t page = SHMR_PAGE_BYTES, block = max_bytes / SHMR_BLOCK_SHARE / page * page, capacity;
    block = block < page ? page : block > SHMR_BLOCK_BYTES_LARGE ? SHMR_BLOCK_BYTES_LARGE : block;
    while (block < 2 * bytes || block % bytes * SHMR_REST_SHARE > block)
        block += page;
    if (block / bytes > SHMR_BLOCK_CAPACITY_MAX)
        block = SHMR_BLOCK_CAPACITY_MAX * bytes / page * page;
    capacity = block / bytes;
    count = (count + capacity - 1) / capacity;
    *pool = (shmr_blocks){bytes, capacity, block, count, count * capacity};
}

static inline uint64_t shmr_class_bytes(uint32_t which)
{
    uint32_t above = which - SHMR_EVEN_COUNT;
    if (which < SHMR_EVEN_COUNT)
        return 16 * (which + 1);
    if (which < SHMR_CLASS_BLOCKS)
        return (uint64_t)(9 + above % 8) << (5 + above / 8);
    return (uint64_t)SHMR_RUN_BYTES_MIN << (which - SHMR_CLASS_BLOCKS);
}

static inline uint32_t shmr_class_of(uint64_t length)
{
    uint32_t which = length + SHMR_BLOCK_HEADER <= SHMR_BLOCK_OBJECT_MAX ? 0 : SHMR_CLASS_BLOCKS;
    uint64_t needed = length + (which ? SHMR_RUN_HEADER : SHMR_BLOCK_HEADER);
    while (which < SHMR_CLASS_COUNT && shmr_class_bytes(which) < needed)
        which++;
    return which;
}

static inline void shmr_place_objects(shmr_map *map, uint64_t max_bytes)
{
    uint64_t offset = map->bytes, count;
    map->objects_at = offset;
    offset += SHMR_OBJECTS_HEADER_BYTES;
    offset += shmr_up(map->depot_count * SHMR_CLASS_SMALL * 64, SHMR_PAGE_BYTES);
    offset += SHMR_PIN_MAX * 16;
    for (uint32_t which = 0; which < SHMR_CLASS_COUNT; which++) {
        shmr_blocks *pool = &map->classes[which];
        uint64_t bytes = shmr_class_bytes(which);
        if (which < SHMR_CLASS_BLOCKS) {
            count = max_bytes / bytes + 1;
            if (count > SHMR_OBJECT_INDEX_MAX - SHMR_BLOCK_CAPACITY_MAX)
                count = SHMR_OBJECT_INDEX_MAX - SHMR_BLOCK_CAPACITY_MAX;
            shmr_class_blocks(pool, bytes, count, max_bytes);
        } else {
            count = 2 * max_bytes / bytes + 2;
            *pool = (shmr_blocks){bytes, 1, bytes, count, count};
        }
        map->class_words_at[which] = offset;
        map->class_words_bytes[which] = shmr_up(pool->block_count * 8, SHMR_PAGE_BYTES);
        offset += map->class_words_bytes[which];
        map->class_at[which] = offset;
        offset += pool->block_count * pool->block_bytes;
    }
    map->bytes = offset;
}

static inline void shmr_place(shmr_map *map, const shmr_header *h)
{
    uint64_t offset = SHMR_HEADER_BYTES, page = SHMR_PAGE_BYTES, lines;
    uint64_t limit = h->max_entries + (uint64_t)h->depot_count * SHMR_PARKED_MAX;
    map->key_size = h->key_size;
    map->value_size = h->value_size;
    map->key_words = (map->key_size + 7) / 8;
    map->value_words = (map->value_size + 7) / 8;
    map->depot_count = h->depot_count;
    shmr_blocks_of(&map->elements, shmr_stride(map->key_size, map->value_size), 1 + limit, 0);
    lines = h->max_entries / 6 + SHMR_LINE_SPARE_COUNT;
    if (lines > 0xFFFFFFFFULL - SHMR_LINK_BASE)
        lines = 0xFFFFFFFFULL - SHMR_LINK_BASE;
    shmr_blocks_of(&map->lines, SHMR_LINE_BYTES, lines, 1);
    map->bucket_max = shmr_up(limit * 2 / 7 + 64, 64);
    map->context_stride = shmr_up(SHMR_CONTEXT_BYTES + map->value_words * 8, SHMR_LINE_BYTES);

    offset += SHMR_PROCESS_MAX * 64;
    map->contexts_at = offset;
    offset += shmr_up(SHMR_CONTEXT_MAX * map->context_stride, page);
    offset += shmr_up(map->depot_count * 64, page);
    offset += shmr_up(map->elements.block_count * 8, page);
    offset += shmr_up(map->lines.block_count * 8, page);
    map->buckets_at = offset;
    offset += shmr_up(map->bucket_max * SHMR_LINE_BYTES, page);
    map->lines_at = offset;
    offset += map->lines.block_count * map->lines.block_bytes;
    map->elements_at = offset;
    offset += map->elements.block_count * map->elements.block_bytes;
    uint64_t entry = 8 + map->key_words * 8, entries = SHMR_RING_ENTRIES_MAX; /* of the ring */
    while (entries > SHMR_RING_ENTRIES_MIN && entries * entry > SHMR_RING_BYTES_MAX)
        entries /= 2;
    map->bytes = offset + shmr_up(64 + entries * entry, page);
    if (h->max_bytes)
        shmr_place_objects(map, h->max_bytes);
}

/* ---- opening ---- */

/* Check a private copy of the header and compute the rest: 0, -EINVAL (not a map, or damaged),
 * -EPROTO (a map of another version of the format). */
static inline int shmr_examine(shmr_map *map, const shmr_header *h, uint64_t file_bytes)
{
    uint64_t sum = 0x9E3779B97F4A7C15ULL;
    if (h->magic != SHMR_MAGIC)
        return -EINVAL;
    if (h->layout_version != SHMR_LAYOUT_VERSION || h->features)
        return -EPROTO;
    for (uint64_t at = 0; at < offsetof(shmr_header, checksum); at += 8)
        sum = shmr_fold(sum ^ shmr_tail((const uint8_t *)h + at, 8), 0xD6E8FEB86659FD93ULL) + at;
    if (sum != h->checksum || !h->key_size || !h->value_size || h->key_size > 65535
        || h->value_size > 4194304 || !h->max_entries || h->max_entries > 0x80000000ULL
        || !h->depot_count || h->depot_count > SHMR_DEPOT_MAX || h->field_count > SHMR_SPECIAL_MAX
        || h->schema_bytes > SHMR_SCHEMA_MAX || h->max_bytes > SHMR_SEGMENT_BYTES_MAX)
        return -EINVAL;
    shmr_place(map, h);
    if (map->bytes != h->segment_bytes || map->bytes != file_bytes)
        return -EINVAL;
    memcpy(map->seeds, h->seeds, sizeof map->seeds);
    for (uint32_t i = 0; i < h->field_count; i++) {
        if (h->fields[i].offset % 8 || h->fields[i].offset + 8ULL > map->value_size)
            return -EINVAL;
        if (h->fields[i].kind == SHMR_SPECIAL_TIMER)
            map->timer_word = h->fields[i].offset / 8 + 1;
    }
    return 0;
}

static inline void shmr_close(shmr_map *map)
{
    if (map->base)
        munmap((void *)map->base, map->bytes);
    if (map->fd >= 0)
        close(map->fd);
    map->base = NULL;
    map->fd = -1;
}

/* Open a map by the path of its file: 0, or what open(2) and shmr_examine() say. */
static inline int shmr_open(shmr_map *map, const char *path)
{
    struct flock reader = {.l_type = F_RDLCK, .l_whence = SEEK_SET, .l_start = SHMR_READER_BYTE,
                           .l_len = 1};
    shmr_header copy;
    struct stat status;
    int result;
    memset(map, 0, sizeof *map);
    map->fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    if (map->fd < 0)
        return -errno;
    if (fcntl(map->fd, F_OFD_SETLK, &reader) || fstat(map->fd, &status)) {
        result = -errno;
    } else if (pread(map->fd, &copy, sizeof copy, 0) != (ssize_t)sizeof copy) {
        result = -EINVAL;
    } else {
        result = shmr_examine(map, &copy, (uint64_t)status.st_size);
    }
    if (!result) {
        void *base = mmap(NULL, map->bytes, PROT_READ, MAP_SHARED | MAP_NORESERVE, map->fd, 0);
        if (base != MAP_FAILED) {
            map->base = base;
            map->header = base;
            return 0;
        }
        result = -errno;
    }
    shmr_close(map);
    return result;
}

/* The JSON that describes the types of a SharedDict: its bytes, and how many; 0 if there is none. */
static inline uint32_t shmr_schema(const shmr_map *map, const char **text)
{
    *text = (const char *)map->base + SHMR_SCHEMA_OFFSET;
    return map->header->schema_bytes <= SHMR_SCHEMA_MAX ? map->header->schema_bytes : 0;
}

/* ---- reading one element ---- */

typedef struct {
    const uint64_t *element;
    uint64_t header;
} shmr_found;

static inline int shmr_unchanged(const shmr_found *found)
{
    shmr_fence();
    return shmr_relaxed(found->element) == found->header;
}

static inline void shmr_copy(void *to, const uint64_t *from, uint64_t size)
{
    for (uint64_t at = 0; at < size; at += 8) {
        uint64_t word = shmr_relaxed(from + at / 8);
        memcpy((uint8_t *)to + at, &word, size - at < 8 ? size - at : 8);
    }
}

static inline int shmr_key_equals(const shmr_map *map, const uint64_t *words, const uint8_t *key)
{
    for (uint64_t at = 0; at < map->key_size; at += 8)
        if (shmr_relaxed(words + at / 8) != shmr_tail(key + at, map->key_size - at))
            return 0;
    return 1;
}

/* Where the value of an element is: in itself, or in the redo buffer of the context that updates
 * it. NULL: in a damaged map. */
static inline const uint64_t *shmr_value(const shmr_map *map, const shmr_found *found)
{
    uint64_t owner = found->header >> 1 & 0x7FFF;
    uint64_t usable = shmr_acquire(&map->header->regions[SHMR_REGION_CONTEXTS].usable);
    if (shmr_state(found->header) != SHMR_ELEMENT_UPD)
        return found->element + 1 + map->key_words;
    if (!(found->header & 1) || owner >= SHMR_CONTEXT_MAX || (owner + 1) * map->context_stride > usable)
        return NULL;
    return (const uint64_t *)(map->base + map->contexts_at + owner * map->context_stride
                              + SHMR_CONTEXT_BYTES);
}

/* The element that a slot names, if it is in the map: 1 and found; 0: it is not; -EAGAIN: the slot
 * has changed. */
static inline int shmr_at_slot(const shmr_map *map, const uint32_t *slot, uint32_t index,
                               shmr_found *found)
{
    if (index == 0 || index >= map->elements.count)
        return 0;
    found->element = shmr_element(map, index);
    found->header = shmr_acquire(found->element);
    if (shmr_state(found->header) < SHMR_ELEMENT_LIVE || shmr_state(found->header) > SHMR_ELEMENT_LOCKED)
        return 0;
    return shmr_acquire(slot) == index ? 1 : -EAGAIN;
}

static inline int shmr_passed(uint64_t deadline)
{
    struct timespec now;
    if (!deadline)
        return 0;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec >= (int64_t)deadline;
}

static inline int shmr_expired(const shmr_map *map, const uint8_t *value)
{
    return map->timer_word && shmr_passed(shmr_tail(value + (map->timer_word - 1) * 8, 8));
}

/* ---- finding a bucket ---- */

static inline int shmr_covers(uint64_t header, uint64_t bucket, uint32_t hash)
{
    uint32_t level1 = shmr_level1(header);
    return level1 && ((hash ^ bucket) & ((1ULL << (level1 - 1)) - 1)) == 0;
}

static inline uint64_t shmr_guess(const shmr_map *map, uint32_t hash)
{
    uint64_t count = shmr_acquire(&map->header->table) >> 16;
    uint64_t mask = ~0ULL >> __builtin_clzll((count - 1) | 1), guess = hash & mask;
    if (guess >= count)
        guess &= mask >> 1;
    return guess < map->bucket_max ? guess : guess & (SHMR_BUCKET_COUNT_MIN - 1);
}

/* The bucket to search after one whose level does not cover the hash: to its parent if it does not
 * exist, else to the child for the hash. */
static inline int shmr_follow(const shmr_map *map, uint32_t hash, uint64_t header, uint64_t *at)
{
    uint32_t level1 = shmr_level1(header);
    if (level1 == 0) {
        if (*at < SHMR_BUCKET_COUNT_MIN)
            return -EBADMSG;
        *at ^= 1ULL << (63 - __builtin_clzll(*at));
    } else {
        uint64_t difference = (hash ^ *at) & ((1ULL << (level1 - 1)) - 1);
        *at = hash & ((2ULL << __builtin_ctzll(difference)) - 1);
    }
    return *at < map->bucket_max ? 0 : -EBADMSG;
}

/* ---- looking a key up ---- */

/* Search the chain of a bucket: 1 and found; 0: not there, to be validated; a negative errno. */
static inline int shmr_search(const shmr_map *map, const shmr_bucket *line, uint32_t hash,
                              const uint8_t *key, shmr_found *found)
{
    for (uint64_t turn = 0; turn <= map->lines.count; turn++) {
        uint32_t link = shmr_acquire(&line->indices[SHMR_LINK_SLOT]), last;
        for (int i = 0; i < SHMR_SLOT_COUNT; i++) {
            int result;
            if (shmr_relaxed(&line->tags[i]) != hash)
                continue;
            result = shmr_at_slot(map, &line->indices[i], shmr_acquire(&line->indices[i]), found);
            if (result == 0 || !shmr_key_equals(map, found->element + 1, key))
                continue;
            return result;
        }
        last = shmr_acquire(&line->indices[SHMR_LINK_SLOT]);
        if (last < SHMR_LINK_BASE)
            return link >= SHMR_LINK_BASE ? -EAGAIN : 0; /* the link became an element meanwhile */
        if (last - SHMR_LINK_BASE >= map->lines.count)
            return -EBADMSG;
        line = shmr_line(map, map->lines_at, last - SHMR_LINK_BASE);
    }
    return -EBADMSG;
}

static inline int shmr_find(const shmr_map *map, uint32_t hash, const uint8_t *key, shmr_found *found)
{
    uint64_t at = shmr_guess(map, hash);
    for (int tries = 0; tries < SHMR_TRIES_MAX; tries++) {
        const shmr_bucket *bucket = shmr_line(map, map->buckets_at, at);
        uint64_t header = shmr_acquire(&bucket->header);
        int result = shmr_search(map, bucket, hash, key, found);
        if (result == 1 || (result < 0 && result != -EAGAIN))
            return result;
        if (!shmr_covers(header, at, hash)) {
            if ((result = shmr_follow(map, hash, header, &at)))
                return result;
            continue;
        }
        shmr_fence();
        if (result == 0 && !((shmr_relaxed(&bucket->header) ^ header) & ~SHMR_LOCK_MASK))
            return 0;
    }
    return -EAGAIN;
}

/* Copy the value of a key: 1; 0: absent, or expired; -EAGAIN: it changed each time it was read;
 * -EBADMSG: the map is damaged. value has value_size bytes; its special fields are as stored. */
static inline int shmr_get(const shmr_map *map, const void *key, void *value)
{
    uint32_t hash = shmr_hash(map, key);
    for (int tries = 0; tries < SHMR_TRIES_MAX; tries++) {
        shmr_found found;
        const uint64_t *source;
        int result = shmr_find(map, hash, key, &found);
        if (result != 1)
            return result;
        source = shmr_value(map, &found);
        if (source)
            shmr_copy(value, source, map->value_size);
        if (shmr_unchanged(&found))
            return source ? !shmr_expired(map, value) : -EBADMSG;
    }
    return -EAGAIN;
}

/* ---- keys and values of a SharedDict that are objects ---- */

static inline void shmr_sip_rounds(uint64_t v[4], int count)
{
#define SHMR_ROTATED(x, b) ((x) << (b) | (x) >> (64 - (b)))
    while (count--) {
        v[0] += v[1], v[1] = SHMR_ROTATED(v[1], 13) ^ v[0], v[0] = SHMR_ROTATED(v[0], 32);
        v[2] += v[3], v[3] = SHMR_ROTATED(v[3], 16) ^ v[2];
        v[0] += v[3], v[3] = SHMR_ROTATED(v[3], 21) ^ v[0];
        v[2] += v[1], v[1] = SHMR_ROTATED(v[1], 17) ^ v[2], v[2] = SHMR_ROTATED(v[2], 32);
    }
#undef SHMR_ROTATED
}

/* The 16 bytes under which a SharedDict stores a key of type str or bytes: the key itself, up to 15
 * bytes, and its length; of a longer key 120 bits of SipHash-2-4 and 255. */
static inline void shmr_digest(const shmr_map *map, const void *key, uint64_t size, uint8_t out[16])
{
    const uint8_t *at = key;
    const uint64_t *s = map->seeds;
    uint64_t v[4] = {s[0] ^ 0x736F6D6570736575ULL, s[1] ^ 0x646F72616E646F6DULL ^ 0xEE,
                     s[0] ^ 0x6C7967656E657261ULL, s[1] ^ 0x7465646279746573ULL};
    uint64_t word, result[2], left = size;
    if (size <= SHMR_KEY_INLINE_MAX) {
        memset(out, 0, 16);
        memcpy(out, key, size);
        out[15] = (uint8_t)size;
        return;
    }
    for (; left >= 8; at += 8, left -= 8) {
        word = shmr_tail(at, 8);
        v[3] ^= word;
        shmr_sip_rounds(v, 2);
        v[0] ^= word;
    }
    word = (size & 0xFF) << 56 | shmr_tail(at, left);
    v[3] ^= word;
    shmr_sip_rounds(v, 2);
    v[0] ^= word;
    v[2] ^= 0xEE;
    shmr_sip_rounds(v, 4);
    result[0] = v[0] ^ v[1] ^ v[2] ^ v[3];
    v[1] ^= 0xDD;
    shmr_sip_rounds(v, 4);
    result[1] = v[0] ^ v[1] ^ v[2] ^ v[3];
    memcpy(out, result, 16);
    out[15] = SHMR_KEY_IS_LONG;
}

/* Copy the object that a word of a value refers to, from the file, where a hole does no harm: how
 * many bytes it has, copied if they fit into room; 0: it is gone. The copy counts only if the entry
 * is unchanged afterwards. */
static inline int64_t shmr_object(const shmr_map *map, uint64_t ref, void *into, uint64_t room)
{
    uint64_t length = ref & ((1ULL << SHMR_LENGTH_BITS) - 1), index = ref >> SHMR_LENGTH_BITS;
    uint32_t which = shmr_class_of(length);
    const shmr_objects *objects = (const shmr_objects *)(map->base + map->objects_at);
    const shmr_blocks *pool = &map->classes[which < SHMR_CLASS_COUNT ? which : 0];
    uint64_t block = index / (pool->capacity ? pool->capacity : 1), pages = 1, done = 0, start;
    if (!map->objects_at || length > SHMR_LENGTH_MAX || which >= SHMR_CLASS_COUNT || index >= pool->count)
        return 0;
    if ((block + 1) * 8 > shmr_acquire(&objects->classes[which].words.usable)
        || (block + 1) * 8 > map->class_words_bytes[which])
        return 0;
    start = map->class_words_at[which] + block * 8;
    if ((shmr_acquire((const uint64_t *)(map->base + start)) >> 16 & 3) != SHMR_BLOCK_READY)
        return 0;
    start = map->class_at[which] + block * pool->block_bytes + index % pool->capacity * pool->stride;
    if (which >= SHMR_CLASS_BLOCKS) {
        if (pread(map->fd, &pages, 8, (off_t)(start + 16)) != 8)
            return -EIO;
        if (length + SHMR_RUN_HEADER > (pages ? pages : 1) * SHMR_PAGE_BYTES)
            return 0;
    }
    start += which < SHMR_CLASS_BLOCKS ? SHMR_BLOCK_HEADER : SHMR_RUN_HEADER;
    while (length <= room && done < length) {
        ssize_t got = pread(map->fd, (uint8_t *)into + done, length - done, (off_t)(start + done));
        if (got <= 0)
            return got < 0 && errno == EINTR ? -EAGAIN : -EIO;
        done += (uint64_t)got;
    }
    return (int64_t)length;
}

/* Copy the object to which word number word of the value of a key refers: 1; 0: absent; a negative
 * errno, -ENOSPC if it does not fit. length is its length, room what into has; an object of no
 * bytes has the reference 0. */
static inline int shmr_get_object(const shmr_map *map, const void *key, uint64_t word, void *into,
                                  uint64_t room, uint64_t *length)
{
    uint32_t hash = shmr_hash(map, key);
    if (word >= map->value_size / 8)
        return -EINVAL;
    for (int tries = 0; tries < SHMR_TRIES_MAX; tries++) {
        shmr_found found;
        const uint64_t *source;
        uint64_t ref, deadline = 0;
        int64_t copied = 0;
        int result = shmr_find(map, hash, key, &found);
        if (result != 1)
            return result;
        source = shmr_value(map, &found);
        if (!source)
            return shmr_unchanged(&found) ? -EBADMSG : -EAGAIN;
        ref = shmr_relaxed(source + word);
        if (map->timer_word)
            deadline = shmr_relaxed(source + map->timer_word - 1);
        if (ref)
            copied = shmr_object(map, ref, into, room);
        if (!shmr_unchanged(&found) || copied == -EAGAIN)
            continue;
        if (shmr_passed(deadline))
            return 0;
        *length = (uint64_t)copied;
        return copied < 0 ? (int)copied : ref && !copied ? -EBADMSG : *length > room ? -ENOSPC : 1;
    }
    return -EAGAIN;
}

/* ---- walking over all entries ---- */

typedef struct {
    uint8_t *entries; /* of one bucket: index, key, value, as they were at one moment */
    uint64_t count, room;
} shmr_gathered;

static inline uint64_t shmr_entry_bytes(const shmr_map *map)
{
    return 8 + (map->key_words + map->value_words) * 8;
}

/* Add the entry of a slot to what a bucket has: 0, -EAGAIN (the bucket is changing), an errno. */
static inline int shmr_gather_slot(const shmr_map *map, const shmr_bucket *line, int i,
                                   uint32_t index, shmr_gathered *into)
{
    uint64_t bytes = shmr_entry_bytes(map);
    shmr_found found;
    uint8_t *entry;
    int result;
    for (uint64_t other = 0; other < into->count; other++)
        if (shmr_tail(into->entries + other * bytes, 8) == index)
            return 0; /* a writer is moving it, or died moving it: it has two slots */
    if (into->count == into->room) {
        uint64_t room = into->room ? into->room * 2 : 16;
        entry = realloc(into->entries, room * bytes);
        if (!entry)
            return -ENOMEM;
        into->entries = entry;
        into->room = room;
    }
    entry = into->entries + into->count * bytes;
    for (int tries = 0; tries < SHMR_TRIES_MAX; tries++) {
        const uint64_t *source;
        if ((result = shmr_at_slot(map, &line->indices[i], index, &found)) != 1)
            return result;
        source = shmr_value(map, &found);
        memcpy(entry, &(uint64_t){index}, 8);
        shmr_copy(entry + 8, found.element + 1, map->key_size);
        if (source)
            shmr_copy(entry + 8 + map->key_words * 8, source, map->value_size);
        if (!shmr_unchanged(&found))
            continue; /* its value was replaced, or it was deleted */
        if (!source)
            return -EBADMSG;
        into->count++;
        return 0;
    }
    return -EAGAIN;
}

/* Copy all entries of a bucket as they are at one moment: 0, -EAGAIN, an errno. */
static inline int shmr_gather(const shmr_map *map, const shmr_bucket *bucket, uint64_t header,
                              shmr_gathered *into)
{
    const shmr_bucket *line = bucket;
    into->count = 0;
    for (uint64_t turn = 0; turn <= map->lines.count; turn++) {
        uint64_t next = 0;
        for (int i = 0; i < SHMR_SLOT_COUNT; i++) {
            uint32_t index = shmr_acquire(&line->indices[i]);
            int result = 0;
            if (index >= SHMR_LINK_BASE)
                next = index;
            else if (index)
                result = shmr_gather_slot(map, line, i, index, into);
            if (result)
                return result;
        }
        if (!next) {
            shmr_fence();
            return (shmr_relaxed(&bucket->header) ^ header) & ~SHMR_LOCK_MASK ? -EAGAIN : 0;
        }
        if (next - SHMR_LINK_BASE >= map->lines.count)
            return -EBADMSG;
        line = shmr_line(map, map->lines_at, next - SHMR_LINK_BASE);
    }
    return -EAGAIN; /* in circles: the chain was changing */
}

/* Call visit(key, value, argument) for each entry that has not expired; a result other than 0 ends
 * the walk, and is returned. An entry that is in the map from the beginning of the walk to its end
 * is visited exactly once, through every resize: the walk goes through the hashes in the order of
 * their reversed bits, in which each bucket is a range. 0 at the end; -EAGAIN, -EBADMSG, -ENOMEM. */
static inline int shmr_walk(const shmr_map *map,
                            int (*visit)(const void *key, const void *value, void *argument),
                            void *argument)
{
    shmr_gathered got = {0};
    uint64_t position = 0, at = shmr_guess(map, 0), bytes = shmr_entry_bytes(map);
    int result = 0, tries = 0;
    while (!result && position < 1ULL << 32) {
        uint32_t hash = shmr_reversed((uint32_t)position);
        const shmr_bucket *bucket = shmr_line(map, map->buckets_at, at);
        uint64_t header = shmr_acquire(&bucket->header), end;
        if (!shmr_covers(header, at, hash)) {
            result = ++tries > SHMR_TRIES_MAX ? -EAGAIN : shmr_follow(map, hash, header, &at);
            continue;
        }
        result = shmr_gather(map, bucket, header, &got);
        if (result == -EAGAIN && ++tries <= SHMR_TRIES_MAX) {
            result = 0;
            if (tries % 64 == 0)
                sched_yield();
            continue;
        }
        if (result)
            break;
        for (uint64_t i = 0; i < got.count && !result; i++) {
            const uint8_t *key = got.entries + i * bytes + 8, *value = key + map->key_words * 8;
            uint32_t own = shmr_hash(map, key);
            if (shmr_covers(header, at, own) && shmr_reversed(own) >= position
                && !shmr_expired(map, value))
                result = visit(key, value, argument);
        }
        /* The range of this bucket ends where the bits of its level, reversed, do. */
        end = 1ULL << (33 - shmr_level1(header));
        position = (position & ~(end - 1)) + end;
        at = shmr_guess(map, shmr_reversed((uint32_t)position));
        tries = 0;
    }
    free(got.entries);
    return result;
}

#endif
