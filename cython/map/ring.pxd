# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# The ring: the keys of the last changes, for processes that watch everything.
#
# While a process watches everything, header.waited has every bit (bell.pxd), and each writer notes
# its key in the ring, after its commit and before it rings the bells. The ring says which keys to
# look at, not what became of them: a watcher looks each one up. So the order of the entries does
# not matter, and of two notes for one key the later look tells what both stand for.
#
#   ring.next     the number of the next entry; entry n lies at place n % ring_entries
#   ring.losses   how often changes may have been made without an entry
#   entry         stamp : 8 bytes   key
#
# The stamp is a lock word (layout.pxd) with the payload n + 1; 0 is no entry.
#
#   writer                                       watcher, which has read every entry before n
#   1 takes the number n from ring.next          a  n < ring.next, or there is nothing to read
#   2 stamp: an earlier entry -> n, held: a CAS  b  loads the stamp: n, and not held
#   3 stores the key                             c  copies the key
#   4 stamp: n, not held                         d  loads the stamp again: it is unchanged
#
# If b or d finds another stamp, a later entry has the place: the watcher was overrun. If it finds
# an earlier stamp or a held one, the entry is not whole yet, or never will be: if a stopped writer
# holds the place, 2 fails, and the writer goes on without an entry. The watcher waits for a while,
# and then counts that as a loss. A loss is told to the program, which then looks at the whole map;
# the watcher goes on from where ring.next stood before. So a writer never waits, and nothing is
# hidden: each change is committed before its number is taken, and so before the look at the map.
#
# Deaths. A writer that is killed between its commit and 4 was inside an operation: its recovery
# releases what it held here, and counts a loss. Watchers look for such dead processes after every
# slice.
#
# Beginning. The watcher sees that the ring has memory, loads ring.losses, sets the bits of waited
# (in the other order, a bit that was cleared between the two could have had its loss counted
# before), loads ring.next, and then waits for every operation that is under way: it may have read
# waited before the bits were set. An operation that does not end soon (its process is stopped) is
# remembered, and counts as a loss when it ends. A process that has cleared bits of waited and finds
# that another one still watches sets them again and counts a loss. At every loss a watcher begins
# again.
from libc.stdint cimport uint64_t, uint8_t
from machine.atomics cimport (
    add_seq_cst_u64, cas_acq_rel_u64, copy_in, copy_out, fence_acquire, fence_release,
    load_acquire_u64, load_relaxed_u64, load_seq_cst_u64, store_release_u64,
)
from machine.hashing cimport hash_key
from segment.status cimport Status, OK, ABSENT, RETRY
from segment.layout cimport PAYLOAD_SHIFT, REGION_RING, Ring
from segment.words cimport lock_bits, word_held_by, word_locked
from segment.geometry cimport Map, region_usable
from memory.operation cimport Op
from memory.region cimport region_commit


cdef inline bint ring_is_there(Map *map) noexcept nogil:
    """Whether the ring has memory: a process has watched everything."""
    return region_usable(map, REGION_RING) == map.region_bytes[REGION_RING]

cdef inline uint64_t *ring_entry(Map *map, uint64_t number) noexcept nogil:
    return <uint64_t *> (
        <uint8_t *> map.ring + sizeof(Ring) + number % map.ring_entries * map.ring_stride)

cdef inline uint64_t ring_stamp(uint64_t number) noexcept nogil:
    """Of a whole entry."""
    return (number + 1) << PAYLOAD_SHIFT


# ---- writers ----

cdef inline void ring_note(Op *op, const uint8_t *key) noexcept nogil:
    """Note a key that has the hash op.hash. Nothing waits."""
    cdef Map *map = op.map
    cdef uint64_t number, seen
    cdef uint64_t *entry
    if not ring_is_there(map):                 # its first watcher has not set the bits yet
        return
    # After the commit; pairs with the load in ring_next.
    number = add_seq_cst_u64(&map.ring.next, 1)
    entry = ring_entry(map, number)
    seen = load_relaxed_u64(entry)
    if word_locked(seen) or seen > ring_stamp(number):
        return
    # Acquire: after the key that the last writer stored; pairs with the release below.
    if not cas_acq_rel_u64(entry, seen, ring_stamp(number) | lock_bits(op.self_index)):
        return
    # The held stamp before the key; pairs with the fence in ring_read.
    fence_release()
    copy_in(entry + 1, key, map.key_size)
    # Another thread may have changed the caller's key since it was hashed: then the entry is never
    # whole.
    if hash_key(map.seeds, <const uint8_t *> (entry + 1), map.key_size) != op.hash:
        number = ~<uint64_t> 0                 # stamp 0
    # Release: the key; pairs with the acquire in ring_read.
    store_release_u64(entry, ring_stamp(number))

cdef inline void ring_note_called(void *op, const uint8_t *key) noexcept nogil:
    """ring_note, as Map.ring_note calls it: a C compiler that saw it inside every write would keep
    registers for it."""
    ring_note(<Op *> op, key)


# ---- losses ----

cdef inline void ring_lose(Map *map) noexcept nogil:
    """Changes may have been made without an entry."""
    if ring_is_there(map):
        # After the changes; pairs with the load in ring_losses.
        add_seq_cst_u64(&map.ring.losses, 1)

cdef inline void ring_recover(Op *op) noexcept nogil:
    """The context of op died inside an operation, and what it changed is committed or undone."""
    cdef Map *map = op.map
    cdef uint64_t number
    if not ring_is_there(map):
        return
    for number in range(map.ring_entries):
        if word_held_by(load_relaxed_u64(ring_entry(map, number)), op.self_index):
            # Release: the stores of the dead process; pairs with the CAS in ring_note.
            store_release_u64(ring_entry(map, number), 0)
    ring_lose(map)


# ---- watchers ----

cdef inline Status ring_open(Op *op) noexcept nogil:
    """See that the ring has memory. OK, NO_MEMORY; BUSY: call again."""
    if ring_is_there(op.map):
        return OK
    return region_commit(op, REGION_RING, op.map.region_bytes[REGION_RING])

cdef inline uint64_t ring_next(Map *map) noexcept nogil:
    """The number of the next entry."""
    # After the bits of waited, and the bell; pairs with the number that a writer takes.
    return load_seq_cst_u64(&map.ring.next)

cdef inline uint64_t ring_losses(Map *map) noexcept nogil:
    # As in ring_next; pairs with ring_lose.
    return load_seq_cst_u64(&map.ring.losses)

cdef inline Status ring_read(Map *map, uint64_t number, uint8_t *key) noexcept nogil:
    """Copy the key of an entry below ring.next. RETRY: it is not whole. ABSENT: it is gone."""
    cdef uint64_t *entry = ring_entry(map, number)
    # Acquire: the key; pairs with the release in ring_note.
    cdef uint64_t seen = load_acquire_u64(entry)
    if seen != ring_stamp(number):
        return ABSENT if seen >> PAYLOAD_SHIFT > number + 1 else RETRY
    copy_out(key, entry + 1, map.key_size)
    # The key before the stamp again; pairs with the fence in ring_note.
    fence_acquire()
    return OK if load_relaxed_u64(entry) == seen else ABSENT
