/* An example of a plug-in for Ombra's encryption API: a library. It shows the interface and is no encryption: what it does to sectors is easily
 * undone without the key.
 *
 *     cc -shared -fPIC -I include examples/library.c -o example.so
 */
#include "ombra_crypt.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define HEADER 4096
static const char MAGIC[8] = "EXAMPLE";

struct disk {
    uint64_t seed;
};

static uint64_t hash(const uint8_t *bytes, size_t count) {
    uint64_t value = 14695981039346656037u;
    for (size_t at = 0; at < count; at++)
        value = (value ^ bytes[at]) * 1099511628211u;
    return value;
}

static int example_open(const struct ombra_crypt_disk *disk, struct ombra_crypt_volume *volume, void **state,
                        char *error, size_t error_bytes) {
    uint64_t seed = hash(disk->key, disk->key_bytes), check;
    if (disk->header_bytes < 16 || memcmp(disk->header, MAGIC, 8)) {
        snprintf(error, error_bytes, "this is no disk of mine");
        return 1;
    }
    memcpy(&check, disk->header + 8, 8);
    if (check != hash((const uint8_t *)&seed, 8)) {
        snprintf(error, error_bytes, "wrong key");
        return 1;
    }
    struct disk *mine = malloc(sizeof *mine);
    if (!mine)
        return 1;
    mine->seed = seed;
    *state = mine;
    volume->offset = HEADER;
    volume->sector_bytes = 512;
    return 0;
}

static int example_create(const struct ombra_crypt_disk *disk, struct ombra_crypt_volume *volume, uint8_t *header,
                          size_t header_room, char *error, size_t error_bytes) {
    uint64_t seed = hash(disk->key, disk->key_bytes), check = hash((const uint8_t *)&seed, 8);
    if (header_room < 16) {
        snprintf(error, error_bytes, "no room");
        return 1;
    }
    memcpy(header, MAGIC, 8);
    memcpy(header + 8, &check, 8);
    volume->offset = HEADER;
    volume->sector_bytes = 512;
    volume->header_bytes = 16;
    return 0;
}

static int turn(void *state, uint64_t sector, uint8_t *data, size_t bytes) {
    uint64_t seed = ((struct disk *)state)->seed;
    for (size_t at = 0; at < bytes; at++) {
        uint64_t place[2] = {seed, sector + at / 512};
        data[at] ^= (uint8_t)(hash((const uint8_t *)place, sizeof place) >> at % 8 * 8);
    }
    return 0;
}

static void example_close(void *state) {
    memset(state, 0, sizeof(struct disk));
    free(state);
}

static const struct ombra_crypt_plugin PLUGIN = {
    .api = OMBRA_CRYPT_API,
    .name = "example",
    .open = example_open,
    .create = example_create,
    .encrypt = turn,
    .decrypt = turn,
    .close = example_close,
};

const struct ombra_crypt_plugin *ombra_crypt_plugin(void) {
    return &PLUGIN;
}
