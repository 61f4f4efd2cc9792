# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# How a handle without contexts reads objects (M1).
#
# Such a handle, for example one whose process may not write the file, cannot name the object that
# it reads, so the object's memory may be given back at any moment. It never touches that memory: it
# reads the file instead, where a hole is zeros and takes no page. What it has read counts if the
# element is unchanged afterwards (element_unchanged). A read costs two system calls. If the program
# has closed the descriptor and the file cannot be opened again, the kernel copies from the mapping:
# then a hole may take a page, but never raises a signal.
from libc.stdint cimport uint64_t, uint8_t
from posix.types cimport off_t
from machine.atomics cimport load_acquire_u64
from machine.system cimport getpid
from segment.status cimport Status, OK, ABSENT, SYSTEM_ERROR
from segment.layout cimport BLOCK_READY
from segment.words cimport block_state
from segment.classes cimport ref_index, ref_length, pages_of, PoolView
from segment.geometry cimport Map, pool_object, region_usable
from segment.file cimport segment_fd
from memory.object cimport ref_pool, ref_valid, ref_bytes

cdef extern from "<unistd.h>" nogil:
    ssize_t pread(int fd, void *buffer, size_t size, off_t offset) noexcept

cdef extern from "<sys/uio.h>" nogil:
    struct iovec:
        void *iov_base
        size_t iov_len
    ssize_t process_vm_readv(
        int pid, const iovec *own, unsigned long own_count, const iovec *other,
        unsigned long other_count, unsigned long flags) noexcept


cdef inline bint peek(Map *map, const void *at, void *into, uint64_t size) noexcept nogil:
    """Copy size bytes of the mapping without touching it. False: the system refuses."""
    cdef int fd = segment_fd(map)
    cdef uint64_t done = 0
    cdef ssize_t got
    cdef iovec own, other
    while done < size:                         # each turn copies at least one byte
        if fd >= 0:
            got = pread(fd, <uint8_t *> into + done, size - done,
                        <off_t> (<const uint8_t *> at - map.base + done))
        else:
            own.iov_base = <uint8_t *> into + done
            other.iov_base = <uint8_t *> at + done
            own.iov_len = other.iov_len = size - done
            got = process_vm_readv(getpid(), &own, 1, &other, 1, 0)
        if got <= 0:
            return False
        done += <uint64_t> got
    return True

cdef inline uint64_t object_word(Map *map, const uint64_t *word) noexcept nogil:
    """A word of an object. For a handle without contexts: 0 if its memory has been given back."""
    cdef uint64_t seen = 0
    if not map.peeks:
        # Acquire: pairs with the release of the block or element that the object went through.
        return load_acquire_u64(word)
    peek(map, word, &seen, sizeof(seen))
    return seen

cdef inline Status object_peek(Map *map, uint64_t ref, void *into) noexcept nogil:
    """Copy an object, ref_length(ref) bytes. ABSENT: the object is gone, or never was;
    SYSTEM_ERROR: the system refuses."""
    cdef PoolView *pool = ref_pool(map, ref)
    cdef uint64_t block = ref_index(ref) // pool.capacity
    cdef uint64_t pages
    if not ref_valid(map, ref) or block >= region_usable(map, pool.words_region) // 8:
        return ABSENT
    # Acquire: pairs with the release of a block word; the object is at least as new as the word.
    if block_state(load_acquire_u64(pool.words + block)) != BLOCK_READY:
        return ABSENT
    if pool.capacity == 1:
        pages = object_word(map, &pool_object(pool, block).words[1])
        if pages_of(ref_length(ref)) > (pages if pages != 0 else 1):
            return ABSENT
    return OK if peek(map, ref_bytes(map, ref), into, ref_length(ref)) else SYSTEM_ERROR
