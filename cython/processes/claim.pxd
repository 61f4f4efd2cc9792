# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# The claim on a process slot: the word `used`, and whether the process that stored it still lives
# (C3).
#
#      63                        32  31       30      29          24 23        2 1      0
#     +----------------------------+--------+-------+--------------+-----------+--------+
#     | inode of the PID namespace | leaves | reads | registration | pid       | kind   |
#     +----------------------------+--------+-------+--------------+-----------+--------+
#
#   CLAIM_LOCKED  byte i of the file is locked for as long as the address space lives: F_OFD_GETLK
#                 tells, from every PID namespace and whether or not the pid is reused.
#   CLAIM_BY_PID  the byte could not be locked: the file cannot be opened again (privileges dropped,
#                 no descriptor left, the name gone), or a process that may read the file holds a
#                 shared lock. The process is dead when the kernel, asked from the same namespace,
#                 knows no process of that pid. A process that is a zombie, whose pid is reused or
#                 that is in another namespace counts as alive: it is recovered late, never wrongly.
#
# leaves: the process has closed the map, and keeps its slot until it ends. It does not count among
# the processes that keep an ephemeral map's name, and once it is dead it is not listed; recovery
# treats it as any other.
# reads: the process may only read; shown to people.
#
# A process that has no descriptor to ask with judges a locked claim by its pid, too. If a process
# leaves and registers again, its claim differs, because its registrations are counted.
from libc.errno cimport errno, ESRCH
from libc.stdint cimport uint32_t, uint64_t
from machine.atomics cimport static_assert
from machine.system cimport stat_t, F_RDLCK, F_OFD_GETLK
from segment.layout cimport ProcessSlot
from segment.file cimport byte_lock

cdef extern from "<sys/stat.h>" nogil:
    int stat(const char *path, stat_t *result) noexcept

cdef extern from "<signal.h>" nogil:
    int kill(int pid, int signal) noexcept

cdef enum:
    CLAIM_LOCKED = 1
    CLAIM_BY_PID = 2
    CLAIM_KIND_MASK = 3
    CLAIM_PID_MASK = 0x3FFFFF                  # the kernel's PID_MAX_LIMIT is 1 << 22
    CLAIM_COUNT_MASK = 0x3F
    CLAIM_READS = 1ULL << 30
    CLAIM_LEAVING = 1ULL << 31

cdef inline void claim_is_pinned() noexcept nogil:
    static_assert(<uint64_t> &(<ProcessSlot *> NULL).used == 0)
    static_assert(<uint64_t> &(<ProcessSlot *> NULL).recoverer == 48)

cdef inline uint64_t claim_word(
        uint32_t kind, int pid, uint32_t count, uint64_t namespace_inode) noexcept nogil:
    return (namespace_inode << 32 | <uint64_t> (count & CLAIM_COUNT_MASK) << 24
            | <uint64_t> (pid & CLAIM_PID_MASK) << 2 | kind)

cdef inline int claim_pid(uint64_t claim) noexcept nogil:
    return <int> (claim >> 2 & CLAIM_PID_MASK)

cdef inline uint64_t pid_namespace() noexcept nogil:
    """The inode of this process's PID namespace; 0 if /proc does not say."""
    cdef stat_t status
    if stat("/proc/self/ns/pid", &status) != 0:
        return 0
    return status.st_ino & 0xFFFFFFFFULL

cdef inline bint claim_can_be_judged(int fd, uint64_t claim) noexcept nogil:
    """Whether claim_is_dead can tell that the process is dead, if it is."""
    if fd >= 0 and claim & CLAIM_KIND_MASK != CLAIM_BY_PID:
        return True
    return claim_pid(claim) != 0 and claim >> 32 != 0 and claim >> 32 == pid_namespace()

cdef inline bint claim_is_dead(int fd, uint64_t index, uint64_t claim) noexcept nogil:
    """Whether the process that claimed slot index is dead. False if that cannot be known. fd:
    any open file of the segment, or -1."""
    if claim == 0:
        return False
    if fd >= 0 and claim & CLAIM_KIND_MASK != CLAIM_BY_PID:
        return byte_lock(fd, F_OFD_GETLK, F_RDLCK, index) == 0
    return (claim_can_be_judged(fd, claim)
            and kill(claim_pid(claim), 0) != 0 and errno == ESRCH)
