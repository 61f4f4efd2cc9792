/* Show a map: `show PATH` prints the hexadecimal key and value of each entry, and how many there
 * are; `show PATH KEY` the value of one key, in hexadecimal; `show PATH str TEXT` the object of a
 * key of a SharedDict with keys of type str and values of type str or bytes.
 *
 *     cc -O2 -o show reader/show.c && ./show /dev/shm/NAME
 */
#define _GNU_SOURCE
#include <stdio.h>

#include "shmrhash_reader.h"

static void print_hex(const uint8_t *bytes, uint64_t size)
{
    for (uint64_t i = 0; i < size; i++)
        printf("%02x", bytes[i]);
}

typedef struct {
    const shmr_map *map;
    uint64_t count;
} shown;

static int show_entry(const void *key, const void *value, void *argument)
{
    shown *so_far = argument;
    print_hex(key, so_far->map->key_size);
    putchar(' ');
    print_hex(value, so_far->map->value_size);
    putchar('\n');
    so_far->count++;
    return 0;
}

static int show_value(const shmr_map *map, const char *hex)
{
    uint8_t *key = calloc(1, map->key_size), *value = calloc(1, map->value_size);
    int result = -EINVAL;
    if (key && value && strlen(hex) == 2 * map->key_size) {
        for (uint64_t i = 0; i < map->key_size; i++)
            key[i] = (uint8_t)strtoul((char[]){hex[2 * i], hex[2 * i + 1], 0}, NULL, 16);
        result = shmr_get(map, key, value);
        if (result == 1) {
            print_hex(value, map->value_size);
            putchar('\n');
        }
    }
    free(key);
    free(value);
    return result;
}

static int show_object(const shmr_map *map, const char *text)
{
    uint8_t key[16];
    uint64_t room = 1 << 20, length = 0;
    char *bytes = malloc(room);
    int result;
    if (!bytes || map->key_size != sizeof key) {
        free(bytes);
        return -EINVAL;
    }
    shmr_digest(map, text, strlen(text), key);
    result = shmr_get_object(map, key, map->value_size / 8 - 1, bytes, room, &length);
    if (result == 1) {
        fwrite(bytes, 1, length, stdout);
        putchar('\n');
    }
    free(bytes);
    return result;
}

int main(int count, char **words)
{
    shmr_map map;
    int result = count < 2 ? -EINVAL : shmr_open(&map, words[1]);
    if (result == 0 && count == 2) {
        shown so_far = {&map, 0};
        result = shmr_walk(&map, show_entry, &so_far);
        printf("%llu\n", (unsigned long long)so_far.count);
        shmr_close(&map);
    } else if (result == 0) {
        result = count == 3 ? show_value(&map, words[2]) : show_object(&map, words[3]);
        shmr_close(&map);
        if (result == 0)
            puts("absent");
    }
    if (result < 0)
        fprintf(stderr, "%s: %s\n", count < 2 ? "PATH" : words[1], strerror(-result));
    return result < 0;
}
