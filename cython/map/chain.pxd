# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# One bucket and its overflow lines: searching, appending, removing.
#
#     bucket   header | tags[7] | indices[7]          a line has the same shape
#                                  |   |  ...  |
#                              element element link -> line -> line
#
# A slot is empty (index 0), names an element, or, the last slot only, links to an overflow line.
# The index says which: at or above LINK_BASE it is a link, so one store turns an element's slot
# into a link and back, and no reader can mistake one for the other. If a bucket has a link, all its
# earlier slots are full, and so is every line but the last; a line holds at least two elements.
#
# Writers hold the bucket's lock. Readers hold nothing and rely on this:
#   append   the slot's index is stored last, and this store commits.
#   remove   the last element of the chain moves into the gap: its new slot is stored, the bucket's
#            version is raised, the old slot is cleared. A reader that missed the element in both
#            slots sees that the version changed, and retries.
#   a line   is unlinked, then the bucket's version is raised, then the line is emptied, and only
#            then given back. Its last element replaces the link to it. A reader that loaded that
#            link before it searched the slots beside it, and finds no link afterwards, retries: it
#            may have looked at the link's slot before the element was there.
# A process killed inside remove leaves the last element in two slots, the new one perhaps without
# the element's tag, or a line with one element. chain_repair mends these, and leaves a sound chain
# as it is.
#
# Upholds: R1, R2 (searching), W1 (a miss is validated by the bucket's version).
from libc.stdint cimport uint32_t, uint64_t, uint8_t
from machine.atomics cimport (
    load_relaxed_u64, load_acquire_u64, store_relaxed_u64, store_release_u64, load_relaxed_u32,
    load_acquire_u32, store_relaxed_u32, store_release_u32, fence_release, compiler_fence, likely,
    unlikely, count_trailing_zeros, match7, read_u64, words_equal,
)
from segment.status cimport Status, OK, ABSENT, CORRUPT, RETRY
from segment.layout cimport (
    SLOT_COUNT, LINK_SLOT, BUCKET_VERSION_ONE, LINK_BASE, ELEMENT_ALLOC, ELEMENT_LIVE, Bucket,
    Element,
)
from segment.words cimport element_state, element_header, lock_bits
from segment.geometry cimport Map, line_at, element_at, pool_object, checked_index
from memory.operation cimport Op, header_set
from memory.pool cimport pool_take

# An element found by key. header was loaded before the key was compared, and the slot still named
# the element after that: as long as the element's header stays the same, the element is in the map.
#
# After a miss index is 0 if no used slot has the hash's tag: then no key with that hash is in the
# chain. If the miss was validated (read.pxd), header and bucket are those of the bucket searched.
cdef struct Found:
    Element *element
    uint64_t header
    uint64_t bucket
    Bucket *line               # the bucket or line whose slot names it
    uint32_t slot
    uint32_t index

cdef inline bint key_matches(
        Element *element, const uint8_t *key, uint64_t key_size) noexcept nogil:
    if key_size == 8:
        return load_relaxed_u64(&element.words[0]) == read_u64(key)
    if key_size == 16:
        return load_relaxed_u64(&element.words[0]) == read_u64(key) and (
            load_relaxed_u64(&element.words[1]) == read_u64(key + 8))
    return words_equal(&element.words[0], key, key_size)

cdef inline Bucket *chain_next(Map *map, Bucket *line) noexcept nogil:
    """The line behind this one, or NULL."""
    # Acquire: pairs with the release store of the link in chain_append, which publishes the line.
    cdef uint64_t link = load_acquire_u32(&line.indices[LINK_SLOT])
    if link < LINK_BASE or link - LINK_BASE >= map.line_max:
        return NULL
    return line_at(map, link - LINK_BASE)

cdef inline bint chain_moved(Bucket *line, uint32_t link) noexcept nogil:
    """Whether link, loaded from the last slot of a line, was a link that is not there any more
    (chain_dissolve)."""
    return link >= LINK_BASE and load_acquire_u32(&line.indices[LINK_SLOT]) != link

cdef inline Status chain_find(
        Map *map, Bucket *bucket, uint32_t hash, const uint8_t *key, uint64_t key_size,
        Found *found) noexcept nogil:
    """Search a chain for key. OK: found is filled. ABSENT: the caller has to validate it. RETRY: a
    slot changed while it was being read."""
    cdef Bucket *line = bucket
    cdef uint32_t mask, slot, index, link
    cdef uint64_t turn = 0
    cdef uint64_t header
    cdef Bucket *following
    cdef Element *element
    found.index = 0
    while turn <= map.line_max:
        # Acquire: the line's tags and slots are loaded after this link.
        link = load_acquire_u32(&line.indices[LINK_SLOT])
        mask = match7(line.tags, hash)
        while mask:
            slot = count_trailing_zeros(mask)
            mask &= mask - 1
            # Acquire: pairs with the release store of the index in chain_append.
            index = load_acquire_u32(&line.indices[slot])
            if unlikely(index == 0 or index >= map.element_max):
                continue
            found.index = index
            element = element_at(map, index)
            # Acquire: pairs with the release stores of LIVE; key and value are of this version or
            # newer.
            header = load_acquire_u64(&element.header)
            if unlikely(element_state(header) - <uint32_t> ELEMENT_LIVE > 3):
                continue                       # FREE, ALLOC or DEAD
            if unlikely(not key_matches(element, key, key_size)):
                continue
            # The element may have been deleted and taken for another insertion, which has not
            # stored its slot yet: its header counts for the map only while a slot names it.
            if unlikely(load_acquire_u32(&line.indices[slot]) != index):
                return RETRY
            found.element = element
            found.header = header
            found.line = line
            found.slot = slot
            return OK
        following = chain_next(map, line)
        if following == NULL:
            # If the link has become an element, that slot may have been searched too early.
            return RETRY if unlikely(chain_moved(line, link)) else ABSENT
        line = following
        turn += 1
    return CORRUPT

