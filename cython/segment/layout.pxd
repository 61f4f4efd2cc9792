# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# What lies where in a segment, and what each word means. Format version 6.
#
#   header 4 KiB: words, bells (from 1,024 on), the program's schema (2,048 to 3,583); what follows
#     is reserved
#     | process slots 1024 x 64 B | contexts 4096 x (272 B + redo) | depots 64 B each
#     | element block words | line block words | buckets 64 B each | lines 64 B each | elements
#     | the ring (ring.pxd)
#     | objects of any size, in a map that has objects (classes.pxd)
#     | in a cache: head 4 KiB | counts 1024 x 128 B | ring 4 B a place | ghosts 16 B a line
#     (evict.pxd) | if its entries have tags: 65536 x 8 B (births.pxd)
#
# Every region starts on a page, at an offset that is a pure function of the geometry
# (geometry.pxd). Shared memory holds indices, never pointers. Element 0 and line 0 are never used:
# an index of 0 means "none".
#
# Lock words. All of them (bucket, element, depot, credits, block, region) share their 16 low bits:
#
#      63                          16 15            1   0
#     +------------------------------+---------------+---+
#     | payload, for each kind       | owner context | L |
#     +------------------------------+---------------+---+
#
# L set: the context named by the owner bits holds the word. No other context may store to it, and
# a waiter can find the process that the context belongs to (liveness.pxd). L clear: the owner bits
# are zero. One CAS takes a word and names its owner. Commit and release are one store, where
# possible.
#
# Payloads, from bit 16 up:
#   bucket   level+1 : 6   reserved : 2   version : 40      level+1 == 0: this bucket does not exist
#   element  state : 3     version : 45      table    bucket_count : 48, never locked
#   depot    count : 8     credit : 8      head element : 32      credits   credits : 48
#   block    state : 2     unused : 10    fresh : 12   free : 12   head : 12
#   budget   pages that blocks and runs take : 48      region, clearing   unused
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from machine.atomics cimport static_assert

cdef enum:
    LAYOUT_VERSION = 6
    PAGE_BYTES = 4096
    LINE_BYTES = 64
    HEADER_BYTES = 4096

    PROCESS_MAX = 1024
    CONTEXT_MAX = 4096         # 12 of the 15 owner bits
    CONTEXT_BYTES = 272
    DEPOT_MAX = 256

    SLOT_COUNT = 7             # an 8-byte header, 7 tags and 7 indices fill one cache line
    LINK_SLOT = 6              # the only slot that may hold a link to an overflow line
    BUCKET_COUNT_MIN = 4       # rhashtable's HASH_MIN_SIZE; buckets 0 to 3 always exist

    OWNER_SHIFT = 1
    OWNER_LIMIT = 0x7FFF
    PAYLOAD_SHIFT = 16

cdef enum:
    LOCK_BIT = 1ULL
    LOCK_MASK = 0xFFFFULL                     # lock bit and owner
    LEVEL_SHIFT = 16
    LEVEL_LIMIT = 0x3FULL
    BUCKET_VERSION_ONE = 0x1000000ULL         # 1 << 24
    STATE_SHIFT = 16
    STATE_LIMIT = 0x7ULL
    ELEMENT_VERSION_ONE = 0x80000ULL          # 1 << 19
    OBJECT_ELEMENT_SHIFT = 32
    LINK_BASE = 0xF0000000ULL                 # an index at or above it is LINK_BASE + line
    MAGIC = 0x31485352524D4853ULL             # "SHMRRSH1" in memory

