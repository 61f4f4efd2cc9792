/* Ringing, out of line: a C compiler that saw it inside every write would keep registers for it.
 * bell.pxd has the protocol. */
#ifndef SHM_BELL_H
#define SHM_BELL_H

#include "machine/futex.h"

enum {
    SHM_SLEEPING = 1,          /* of a bell: a thread sleeps on it, or is about to */
    SHM_BELL_NUMBER_ONE = 2,
    SHM_WAIT_CLASSES = 64,     /* a bit for each in the word waited, and a key bell */
    SHM_BELL_ANY = 64,         /* the last of the key bells: for waiters for several keys */
    SHM_LOCK_BELLS = 126,      /* by element */
};

/* The class of a key's hash, or of the element of a section. */
static inline uint64_t shm_class_of(uint32_t number)
{
    return UINT64_C(1) << (number % SHM_WAIT_CLASSES);
}

/* The tag of a key's hash: up to three of the upper 32 bits of a key bell, as in a Bloom filter. */
static inline uint64_t shm_tag_of(uint32_t hash)
{
    return (UINT64_C(1) << (32 + (hash >> 6) % 32)) | (UINT64_C(1) << (32 + (hash >> 11) % 32)) |
           (UINT64_C(1) << (32 + (hash >> 16) % 32));
}

/* Which of the key bells a key's hash has, and which of the lock bells an element. */
static inline uint32_t shm_key_bell_of(uint32_t hash)
{
    return hash % SHM_WAIT_CLASSES;
}

static inline uint32_t shm_lock_bell_of(uint32_t element)
{
    return element % SHM_LOCK_BELLS;
}

/* The half of a key bell that is a futex word: number and SLEEPING. */
static inline uint32_t *shm_bell_futex(uint64_t *key_bell)
{
    return (uint32_t *)key_bell;               /* the lower half: the machine is little-endian */
}

/* Wake all sleepers of a key bell, if there may be one for a key with this tag (0: for any key).
 * Adding 1 clears SLEEPING, changes the number, and leaves the tags: they count only beside
 * SLEEPING. If another ringer was faster, SLEEPING may be set although no thread sleeps, which costs
 * one useless ring later. Returns whether it was rung. */
static inline int shm_key_bell_ring(uint64_t *bell, uint64_t tag)
{
    /* After the CAS that took the lock word of the change; pairs with key_bell_arm. */
    uint64_t seen = __atomic_load_n(bell, __ATOMIC_SEQ_CST);
    if (!(seen & SHM_SLEEPING) || (seen & tag) != tag)
        return 0;
    shm_futex_add_and_wake(shm_bell_futex(bell), SHM_SLEEPING, INT_MAX);
    return 1;
}

/* The same for a lock bell, or the bell of a cell: these have no tags. */
static inline int shm_lock_bell_ring(uint32_t *bell)
{
    if (!(__atomic_load_n(bell, __ATOMIC_SEQ_CST) & SHM_SLEEPING))
        return 0;
    shm_futex_add_and_wake(bell, SHM_SLEEPING, INT_MAX);
    return 1;
}

/* Wake up to count sleepers of a lock bell. SLEEPING stays for the others, and is cleared by the ring
 * that finds none. Returns how many were woken; -1: no thread sleeps. */
static __attribute__((noinline, cold, unused)) int shm_lock_bell_wake(uint32_t *bell, int count)
{
    int woken;
    if (!(__atomic_load_n(bell, __ATOMIC_SEQ_CST) & SHM_SLEEPING))
        return -1;
    woken = shm_futex_add_and_wake(bell, SHM_BELL_NUMBER_ONE, count);
    if (woken == 0)
        shm_lock_bell_ring(bell);
    return woken;
}

/* Wake one waiter for the end of a section on this element. */
static __attribute__((noinline, cold, unused)) void shm_section_ring(
    uint64_t *key_bells, uint32_t *lock_bells, uint32_t element)
{
    /* After the CAS that ended the section; pairs with lock_bell_arm. */
    if (shm_lock_bell_wake(lock_bells + shm_lock_bell_of(element), 1) == 0)
        /* It may be an event loop that waits: listener.pxd. */
        shm_key_bell_ring(key_bells + SHM_BELL_ANY, 0);
}

/* A key with this hash has changed, and the classes of waited are waited for. */
static __attribute__((noinline, cold, unused)) void shm_key_ring(
    uint64_t *key_bells, uint64_t waited, uint32_t hash)
{
    uint64_t tag = shm_tag_of(hash);
    if (!(waited & shm_class_of(hash)))
        return;
    /* A thread that listens for event loops sets no tags on BELL_ANY: the bell of the key says for
     * it whether its loops wait for the key. So that bell is rung first. */
    if (shm_key_bell_ring(key_bells + shm_key_bell_of(hash), tag))
        tag = 0;
    shm_key_bell_ring(key_bells + SHM_BELL_ANY, tag);
}

/* An element is gone: its key has changed, and a section on it, if there was one, has ended. */
static __attribute__((noinline, cold, unused)) void shm_element_ring(
    uint64_t *key_bells, uint32_t *lock_bells, uint64_t waited, uint32_t hash, uint32_t element)
{
    shm_key_ring(key_bells, waited, hash);
    if (waited & shm_class_of(element))
        shm_section_ring(key_bells, lock_bells, element);
}

#endif
