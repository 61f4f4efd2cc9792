# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# The system calls and constants that the core uses, and the clock.
from libc.stdint cimport int64_t, uint32_t, uint64_t
from posix.types cimport off_t

cdef extern from "<sys/stat.h>" nogil:
    struct stat_t "stat":
        uint64_t st_dev
        uint64_t st_ino
        uint32_t st_uid
        off_t st_size
    int fstat(int fd, stat_t *result) noexcept
    int lstat(const char *path, stat_t *result) noexcept

cdef extern from "<fcntl.h>" nogil:
    struct flock_t "flock":
        short l_type
        short l_whence
        off_t l_start
        off_t l_len
        int l_pid
    int fcntl(int fd, int command, ...) noexcept
    int open(const char *path, int flags, ...) noexcept
    enum: O_RDWR
    enum: O_RDONLY
    enum: O_CLOEXEC
    enum: O_NOFOLLOW
    enum: F_WRLCK
    enum: F_RDLCK
    enum: F_UNLCK
    enum: F_OFD_GETLK
    enum: F_OFD_SETLK

cdef extern from "<unistd.h>" nogil:
    int close(int fd) noexcept
    int getpid() noexcept
    uint32_t geteuid() noexcept

cdef extern from "<sys/mman.h>" nogil:
    void *mmap(
        void *address, size_t length, int protection, int flags, int fd, off_t offset) noexcept
    int munmap(void *address, size_t length) noexcept
    int madvise(void *address, size_t length, int advice) noexcept
    int mprotect(void *address, size_t length, int protection) noexcept
    enum: PROT_READ
    enum: PROT_WRITE
    enum: MAP_SHARED
    enum: MADV_DONTFORK
    void *MAP_FAILED

cdef extern from "machine/fork_guard.h" nogil:
    void fork_guard_begin() noexcept
    void fork_guard_end() noexcept

cdef extern from "machine/futex.h" nogil:
    int futex_sleep "shm_futex_sleep" (
        const uint32_t *word, uint32_t seen, int64_t until_ns) noexcept
    void futex_wake "shm_futex_wake" (const uint32_t *word, int count) noexcept

cdef extern from "<time.h>" nogil:
    struct timespec:
        long tv_sec
        long tv_nsec
    int clock_gettime(int clock, timespec *result) noexcept
    int nanosleep(const timespec *wanted, timespec *left) noexcept
    enum: CLOCK_MONOTONIC
    enum: CLOCK_MONOTONIC_COARSE
    enum: CLOCK_REALTIME

cdef inline int64_t clock_ns(int clock) noexcept nogil:
    cdef timespec now
    clock_gettime(clock, &now)
    return <int64_t> now.tv_sec * 1000000000 + now.tv_nsec
