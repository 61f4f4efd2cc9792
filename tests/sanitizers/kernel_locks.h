/* Tells ThreadSanitizer what it cannot see. Included before all else when _race.pyx is compiled.
 *
 * First: the order that the kernel's file locks make. The functions here wrap the core's calls of
 * fcntl() and munmap(). The release of a byte's lock comes before a later test that finds the byte
 * free: so the last stores of a dead process come before those of the process that recovers it. A
 * lock is released by F_UNLCK, or with the last mapping of its open file. A thread has at most one
 * lock of the latter kind at a time, besides that of its process slot, whose end race_die()
 * announces.
 *
 * Second: reads of racing memory whose results are discarded if the bucket's version has changed
 * (walk.pxd hashes and compares the keys of elements that may be deleted and reused at the same
 * time). Here they are atomic, word by word, as they are on every machine we know.
 */
#ifndef KERNEL_LOCKS_H
#define KERNEL_LOCKS_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <Python.h> /* says whether there is a GIL, which atomics.h asks */
#include <fcntl.h>
#include <stdint.h>
#include <sys/mman.h>

#ifdef __SANITIZE_THREAD__
void __tsan_acquire(void *address);
void __tsan_release(void *address);
#else
#define __tsan_acquire(address) ((void)(address))
#define __tsan_release(address) ((void)(address))
#endif

#define RACE_BYTES 2050
#define RACE_RECOVERY_BYTE 1024

static uint64_t race_bytes[RACE_BYTES];
static __thread long race_recovering = -1;

static inline int race_fcntl(int fd, int command, struct flock *lock)
{
    long byte = lock->l_start < RACE_BYTES ? (long)lock->l_start : 0;
    int result;
    if (command == F_OFD_SETLK && lock->l_type == F_UNLCK)
        __tsan_release(&race_bytes[byte]);
    result = fcntl(fd, command, lock);
    if (result != 0)
        return result;
    if (command == F_OFD_GETLK && lock->l_type == F_UNLCK)
        __tsan_acquire(&race_bytes[byte]);
    if (command == F_OFD_SETLK && lock->l_type == F_WRLCK) {
        __tsan_acquire(&race_bytes[byte]);
        if (byte >= RACE_RECOVERY_BYTE && byte < 2 * RACE_RECOVERY_BYTE)
            race_recovering = byte;
    }
    return result;
}

static inline int race_munmap(void *address, size_t size)
{
    if (race_recovering >= 0) {
        __tsan_release(&race_bytes[race_recovering]);
        race_recovering = -1;
    }
    return munmap(address, size);
}

static inline void race_die(uint64_t process)
{
    __tsan_release(&race_bytes[process]);
}

#define shm_read_u64 shm_read_u64_plain
#include "machine/atomics.h"
#undef shm_read_u64

static inline uint64_t shm_read_u64(const void *address)
{
    if ((uintptr_t)address & 7)
        return shm_read_u64_plain(address);
    return shm_load_relaxed_u64(address);
}

static inline int race_memcmp(const void *left, const void *right, size_t size)
{
    for (size_t i = 0; i < size; i++) {
        int difference = __atomic_load_n((const uint8_t *)left + i, __ATOMIC_RELAXED)
                         - __atomic_load_n((const uint8_t *)right + i, __ATOMIC_RELAXED);
        if (difference != 0)
            return difference;
    }
    return 0;
}

#define memcmp race_memcmp
#define fcntl(fd, command, lock) race_fcntl(fd, command, lock)
#define munmap race_munmap

#endif
