/* Which process of a line of forks this is.
 *
 * A child of fork has all Python objects of its parent, and nothing of what they stand for in a
 * segment: pins, sections, contexts and operations under way are its parent's. So whatever stands
 * for something there notes the generation in which it began, and whoever uses or ends it compares.
 * The handler runs in the child before anything else of this library can, also where a C library
 * forks and Python's own hooks are not called. */
#ifndef SHMRHASH_GENERATION_H
#define SHMRHASH_GENERATION_H

#include <pthread.h>
#include <stdint.h>

static uint64_t process_generation = 1;

static void generation_of_child(void)
{
    process_generation += 1;
}

/* Once, when the module is made. 0, or what pthread_atfork says. */
static inline int generation_install(void)
{
    static int installed = 0;
    if (installed)
        return 0;
    installed = 1;
    return pthread_atfork(NULL, NULL, generation_of_child);
}

#endif