# States of an element or object, and what may change them. A reader may find an element in any
# state at any time.
#   FREE    in a depot or a block's list, or never used.   -> ALLOC by the context that takes it
#   ALLOC   belongs to the owner context, not reachable.                     -> LIVE, FREE
#   LIVE    a complete entry.   -> UPD, ULOCK, LOCKED by a CAS of any writer; DEAD under its
#           bucket's lock
#   UPD     the new value stands in the owner's redo buffer and counts from here on; the owner, or
#           the process that recovers it, copies it over the old value.      -> LIVE
#   ULOCK   the owner holds the element; the value is the old one and valid, or changes by one
#           aligned store.                                                   -> LIVE, UPD
#   LOCKED  the owner has a section open on it (F_LOCK): the value is valid and does not change.
#           -> LIVE, UPD by a CAS of the owner; DEAD under its bucket's lock, by any deletion
#   DEAD    deleted, still named by a slot or on its way to a depot.         -> FREE
#   RETIRED an object (classes.pxd) that only pins refer to.                 -> ALLOC by a CAS
# An object is only ever FREE, ALLOC, LIVE (an element has a reference to it) or RETIRED.
# Every change of state raises the version: if a header is the same in two loads, the element did
# not change state between them. (An object's header in a cache has the index of its element in
# place
# of the upper bits of the version, from LIVE on, and of a retired one a number: see words.pxd.)
cdef enum:
    ELEMENT_FREE = 0
    ELEMENT_ALLOC = 1
    ELEMENT_LIVE = 2
    ELEMENT_UPD = 3
    ELEMENT_ULOCK = 4
    ELEMENT_LOCKED = 5
    ELEMENT_DEAD = 6
    ELEMENT_RETIRED = 7

# States of a block of a pool. A HOLE has no memory; its fresh and free counts are 0. A RELEASING
# block is locked, no operation can be looking into it, and its memory may be gone.
cdef enum:
    BLOCK_HOLE = 0
    BLOCK_READY = 1
    BLOCK_RELEASING = 2

cdef enum:
    REGION_PROCESSES = 0
    REGION_CONTEXTS = 1
    REGION_ELEMENT_WORDS = 2
    REGION_LINE_WORDS = 3
    REGION_BUCKETS = 4
    REGION_RING = 5
    REGION_COUNT = 6           # regions that every map has
    REGION_PINS = 6
    REGION_OBJECT_WORDS = 7    # the first of one region for each class of objects
    REGION_MAX = 92

# Special fields of a value, declared at creation (fields.pxd). Each takes a word of the value.
cdef enum:
    SPECIAL_SPIN_LOCK = 1
    SPECIAL_TIMER = 2
    SPECIAL_KPTR = 3
    SPECIAL_REFCOUNT = 4
    SPECIAL_BIRTH = 5          # these two only in caches: see births.pxd
    SPECIAL_TAGS = 6
    SPECIAL_MAX = 8
    REF_MAX = 3                # references in a value
    NAME_MAX = 6               # objects that a context can name: new ones, then replaced ones
    LIST_GIVEN = 1ULL << 32    # of context.list_count: the list goes from the depot to its block
    SCHEMA_OFFSET = 2048       # in the header's page: the program's description of its values
    SCHEMA_MAX = 1536

cdef enum:
    KEY_BELL_COUNT = 65        # one for each class of keys, and BELL_ANY
    LOCK_BELL_COUNT = 126
    BELL_COUNT = 191           # all of them

# Parts of the format that not every segment has.
cdef enum:
    FEATURE_CELLS = 1          # a space: each value is a cell (cell.pxd), and stays where it is
    FEATURE_CACHE = 2          # elements have marks, and the words of evict.pxd follow the regions
    FEATURE_TAGS = 4           # a cache whose entries can have tags (births.pxd)
    FEATURE_WHOLE = 8          # max_bytes limits the memory of the whole segment (geometry.pxd)
    FEATURES_KNOWN = 15
    CELL_KEY_BYTES = 56        # so the header of an element and its key fill a cache line,
    CELL_BYTES = 128           # and the cell begins with the next one

cdef enum:
    CACHE_HEAD_BYTES = 4096
    GHOST_PRINTS = 7           # fingerprints in a ghost line; its last word is the next to replace
    GHOST_LINE_BYTES = 16
    TAG_SLOTS = 65536          # a tag is one of them, by its hash; none is slot 0
    ENTRY_TAGS_MAX = 4         # of 16 bits each, in one word of the value

cdef struct FieldPlace:
    uint32_t kind
    uint32_t offset            # in the value, bytes

# The operation that the owner of a bucket lock is performing. Recovery reads it, and only while the
# context still holds one of the locks that it names; a stale value means nothing.
cdef enum:
    OPERATION_NONE = 0
    OPERATION_INSERT = 1
    OPERATION_DELETE = 2
    OPERATION_SPLIT = 3
    OPERATION_MERGE = 4