cdef inline void chain_bump(Bucket *bucket) noexcept nogil:
    """Raise the version of a held bucket: earlier stores stay before it, later ones after it."""
    fence_release()
    store_relaxed_u64(&bucket.header, load_relaxed_u64(&bucket.header) + BUCKET_VERSION_ONE)
    fence_release()

cdef inline uint32_t line_used(Bucket *line) noexcept nogil:
    """How many slots of a line are used, link included; a bucket without a link may have gaps."""
    cdef uint32_t slot
    cdef uint32_t used = 0
    for slot in range(SLOT_COUNT):
        used += load_relaxed_u32(&line.indices[slot]) != 0
    return used

cdef inline Bucket *chain_last(Map *map, Bucket *bucket, Bucket **before) noexcept nogil:
    """The last line of a held chain, and the one before it (NULL for the bucket itself)."""
    cdef Bucket *line = bucket
    cdef Bucket *following
    cdef uint64_t _
    before[0] = NULL
    for _ in range(map.line_max):
        following = chain_next(map, line)
        if following == NULL:
            break
        before[0] = line
        line = following
    return line

cdef inline bint chain_links(Map *map, Bucket *bucket, uint64_t line_index) noexcept nogil:
    """Whether a held chain contains this line."""
    cdef Bucket *line = bucket
    cdef uint64_t _
    for _ in range(map.line_max):
        line = chain_next(map, line)
        if line == NULL:
            return False
        if line == line_at(map, line_index):
            return True
    return False

cdef inline bint chain_names(
        Map *map, Bucket *bucket, uint32_t index, Bucket *but_line, uint32_t but_slot,
        Found *found) noexcept nogil:
    """Whether a slot of a held chain, other than the one given, names this element."""
    cdef Bucket *line = bucket
    cdef uint64_t _
    cdef uint32_t slot
    for _ in range(map.line_max + 1):
        for slot in range(SLOT_COUNT):
            if line.indices[slot] == index and not (line == but_line and slot == but_slot):
                found.line = line
                found.slot = slot
                found.index = index
                return True
        line = chain_next(map, line)
        if line == NULL:
            return False
    return False

cdef inline Status chain_append(
        Op *op, Bucket *bucket, uint32_t index, uint32_t tag, Element *publish) noexcept nogil:
    """Store index in a slot of a held chain. publish, if not NULL, becomes LIVE just before."""
    cdef Map *map = op.map
    cdef Bucket *before = NULL
    cdef Bucket *last = chain_last(map, bucket, &before)
    cdef Bucket *line
    cdef uint64_t index_of_line
    cdef uint32_t slot
    cdef uint32_t empty = match7(last.indices, 0)
    cdef Status status
    if likely(empty):
        slot = count_trailing_zeros(empty)
        element_publish(publish)
        store_relaxed_u32(&last.tags[slot], tag)
        # Release: the tag, and all of the element; pairs with the acquire in chain_find.
        store_release_u32(&last.indices[slot], index)
        return OK
    status = line_take(op)
    if status != OK:
        return status
    index_of_line = checked_index(&map.line_pool, load_relaxed_u64(&op.context.line))
    line = line_at(map, index_of_line)
    for slot in range(SLOT_COUNT):
        store_relaxed_u32(&line.indices[slot], 0)
    store_relaxed_u32(&line.tags[0], last.tags[LINK_SLOT])
    store_relaxed_u32(&line.indices[0], last.indices[LINK_SLOT])
    # Release: the line; pairs with the acquire in chain_next. The element that stood in this slot
    # is found behind the link from here on.
    store_release_u32(
        &last.indices[LINK_SLOT], <uint32_t> (LINK_BASE + index_of_line))
    compiler_fence()
    header_set(&line.header, ELEMENT_LIVE, 0)
    compiler_fence()
    op.context.line = 0
    compiler_fence()
    # Only now that the line is in the chain: a reader may still be on it from its earlier use.
    element_publish(publish)
    store_relaxed_u32(&line.tags[1], tag)
    # Release: the tag, and all of the element; pairs with the acquire in chain_find.
    store_release_u32(&line.indices[1], index)
    return OK

