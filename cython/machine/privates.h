/* Which things in segments this process alone can know of, and that fork ends.
 *
 * A cell of a lock without a key is known only to those that have an object for it: to the process
 * that made it, until that pickles the object or forks. A word of the cell says so (Cell.keeper in
 * cells/cell.pxd), for the day that the process dies. So fork clears these words first, in its
 * prepare handler, while the parent alone has the objects; also where a C library forks.
 *
 * The list has the address of each such word, and of the variable that says where in the list the
 * entry is: index + 1, or 0 if the thing is not private any more. The mutex is held for some stores
 * and, without a fork in between, for an allocation. */
#ifndef SHMRHASH_PRIVATES_H
#define SHMRHASH_PRIVATES_H

#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>

typedef struct {
    uint64_t *word;
    uint64_t *place;
} Private;

static pthread_mutex_t privates_mutex = PTHREAD_MUTEX_INITIALIZER;
static Private *privates = NULL;
static uint64_t privates_count = 0;
static uint64_t privates_room = 0;

static void privates_before_fork(void)
{
    pthread_mutex_lock(&privates_mutex);
    for (uint64_t at = 0; at < privates_count; at++) {
        __atomic_store_n(privates[at].word, 0, __ATOMIC_RELEASE);
        *privates[at].place = 0;
    }
    privates_count = 0;
}

static void privates_after_fork(void)
{
    pthread_mutex_unlock(&privates_mutex);
}

/* Called when the module is imported. Returns 0, or the error of pthread_atfork. */
static inline int privates_install(void)
{
    static int installed = 0;
    if (installed)
        return 0;
    installed = 1;
    return pthread_atfork(privates_before_fork, privates_after_fork, privates_after_fork);
}

/* Store a value into a word, and 0 when the process forks. Without memory for the list: nothing. */
static void private_add(uint64_t *word, uint64_t value, uint64_t *place)
{
    pthread_mutex_lock(&privates_mutex);
    if (privates_count == privates_room) {
        uint64_t room = privates_room ? 2 * privates_room : 64;
        Private *more = realloc(privates, room * sizeof(Private));
        if (more) {
            privates = more;
            privates_room = room;
        }
    }
    if (privates_count < privates_room) {
        privates[privates_count].word = word;
        privates[privates_count].place = place;
        privates_count += 1;
        *place = privates_count;
        __atomic_store_n(word, value, __ATOMIC_RELEASE);
    }
    pthread_mutex_unlock(&privates_mutex);
}

/* The mutex is held. */
static void private_remove(uint64_t at)
{
    *privates[at].place = 0;
    privates_count -= 1;
    if (at != privates_count) {
        privates[at] = privates[privates_count];
        *privates[at].place = at + 1;
    }
}

/* Take an entry off the list. Returns 0 if there is none any more: the process has forked since. */
static int private_drop(uint64_t *place)
{
    int found;
    pthread_mutex_lock(&privates_mutex);
    found = *place != 0;
    if (found)
        private_remove(*place - 1);
    pthread_mutex_unlock(&privates_mutex);
    return found;
}

/* Store 0 into the word of an entry that is on the list, and take it off. Of several threads that
 * call this, none returns before that is done. */
static void private_share(uint64_t *word, uint64_t *place)
{
    pthread_mutex_lock(&privates_mutex);
    if (*place != 0) {
        __atomic_store_n(word, 0, __ATOMIC_RELEASE);
        private_remove(*place - 1);
    }
    pthread_mutex_unlock(&privates_mutex);
}

/* Before a mapping ends: take its words off the list. */
static void privates_forget(const void *base, uint64_t size)
{
    pthread_mutex_lock(&privates_mutex);
    for (uint64_t at = privates_count; at > 0; at--) {
        const char *word = (const char *) privates[at - 1].word;
        if (word >= (const char *) base && word < (const char *) base + size)
            private_remove(at - 1);
    }
    pthread_mutex_unlock(&privates_mutex);
}

#endif