# A region committed from its start up to a watermark.
#   usable     bytes that may be touched. Raised after their memory is committed, lowered before it
#              is given back.
#   allocated  bytes that may have memory. usable <= allocated; they differ only during a commit or
#              release, and after one that failed or whose process died.
cdef struct Region:
    uint64_t lock
    uint64_t usable
    uint64_t allocated
    uint64_t _reserved[5]

# Blocks of a pool. The frontier only rises, and no READY block lies at or beyond it. releases only
# rises, and may be too high. The others are hints: a wrong value costs time, nothing else.
cdef struct Pool:
    uint64_t frontier          # blocks from here on have never been used
    uint64_t hint              # blocks below it probably have nothing free
    uint64_t kept_block        # an empty block kept for the next refill, plus one; 0 is none
    uint64_t ready_count       # committed blocks
    uint64_t releases          # blocks of which memory may have been given back, counted before
    uint64_t _reserved[3]

cdef struct Statistics:
    uint64_t grows             # splits done
    uint64_t shrinks           # merges done
    uint64_t growth_stopped    # splits given up because memory could not be had
    uint64_t recoveries        # processes recovered
    uint64_t owners_found_dead
    uint64_t operations_finished
    uint64_t operations_undone
    uint64_t recovery_ns_max
    uint64_t blocks_released
    uint64_t releases_postponed
    uint64_t _reserved[6]

cdef struct Header:
    uint64_t magic
    uint32_t layout_version
    uint32_t header_bytes
    uint32_t key_size
    uint32_t value_size
    uint64_t max_entries
    uint32_t map_flags
    uint32_t map_extra
    uint32_t depot_count
    uint32_t ephemeral
    uint64_t seeds[4]
    uint64_t segment_bytes
    uint64_t checksum          # of the bytes before it
    uint64_t frozen            # not 0: writes are refused. In a cache line that is hardly written.
    uint64_t starving          # the claim of a waiter that starves (element.pxd); 0: there is none
    uint64_t clearing          # lock word: held while a map is cleared; no key is inserted then
    uint64_t waited            # classes of keys for which a process may be waiting (bell.pxd)
    uint64_t max_bytes         # limit of the memory of objects, or of all (FEATURE_WHOLE); or 0
    uint32_t field_count
    uint32_t schema_bytes
    FieldPlace fields[8]
    uint64_t created_ns        # CLOCK_REALTIME
    uint64_t features          # FEATURE_*; a version refuses a segment with a bit it does not know
    uint64_t fields_checksum   # of the bytes from max_bytes to here; not of the schema
    uint64_t _reserved_a
    uint64_t sweep_rest, sweep     # see rest.pxd; a hint where the next sweep begins (sweep.pxd)
    uint64_t table             # bucket_count. Its own cache line, as are those below.
    uint64_t fences            # never 0 again once set: readers of objects fence (hazard.pxd)
    uint64_t _reserved_b[6]
    uint64_t credits           # lock word: entries that may still be added and are in no depot
    uint64_t _reserved_c[7]
    Region regions[6]
    Pool element_pool
    Pool line_pool
    Statistics statistics
    uint64_t key_bells[KEY_BELL_COUNT]     # futex words with tags (bell.pxd)
    uint32_t lock_bells[LOCK_BELL_COUNT]   # futex words

# The beginning of the ring's region; its entries follow (ring.pxd).
cdef struct Ring:
    uint64_t next              # the number of the next entry
    uint64_t losses            # how often changes may have been made without an entry
    uint64_t _reserved[6]

# context.target, in the end of several sections (journal.pxd):
#
#     COMMITTED : 1   REMOVES : 1   unused : 14   lead's context + 1, or 0 : 16   element : 32
cdef enum:
    TARGET_LEAD_SHIFT = 32
    TARGET_LEAD_LIMIT = 0xFFFFULL
    JOURNAL_REMOVES = 1ULL << 62      # the member's key is to be deleted
    JOURNAL_COMMITTED = 1ULL << 63    # in the lead's context: the journal counts

