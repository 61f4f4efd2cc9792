/* Reads a map with reader/shmrhash_reader.h while Python changes it, and checks every read.
 *
 * `reading_beside PATH entries TURNS`: keys are numbers of 8 bytes, values five equal words whose
 * remainder by 10,000 is the key. Keys below 500 are in the map all the time; those from 500 to
 * 2,999 come and go; others never come. `reading_beside PATH objects TURNS`: the keys of a
 * SharedDict are "key-0" to "key-19", its values bytes that are all equal to the length's remainder
 * by 251. */
#define _GNU_SOURCE
#include <stdio.h>

#include "shmrhash_reader.h"

enum { STEADY = 500, COMING = 3000, WORDS = 5 };
static uint8_t seen[COMING];

static int is_whole(uint64_t key, const uint64_t *value)
{
    for (int i = 1; i < WORDS; i++)
        if (value[i] != value[0])
            return 0;
    return value[0] % 10000 == key;
}

static int visit(const void *key, const void *value, void *argument)
{
    uint64_t number = *(const uint64_t *)key;
    (void)argument;
    if (number >= COMING || seen[number]++ || !is_whole(number, value)) {
        printf("key %llu: a wrong entry, or a second visit\n", (unsigned long long)number);
        return 1;
    }
    return 0;
}

static int read_entries(const shmr_map *map)
{
    int result;
    for (uint64_t key = 0; key < COMING + 100; key += 7) {
        uint64_t value[WORDS];
        result = shmr_get(map, &key, value);
        if (result < 0 || (result == 0 && key < STEADY) || (result == 1 && key >= COMING)
            || (result == 1 && !is_whole(key, value))) {
            printf("key %llu: result %d\n", (unsigned long long)key, result);
            return 1;
        }
    }
    memset(seen, 0, sizeof seen);
    if ((result = shmr_walk(map, visit, NULL))) {
        printf("walk: %d\n", result);
        return 1;
    }
    for (int key = 0; key < STEADY; key++) {
        if (!seen[key]) {
            printf("key %d: not visited\n", key);
            return 1;
        }
    }
    return 0;
}

static int read_objects(const shmr_map *map)
{
    static uint8_t bytes[1 << 20];
    for (int i = 0; i < 20; i++) {
        char text[16];
        uint8_t key[16];
        uint64_t length = 0;
        int result;
        snprintf(text, sizeof text, "key-%d", i);
        shmr_digest(map, text, strlen(text), key);
        result = shmr_get_object(map, key, map->value_size / 8 - 1, bytes, sizeof bytes, &length);
        for (uint64_t at = 0; result == 1 && at < length; at++)
            if (bytes[at] != length % 251)
                result = -EBADMSG;
        if (result != 1) {
            printf("%s: result %d, length %llu\n", text, result, (unsigned long long)length);
            return 1;
        }
    }
    return 0;
}

int main(int count, char **words)
{
    shmr_map map;
    if (count != 4 || shmr_open(&map, words[1]))
        return 2;
    for (int turn = atoi(words[3]); turn > 0; turn--)
        if (words[2][0] == 'e' ? read_entries(&map) : read_objects(&map))
            return 1;
    puts("whole");
    shmr_close(&map);
    return 0;
}
