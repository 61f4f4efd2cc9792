/* The generation of this process: a number that grows by one in each child of fork.
 *
 * A child of fork has all Python objects of its parent, but owns nothing of what they stand for in
 * a segment: pins, sections, contexts and operations under way are still its parent's. So an object
 * that stands for such a thing notes the generation in which it began, and the code that uses or
 * ends it compares that with the current generation. The handler runs in the child before any other
 * code of this library, also where a C library forks and Python's own hooks are not called. */
#ifndef SHMRHASH_GENERATION_H
#define SHMRHASH_GENERATION_H

#include <pthread.h>
#include <stdint.h>

#include "machine/gil.h"

static uint64_t process_generation = 1;

static void generation_of_child(void)
{
    process_generation += 1;
    shm_state_forget();
}

/* Called when the module is imported. Returns 0, or the error of pthread_atfork. */
static inline int generation_install(void)
{
    static int installed = 0;
    if (installed)
        return 0;
    installed = 1;
    return pthread_atfork(NULL, NULL, generation_of_child);
}

#endif