# One attached process, or a dead one that is not recovered yet.
cdef struct ProcessSlot:
    uint64_t used              # 0 free; else the claim of a process (claim.pxd). Taken by CAS.
    uint64_t pid               # as its own PID namespace shows it; for people only
    uint64_t attached_ns       # CLOCK_REALTIME
    uint64_t namespace_inode   # of that PID namespace; for people only
    char command[16]           # for people only
    uint64_t recoverer         # changes : 48; process slot + 1 of its recoverer, or 0 : 16
    uint64_t waiting           # classes of keys for which its threads wait (bell.pxd)

# The state of one thread's operation: its owner, and what it may own. Only the owner writes it, in
# program order; recovery reads it after the owner's death. A field that names a thing only tells
# recovery where to look: the thing's own lock word says whether this context owns it.
cdef struct Context:
    uint64_t owner             # 0 free; process slot + 1. Taken by CAS.
    uint64_t activity          # odd inside an operation: then its thread may hold any index
    uint64_t operation         # OPERATION_*
    uint64_t bucket            # locked for operation; the parent of a split or merge
    uint64_t element           # ALLOC with a credit, or DEAD; this context's
    uint64_t target            # UPD, ULOCK or LOCKED by this context; and its journal, see below
    uint64_t line              # ALLOC by this context: on its way into a chain or out of one
    uint64_t line_stash        # first of a list, through words[0], of lines ALLOC by this context
    uint64_t _reserved
    uint64_t child             # of a split or merge; of a claim: see claiming.pxi
    uint64_t depot             # depot locked, plus 1
    uint64_t block             # block word locked: index * 128 + kind of its pool + 1
    uint64_t list_head, list_tail    # objects on their way between a block and the locked depot
    uint64_t list_count        # of that list, and LIST_GIVEN or not; 0: there is none
    uint64_t credit_moving     # 1: credits are moving between the locked depot and the header
    uint64_t credit_after      # the depot's credit when they have moved
    uint64_t region            # region locked, plus 1
    uint64_t activity_before   # activity when the owner took the context; each operation adds 2
    uint64_t batched           # keys that this owner's batches handled, beyond one for each batch
    uint64_t waits             # how often this owner's operations had to wait for a lock
    uint64_t debt              # pages to refund to the budget * 2 + (1: owned_refs may be in use)
    uint64_t owned_refs[6]     # references to objects: see NAME_MAX and reference.pxd
    uint64_t charged           # pages of the block that is held, or of the run that grows
    uint64_t budget_after      # while the budget changes: (its next value + 1) * 2 + (1: a refund)
    uint64_t pages_wanted      # of the object that grows: pages * 8 + its slot in owned_refs
    uint64_t active_ns         # CLOCK_REALTIME when taken, when given back, and sometimes between
    uint64_t hazard            # the object that this context reads, or read last (hazard.pxd)
    uint64_t fences            # not 0: this owner or an earlier one has seen header.fences set
    # The redo buffer follows: value_size bytes, rounded up to 8.

cdef struct Bucket:
    uint64_t header
    uint32_t tags[7]           # 32 bits of the key's hash
    uint32_t indices[7]        # 0 empty; an element; in the last slot a link

# An overflow line has a bucket's shape, so that one function searches both. Its header is a lock
# word with the line's state, like an element's; the free list runs through the word after it.
cdef struct Element:
    uint64_t header
    uint64_t words[1]          # key, padded to 8; value, padded to 8. In FREE: next in list.

cdef struct Depot:
    uint64_t word
    uint64_t _reserved[7]

# What a cache knows of an entry, behind the value in its element. Only hints: every value of every
# field is allowed (evict.pxd).
cdef struct Mark:
    uint8_t uses               # reads since the hand or the ring passed, up to USES_MAX. Any reader
    uint8_t kept               # 0: a new entry, noted in the ring; 1: the hand decides. Evictors
    uint16_t cost              # how long the value took to compute (evict.pxd). Claimants
    uint32_t place             # in the ring, its low 32 bits. The inserter

