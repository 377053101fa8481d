/** Walking the steps of a SELL stream, one row's four entries after the other. */
#ifndef PDVM_BACKEND_CPU_SELL_H
#define PDVM_BACKEND_CPU_SELL_H

#include "backend/cpu/cpu.h"

#include <string.h>

struct sell_walk {
    const uint8_t *p; /* the next step */
    int64_t block;    /* of the last one */
};

/** n fours of entries: four k belongs to row[k]. */
struct sell_step {
    int n;
    uint8_t row[TILE_ROWS];
    const uint8_t *cols;   /* [n][4] in the block */
    const uint8_t *values; /* [n][4] code + 128 */
};

static inline struct sell_walk sell_walk(const struct cpu_matrix *m, int64_t tile) {
    return (struct sell_walk){.p = cpu_stream_values(m, tile)};
}

static inline void sell_next(struct sell_walk *w, struct sell_step *s) {
    struct cpu_step_head head;
    memcpy(&head, w->p, sizeof head);
    w->block += head.blocks;
    s->n = 0;
    for (unsigned r = 0; r < TILE_ROWS; r++)
        if (head.rows >> r & 1) s->row[s->n++] = (uint8_t)r;
    s->cols = w->p + sizeof head;
    s->values = s->cols + 4 * s->n;
    w->p = s->values + 4 * s->n;
}

#endif