cdef inline Status line_take(Op *op) noexcept nogil:
    """Take a line into context.line, from the context's own stash or else from the pool."""
    cdef uint64_t stashed = checked_index(
        &op.map.line_pool, load_relaxed_u64(&op.context.line_stash))
    if stashed == 0:
        return pool_take(op, &op.map.line_pool, &op.context.line, 0)
    op.context.line = stashed
    compiler_fence()
    op.context.line_stash = pool_object(&op.map.line_pool, stashed).words[0]
    compiler_fence()
    return OK

cdef inline void line_stash(Op *op) noexcept nogil:
    """Move context.line, unlinked and ALLOC, to the stash: no lock is needed, so it cannot fail.

    The line is emptied first: a reader may still be on it, and takes a slot that names an element
    as proof that the element is in the map (chain_find)."""
    cdef uint64_t index = checked_index(&op.map.line_pool, load_relaxed_u64(&op.context.line))
    cdef uint32_t slot
    for slot in range(SLOT_COUNT):
        store_relaxed_u32(&line_at(op.map, index).indices[slot], 0)
    compiler_fence()
    # This overwrites two tags that a reader may be comparing.
    store_relaxed_u64(&pool_object(&op.map.line_pool, index).words[0], op.context.line_stash)
    compiler_fence()
    op.context.line_stash = op.context.line
    compiler_fence()
    op.context.line = 0
    compiler_fence()

cdef inline void line_own(Op *op, Bucket *line) noexcept nogil:
    """Before a line is unlinked: name it in the context, and the context in its header."""
    op.context.line = <uint64_t> (<uint8_t *> line - op.map.lines) // sizeof(Bucket)
    compiler_fence()
    header_set(&line.header, ELEMENT_ALLOC, lock_bits(op.self_index))
    compiler_fence()

cdef inline void element_publish(Element *element) noexcept nogil:
    if element != NULL:
        # Release: key and value; pairs with the acquire of the header in chain_find.
        store_release_u64(
            &element.header, element_header(load_relaxed_u64(&element.header), ELEMENT_LIVE, 0))

cdef inline void chain_remove(
        Op *op, Bucket *bucket, Bucket *line, uint32_t slot) noexcept nogil:
    """Clear a slot of a held chain. If the chain has lines, its last element fills the slot."""
    cdef Bucket *before = NULL
    cdef Bucket *last = chain_last(op.map, bucket, &before)
    cdef uint32_t used = 0 if before == NULL else line_used(last)
    cdef uint32_t top
    if used == 0:                          # no lines, or a damaged segment
        store_relaxed_u32(&line.indices[slot], 0)
        return
    top = used - 1
    if line != last or slot != top:
        # The index before the tag: if the process is killed in between, chain_repair finds the last
        # element twice and mends the tag. In the other order the element that is being removed
        # would stay, under another element's tag.
        store_release_u32(&line.indices[slot], last.indices[top])
        store_release_u32(&line.tags[slot], last.tags[top])
        chain_bump(bucket)
    store_relaxed_u32(&last.indices[top], 0)
    if top == 1:
        chain_dissolve(op, bucket, before, last)

cdef inline void chain_dissolve(
        Op *op, Bucket *bucket, Bucket *before, Bucket *last) noexcept nogil:
    """Replace the link to the last line by the only element of that line, and stash the line."""
    line_own(op, last)
    store_relaxed_u32(&before.tags[LINK_SLOT], last.tags[0])
    # Release: the tag; pairs with the acquire in chain_find.
    store_release_u32(&before.indices[LINK_SLOT], last.indices[0])
    # A reader that is still on the line loaded the version before this bump, so its miss fails
    # validation.
    chain_bump(bucket)
    line_stash(op)

cdef inline void chain_repair(Op *op, Bucket *bucket) noexcept nogil:
    """Finish a removal that a dead process may have begun in a held chain. Idempotent."""
    cdef Bucket *before = NULL
    cdef Bucket *last = chain_last(op.map, bucket, &before)
    cdef Found twin
    cdef uint32_t used = line_used(last)
    cdef uint32_t top
    if before == NULL or used == 0:
        return
    top = used - 1
    if top > 0 and chain_names(op.map, bucket, last.indices[top], last, top, &twin):
        store_relaxed_u32(&twin.line.tags[twin.slot], last.tags[top])
        chain_bump(bucket)
        store_relaxed_u32(&last.indices[top], 0)
        top -= 1
    if top == 0:
        chain_dissolve(op, bucket, before, last)

cdef inline void chain_clear(Op *op, Bucket *bucket) noexcept nogil:
    """Empty a held chain whose bucket has no level, so that no search relies on it, and stash its
    lines."""
    cdef Bucket *line
    cdef uint64_t _
    cdef uint32_t slot, following
    for _ in range(op.map.line_max):
        line = chain_next(op.map, bucket)
        if line == NULL:
            break
        line_own(op, line)
        following = line.indices[LINK_SLOT]
        store_relaxed_u32(
            &bucket.indices[LINK_SLOT], following if following >= LINK_BASE else 0)
        chain_bump(bucket)
        line_stash(op)
    for slot in range(SLOT_COUNT):
        store_relaxed_u32(&bucket.indices[slot], 0)
