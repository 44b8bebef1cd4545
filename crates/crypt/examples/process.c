/* An example of a plug-in for Ombra's encryption API: a process that speaks the protocol on its standard input. It shows the interface and is no
 * encryption. `cc examples/process.c -o example`; docs/encryption.md specifies the protocol.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { OPEN = 1, CREATE, ENCRYPT, DECRYPT };
#define HEADER 4096

struct head {
    char magic[4];
    uint16_t kind, status;
    uint64_t sector;
    uint32_t length, zero;
};
struct sizes {
    uint64_t disk;
    uint32_t header, key, options, zero;
};
struct answer {
    uint64_t offset, bytes;
    uint32_t sector_bytes, header_bytes;
};

static void all(ssize_t (*move)(int, void *, size_t), void *bytes, size_t count) {
    for (size_t done = 0; done < count;) {
        ssize_t moved = move(0, (char *)bytes + done, count - done);
        if (moved <= 0)
            exit(0); /* Ombra has ended. */
        done += (size_t)moved;
    }
}

static ssize_t put(int fd, void *bytes, size_t count) {
    return write(fd, bytes, count);
}

static uint64_t hash(const void *bytes, size_t count) {
    uint64_t value = 14695981039346656037u;
    for (size_t at = 0; at < count; at++)
        value = (value ^ ((const uint8_t *)bytes)[at]) * 1099511628211u;
    return value;
}

static void reply(struct head head, uint16_t status, void *payload, size_t length) {
    head.status = status;
    head.length = (uint32_t)length;
    all(put, &head, sizeof head);
    all(put, payload, length);
}

int main(void) {
    uint64_t seed = 0;
    for (;;) {
        struct head head;
        all(read, &head, sizeof head);
        uint8_t *data = malloc(head.length + 1);
        if (!data || memcmp(head.magic, "OCR1", 4))
            return 1;
        all(read, data, head.length);
        if (head.kind == OPEN || head.kind == CREATE) {
            struct sizes *sizes = (struct sizes *)data;
            uint8_t *header = data + sizeof *sizes;
            seed = hash(header + sizes->header, sizes->key);
            struct {
                struct answer answer;
                char magic[8];
                uint64_t check;
            } made = {{HEADER, 0, 512, 16}, "PROCESS", hash(&seed, 8)};
            made.answer.header_bytes = head.kind == OPEN ? 0 : 16;
            if (head.kind == CREATE)
                reply(head, 0, &made, sizeof made);
            else if (sizes->header >= 16 && !memcmp(header, made.magic, 16))
                reply(head, 0, &made.answer, sizeof made.answer);
            else
                reply(head, 1, "wrong key", 9);
        } else if (head.kind == ENCRYPT || head.kind == DECRYPT) {
            for (size_t at = 0; at < head.length; at++) {
                uint64_t place[2] = {seed, head.sector + at / 512};
                data[at] ^= (uint8_t)(hash(place, sizeof place) >> at % 8 * 8);
            }
            reply(head, 0, data, head.length);
        } else
            reply(head, 1, "unknown request", 15);
        free(data);
    }
}
