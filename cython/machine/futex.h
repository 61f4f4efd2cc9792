/* Sleeping on a word of shared memory, and waking its sleepers, by the calls of futex(2) that
 * every kernel, container and filter allows. The words lie in a file that several processes map, so
 * nothing here is FUTEX_PRIVATE. FUTEX_WAIT needs no more than read access to the word. */
#ifndef SHM_FUTEX_H
#define SHM_FUTEX_H

#include <errno.h>
#include <limits.h>
#include <linux/futex.h>
#include <stdint.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

/* Sleep while *word is seen, at most until the clock CLOCK_MONOTONIC reads until_ns. Returns 0 if it
 * was woken; else EAGAIN (the word is not seen), ETIMEDOUT, EINTR, or what a filter refuses with. */
static inline int shm_futex_sleep(const uint32_t *word, uint32_t seen, int64_t until_ns)
{
    struct timespec until = {until_ns / 1000000000, until_ns % 1000000000};
    return syscall(SYS_futex, word, FUTEX_WAIT_BITSET, seen, &until, NULL,
                   FUTEX_BITSET_MATCH_ANY) == 0 ? 0 : errno;
}

/* Add a number (1 to 2047) to *word and wake up to count of its sleepers: one system call, so a
 * process that is killed has done both or neither. Returns how many were woken. Where a filter
 * refuses the call, it is done in two, and a death between them leaves the sleepers to their
 * time limit. */
static inline int shm_futex_add_and_wake(uint32_t *word, int number, int count)
{
    /* The call can wake sleepers of a second word, if that had a certain value: here it is the same
     * word, and all ones is a value that it has once in four thousand million. */
    unsigned add = FUTEX_OP_ADD, equal = FUTEX_OP_CMP_EQ;
    long woken = syscall(SYS_futex, word, FUTEX_WAKE_OP, count, 0, word,
                         (int)FUTEX_OP(add, (unsigned)number, equal, 0xFFFu));
    if (woken >= 0)
        return (int)woken;
    __atomic_fetch_add(word, (uint32_t)number, __ATOMIC_SEQ_CST);
    woken = syscall(SYS_futex, word, FUTEX_WAKE, count, NULL, NULL, 0);
    return woken < 0 ? 0 : (int)woken;
}

/* Wake up to count sleepers of *word, and leave it as it is. */
static inline void shm_futex_wake(const uint32_t *word, int count)
{
    syscall(SYS_futex, word, FUTEX_WAKE, count, NULL, NULL, 0);
}

#endif