# The first page of what a cache has. Each word has a cache line. The first three are hints; the
# others say which entries are outdated (births.pxd).
cdef struct CacheHead:
    uint64_t head              # places of the ring before it are used up
    uint64_t _reserved_a[7]
    uint64_t tail              # the next place of the ring
    uint64_t _reserved_b[7]
    uint64_t hand              # the element that the hand looks at next, modulo their number
    uint64_t block_hand        # where a choice among equal blocks begins (evict_block.pxd)
    uint64_t _reserved_c[6]
    uint64_t invalidations     # how many have begun. Those who invalidate
    uint64_t _reserved_d[7]
    uint64_t cleared           # the number of the last one that was for all entries; it only rises
    uint64_t _reserved_e[7]

# What one process slot's processes counted (cache.pxi has the places). Only the slot's process
# stores to it.
cdef struct CacheCounts:
    uint64_t hits
    uint64_t misses
    uint64_t evicted_new       # evicted as new, by the ring
    uint64_t evicted_kept      # evicted by the hand
    uint64_t evicted_expired   # found expired by either
    uint64_t unreadable
    uint64_t computed          # by claimants (get_or_compute)
    uint64_t waited            # lookups that waited for a claimant's result
    uint64_t sets              # values stored by set(), add() and replace()
    uint64_t rejected          # values that did not fit
    uint64_t taken_over        # claims that came free without a value while another waited for it
    uint64_t stolen            # claims that were cut off because they took too long
    uint64_t not_stored        # computed values that did not fit, or were invalidated before
    uint64_t computing_ns      # from a claim to its result
    uint64_t stale_hits        # hits after the ttl of a value that was being computed again
    uint64_t evicted_block     # evicted so that their block could go


cdef inline void layout_is_pinned() noexcept nogil:
    static_assert(sizeof(Bucket) == 64)
    static_assert(<uint64_t> &(<Bucket *> NULL).tags == 8)
    static_assert(<uint64_t> &(<Bucket *> NULL).indices == 36)
    static_assert(sizeof(Context) == CONTEXT_BYTES)
    static_assert(<uint64_t> &(<Context *> NULL).activity == 8)
    static_assert(sizeof(ProcessSlot) == 64)
    static_assert(sizeof(Depot) == 64)
    static_assert(sizeof(Ring) == 64)
    static_assert(sizeof(Mark) == 8)
    static_assert(sizeof(CacheCounts) == 128)
    static_assert(<uint64_t> &(<CacheHead *> NULL).tail == 64)
    static_assert(<uint64_t> &(<CacheHead *> NULL).hand == 128)
    static_assert(<uint64_t> &(<CacheHead *> NULL).invalidations == 192)
    static_assert(<uint64_t> &(<CacheHead *> NULL).cleared == 256)
    static_assert(sizeof(Region) == 64)
    static_assert(sizeof(Pool) == 64)
    static_assert(sizeof(Statistics) == 128)
    static_assert(<uint64_t> &(<Header *> NULL).seeds == 48)
    static_assert(<uint64_t> &(<Header *> NULL).checksum == 88)
    static_assert(<uint64_t> &(<Header *> NULL).frozen == 96)
    static_assert(<uint64_t> &(<Header *> NULL).waited == 120)
    static_assert(<uint64_t> &(<Header *> NULL).max_bytes == 128)
    static_assert(<uint64_t> &(<Header *> NULL).fields_checksum == 224)
    static_assert(<uint64_t> &(<Header *> NULL).sweep == 248)
    static_assert(<uint64_t> &(<Header *> NULL).table == 256)
    static_assert(<uint64_t> &(<Header *> NULL).fences == 264)
    static_assert(<uint64_t> &(<Header *> NULL).credits == 320)
    static_assert(<uint64_t> &(<Header *> NULL).regions == 384)
    static_assert(<uint64_t> &(<Header *> NULL).element_pool == 768)
    static_assert(<uint64_t> &(<Header *> NULL).statistics == 896)
    static_assert(<uint64_t> &(<Header *> NULL).key_bells == 1024)
    static_assert(<uint64_t> &(<Header *> NULL).lock_bells == 1544)
    static_assert(sizeof(Header) == SCHEMA_OFFSET)
