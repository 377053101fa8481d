/* Reading the SELL format without vector instructions. */
#include "backend/cpu/sell.h"

#include <string.h>

void cpu_sell_expand(const struct cpu_matrix *m, int64_t tile, int64_t block0, int64_t block1,
                     int8_t *out) {
    const uint32_t *steps = cpu_tile_steps(m, tile);
    struct sell_step s;
    struct sell_walk w = sell_walk(m, tile);
    memset(out, 0, (size_t)(block1 - block0) * TILE_ROWS * BLOCK_COLS);
    for (int64_t g = 0; g < m->n_groups; g++) {
        for (uint32_t i = 0; i < steps[g]; i++) {
            sell_next(&w, &s);
            if (w.block >= block1) return;
            if (w.block < block0) continue;
            int8_t *block = out + (w.block - block0) * TILE_ROWS * BLOCK_COLS;
            for (int k = 0; k < s.n; k++)
                for (int j = 0; j < 4; j++) {
                    int c = s.cols[4 * k + j];
                    /* An empty place has column 0, too, and must not hide an entry there. */
                    block[c / 4 * 64 + s.row[k] * 4 + c % 4] +=
                        (int8_t)(s.values[4 * k + j] ^ 0x80);
                }
        }
    }
}
