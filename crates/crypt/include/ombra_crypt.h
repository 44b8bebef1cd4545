/* Ombra's encryption API for libraries, version 1.
 *
 * A plug-in is a shared library with the function ombra_crypt_plugin(). Ombra loads it where a disk has encrypt=plugin:/path/to/it.so, and from
 * then on passes every sector of that disk through it. docs/encryption.md has an example and the same API for processes.
 *
 * Functions return 0 where they have done what they should. They may be called from several threads at once, and must neither end the
 * process nor throw. Nothing they are given may be kept after they return, but for `state`.
 */
#ifndef OMBRA_CRYPT_H
#define OMBRA_CRYPT_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define OMBRA_CRYPT_API 1u

/* The disk, when it is opened or made. */
struct ombra_crypt_disk {
    uint64_t bytes;         /* open: of the whole file; create: that the guest is to have */
    const uint8_t *header;  /* open: the first bytes of the file; create: NULL */
    size_t header_bytes;    /* how many of them; 4096, or what open asked for */
    const uint8_t *key;     /* the contents of the key file, or a passphrase */
    size_t key_bytes;
    const char *options;    /* what the user gave as plugin-options=TEXT, or "" */
};

/* What open and create answer. */
struct ombra_crypt_volume {
    uint64_t offset;        /* where in the file the guest's first sector is; a multiple of 512 */
    uint64_t bytes;         /* how many bytes the guest has; 0: up to the end of the file */
    uint32_t sector_bytes;  /* what is encrypted at once: 512, 1024, 2048 or 4096 */
    uint32_t header_bytes;  /* open: not 0 if more of the file is needed: it is called again with so much, at most 64 MiB.
                               create: bytes of the header that was written */
};

struct ombra_crypt_plugin {
    uint32_t api;           /* OMBRA_CRYPT_API */
    const char *name;

    /* Opens a disk. On failure `error` gets a text of up to `error_bytes` with its final zero. */
    int (*open)(const struct ombra_crypt_disk *disk, struct ombra_crypt_volume *volume, void **state,
                char *error, size_t error_bytes);

    /* Makes the start of a new disk: writes up to `header_room` bytes to `header`. NULL where a disk has none. */
    int (*create)(const struct ombra_crypt_disk *disk, struct ombra_crypt_volume *volume,
                  uint8_t *header, size_t header_room, char *error, size_t error_bytes);

    /* Encrypts or decrypts whole sectors in place. `sector` is the number of the first, counted in 512 bytes from `offset`. */
    int (*encrypt)(void *state, uint64_t sector, uint8_t *data, size_t bytes);
    int (*decrypt)(void *state, uint64_t sector, uint8_t *data, size_t bytes);

    /* Ends it; the keys should be wiped. */
    void (*close)(void *state);
};

/* What the library has to offer, for as long as it is loaded; NULL for nothing. */
const struct ombra_crypt_plugin *ombra_crypt_plugin(void);

#ifdef __cplusplus
}
#endif
#endif
