/* Ringing, out of line: a C compiler that saw it inside every write would keep registers for it.
 * bell.pxd has the protocol. */
#ifndef SHM_BELL_H
#define SHM_BELL_H

#include "machine/futex.h"

enum {
    SHM_SLEEPING = 1,          /* of a bell: somebody sleeps on it, or is about to */
    SHM_BELL_NUMBER_ONE = 2,
    SHM_WAIT_CLASSES = 64,     /* a bit for each in the word waited */
    SHM_KEY_BELLS = 128,       /* the bells 0 to 127: by hash */
    SHM_LOCK_BELLS = 127,      /* the bells 128 to 254: by element */
    SHM_BELL_ANY = 255,
};

/* The class of a key's hash, or of the element of a section. */
static inline uint64_t shm_class_of(uint32_t number)
{
    return UINT64_C(1) << (number % SHM_WAIT_CLASSES);
}

static inline uint32_t *shm_key_bell(uint32_t *bells, uint32_t hash)
{
    return bells + hash % SHM_KEY_BELLS;
}

static inline uint32_t *shm_lock_bell(uint32_t *bells, uint32_t element)
{
    return bells + SHM_KEY_BELLS + element % SHM_LOCK_BELLS;
}

/* Wake all sleepers of a bell, if there may be any. Adding 1 clears SLEEPING and changes the number.
 * If another ringer was faster, SLEEPING is set for nobody: one useless ring later. */
static inline void shm_bell_ring(uint32_t *bell)
{
    /* After the CAS that took the lock word of the change; pairs with bell_arm. */
    if (__atomic_load_n(bell, __ATOMIC_SEQ_CST) & SHM_SLEEPING)
        shm_futex_add_and_wake(bell, SHM_SLEEPING, INT_MAX);
}

/* Wake up to count sleepers of a bell. SLEEPING stays for the others, and is cleared by the ring that
 * finds nobody. */
static __attribute__((noinline, cold, unused)) void shm_bell_ring_some(uint32_t *bell, int count)
{
    if (!(__atomic_load_n(bell, __ATOMIC_SEQ_CST) & SHM_SLEEPING))
        return;
    if (shm_futex_add_and_wake(bell, SHM_BELL_NUMBER_ONE, count) == 0)
        shm_bell_ring(bell);
}

/* Wake one waiter for the end of a section on this element. */
static __attribute__((noinline, cold, unused)) void shm_section_ring(
    uint32_t *bells, uint32_t element)
{
    shm_bell_ring_some(shm_lock_bell(bells, element), 1);
}

/* A key with this hash has changed, and the classes of waited are waited for. */
static __attribute__((noinline, cold, unused)) void shm_key_ring(
    uint32_t *bells, uint64_t waited, uint32_t hash)
{
    if (!(waited & shm_class_of(hash)))
        return;
    shm_bell_ring(shm_key_bell(bells, hash));
    shm_bell_ring(bells + SHM_BELL_ANY);
}

/* An element is gone: its key has changed, and a section on it, if there was one, has ended. */
static __attribute__((noinline, cold, unused)) void shm_element_ring(
    uint32_t *bells, uint64_t waited, uint32_t hash, uint32_t element)
{
    shm_key_ring(bells, waited, hash);
    if (waited & shm_class_of(element))
        shm_section_ring(bells, element);
}

#endif
