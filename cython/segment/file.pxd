# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# The segment as a file: its descriptor, the locks on its bytes, and a mapping that outlives the
# descriptor.
#
# The program may close a kept descriptor (daemonizing code closes all of them), and the kernel may
# give its number to another file. So before each use of the descriptor its device and inode are
# compared, and if they differ the segment is opened again by its name. File locks are
# open-file-description locks: a file that is opened twice has two owners, even within one process.
#
# A process that may only read the file can hold shared locks on its bytes, and so keep others from
# locking a byte exclusively, but it cannot hold an exclusive lock. So F_OFD_GETLK asks with
# F_RDLCK, with which only an exclusive lock conflicts, and no code that has to make progress waits
# for a shared lock.
from libc.stdint cimport uint64_t
from libc.stdio cimport snprintf
from libc.string cimport memset
from posix.types cimport off_t
from machine.gil cimport state_lock, state_unlock
from machine.system cimport (
    stat_t, fstat, O_RDWR, O_RDONLY, O_CLOEXEC, O_NOFOLLOW, F_WRLCK, F_RDLCK, F_UNLCK, F_OFD_GETLK,
    flock_t, fcntl, open, close, PROT_READ, PROT_WRITE, MAP_SHARED, MADV_DONTFORK, mmap, munmap,
    madvise, mprotect, MAP_FAILED,
)
from segment.layout cimport PAGE_BYTES, HEADER_BYTES, PROCESS_MAX
from segment.geometry cimport Map

cdef enum:
    REMOVAL_BYTE = 2 * PROCESS_MAX
    READER_BYTE = 2 * PROCESS_MAX + 1
    PATH_BYTES = 64

cdef inline bint is_segment(const Map *map, int fd) noexcept nogil:
    cdef stat_t status
    return fd >= 0 and fstat(fd, &status) == 0 and (
        status.st_dev == map.device and status.st_ino == map.inode)

cdef inline int segment_opened(const Map *map, const char *path, int flags) noexcept nogil:
    """Open path: the new descriptor if the file is the segment; else -1."""
    cdef int fd = open(path, flags)
    if fd >= 0 and not is_segment(map, fd):
        close(fd)
        fd = -1
    return fd

cdef inline int segment_open(Map *map) noexcept nogil:
    """A new open file of the segment, or -1: through the kept descriptor, by name, or through the
    mapping, which only a privileged process may do. (The first page of a read-only handle's mapping
    is a mapping by itself if the slots and contexts behind it are writable.)"""
    cdef char path[PATH_BYTES]
    cdef int flags = (O_RDONLY if map.file_read_only else O_RDWR) | O_CLOEXEC
    cdef int fd = -1
    if is_segment(map, map.fd):                # the program may have closed map.fd and reused it
        snprintf(path, PATH_BYTES, "/proc/self/fd/%d", map.fd)
        fd = segment_opened(map, path, flags)
    if fd < 0 and map.path != NULL:
        fd = segment_opened(map, map.path, flags | O_NOFOLLOW)
    if fd < 0 and map.base != NULL:
        snprintf(path, PATH_BYTES, "/proc/self/map_files/%llx-%llx",
                 <unsigned long long> map.base,
                 <unsigned long long> (map.base + (
                     HEADER_BYTES if map.read_only and not map.file_read_only
                     else map.segment_bytes)))
        fd = segment_opened(map, path, flags)
    return fd

cdef inline int segment_fd(Map *map) noexcept nogil:
    """The kept descriptor, opened again if the program has closed it; -1 if that fails."""
    cdef int fd = map.fd
    if not is_segment(map, fd):
        state_lock()
        if map.fd == fd:                       # no other thread has opened it since
            map.fd = segment_open(map)
        fd = map.fd
        state_unlock()
    return fd

cdef inline bint header_begin(Map *map) noexcept nogil:
    """Make the header writable in a read-only mapping, before a store. The caller holds the
    GIL or the state lock, or no other thread has the mapping yet. False: the system refuses."""
    return not map.read_only or mprotect(map.header, HEADER_BYTES, PROT_READ | PROT_WRITE) == 0

cdef inline void header_end(Map *map) noexcept nogil:
    if map.read_only:
        mprotect(map.header, HEADER_BYTES, PROT_READ)

cdef inline int byte_lock(int fd, int command, int kind, uint64_t byte) noexcept nogil:
    """fcntl on one byte. After F_OFD_GETLK: 1 if the lock of another open file conflicts with one
    of this kind, 0 if none does."""
    cdef flock_t lock
    memset(&lock, 0, sizeof(lock))
    lock.l_type = <short> kind
    lock.l_start = <off_t> byte
    lock.l_len = 1
    if fcntl(fd, command, &lock) != 0:
        return -1
    if command == F_OFD_GETLK:
        return lock.l_type != F_UNLCK
    return 0

cdef inline bint byte_is_shared(int fd, uint64_t byte) noexcept nogil:
    """Whether a shared lock is what prevents an exclusive lock on this byte."""
    cdef flock_t lock
    memset(&lock, 0, sizeof(lock))
    lock.l_type = <short> F_WRLCK
    lock.l_start = <off_t> byte
    lock.l_len = 1
    return fcntl(fd, F_OFD_GETLK, &lock) == 0 and lock.l_type == F_RDLCK

cdef inline void *page_kept(int fd) noexcept nogil:
    """Map a page, not inherited by fork, that keeps the open file alive; NULL if that fails."""
    cdef void *page = mmap(NULL, PAGE_BYTES, PROT_READ, MAP_SHARED, fd, 0)
    if page == MAP_FAILED:
        return NULL
    if madvise(page, PAGE_BYTES, MADV_DONTFORK) != 0:
        munmap(page, PAGE_BYTES)
        return NULL
    return page
